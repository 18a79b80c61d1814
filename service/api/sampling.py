"""What a request asks of the model's sampling, in every protocol, and the same request without what shows or bends the
distribution of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from service.api import strict_json
from service.firewall.extraction_observation import Sampling, bias_hash

_PROBES = ("logprobs", "top_logprobs", "logit_bias")
_INCLUDED = "message.output_text.logprobs"


def sampling_of(request: Mapping[str, Any]) -> Sampling:
    """Of a request; what has a type that is not its protocol's says nothing."""
    biases = request.get("logit_bias") or {}
    temperature = request.get("temperature")
    bounds = [request.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    given = [bound for bound in bounds if isinstance(bound, int)]
    samples = [count for count in (1, request.get("n"), request.get("best_of")) if isinstance(count, int)]
    return Sampling(
        # In legacy completions `logprobs` is a number, and 0 asks for those of the tokens themselves.
        logprobs=_asks(request.get("logprobs")) or bool(request.get("top_logprobs")) or _includes(request),
        bias=bias_hash(biases.items()) if biases else 0,
        temperature=None if temperature is None else float(temperature),
        answers=max(samples),
        output_tokens=min(given, default=None),
    )


def without_probes(body: bytes) -> bytes:
    """A valid body that asks for no log-probabilities and biases no token, every other byte as it is."""
    request = json.loads(body)
    for name in _PROBES:
        if name in request:
            body = strict_json.splice_out(body, name)
    if _includes(request):
        body = strict_json.splice_member(body, "include", [name for name in request["include"] if name != _INCLUDED])
    return body


def _asks(logprobs: Any) -> bool:
    return logprobs is not None and logprobs is not False


def _includes(request: Mapping[str, Any]) -> bool:
    included = request.get("include")
    return isinstance(included, list) and _INCLUDED in included
