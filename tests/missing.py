"""What a test needs and does not find: a skip that is seen on a user's machine, a failure under CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(missing: str) -> NoReturn:
    """Says what is missing. Under CI it must not be forgotten, and nobody reads the skips there."""
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
