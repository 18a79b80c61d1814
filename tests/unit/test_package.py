"""What importing the package does to its surroundings."""

from __future__ import annotations

import os
import subprocess
import sys


def test_importing_the_service_turns_the_runtimes_usage_reports_off() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "import service.scoring.encoder, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
