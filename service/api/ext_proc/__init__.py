"""Envoy's external processing: requests and replies that pass through an Envoy are judged as the gateway's own are.

Needs the extra `envoy` (grpcio); nothing else of the service imports what is here before `[envoy] port` asks for it.
"""

from __future__ import annotations

from importlib.util import find_spec

from service.errors import ConfigError


def require() -> None:
    """Raises ConfigError where the extra is not installed."""
    if find_spec("grpc") is None:
        raise ConfigError("envoy.port: needs the extra `envoy`: pip install 'semantic-firewall[envoy]'")
