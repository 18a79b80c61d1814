"""A firewall for LLM traffic: judges every prompt that goes in and every reply that comes out."""

__version__ = "0.1.0"
