"""A firewall for LLM traffic: judges every prompt that goes in and every reply that comes out."""

import os

# ONNX Runtime's Linux builds send usage data to their maker unless told not to, before they are first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
