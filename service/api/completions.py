"""OpenAI's legacy completions: the prompt is one text, or several that are answered side by side.

Source: OpenAI API reference, "Create completion" and "The completion object". The reply's choices have `text` in the
place of a message; `chat_reply` reads both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from service.api import strict_json
from service.api.asgi import Handler, endpoint, malformed
from service.api.caller_names import names_of
from service.api.chat_reply import ChatWire
from service.api.inputs import Decode, Inputs
from service.api.request_fields import Fields, model_of, read_object, recorded
from service.api.sampling import sampling_of
from service.api.strict_json import pointer
from service.errors import Forbidden
from service.firewall.prompt import Prompt, Unscannable
from service.gateway import Gateway
from service.interfaces import Call
from service.settings import Server

_FIELDS = Fields(
    booleans=frozenset({"echo", "stream"}),
    integers=frozenset({"best_of", "logprobs", "max_tokens", "n", "seed"}),
    numbers=frozenset({"frequency_penalty", "presence_penalty", "temperature", "top_p"}),
    objects=frozenset({"logit_bias", "stream_options"}),
    strings=frozenset({"suffix", "user"}),
    others=frozenset({"model", "prompt", "stop"}),
    # Nothing generated, with `echo`, is how a text's log-probabilities are asked for.
    ranges={"max_tokens": (0, 2**31), "n": (1, 128), "best_of": (1, 128), "logprobs": (0, 128)},
)
_EMBEDS = "prompt_embeds"
"""Some servers take a prompt as vectors: nobody can read what they say."""
_QUIET_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


def handler(gateway: Gateway, server: Server, *, open_mode: bool) -> Handler:
    """`POST /v1/completions`."""
    parse = partial(parse_request, decode=gateway.tenancy.decode)
    return endpoint(CompletionsWire(), parse, gateway.serve, server, open_mode=open_mode)


def parse_request(body: bytes, server: Server, decode: Decode) -> Call:
    """Read one request. Raises MalformedRequest and PayloadTooLarge with the JSON pointer of what is wrong."""
    request = read_object(body)
    _FIELDS.check(request)
    model = model_of(request)
    reading = Inputs(model, decode, "user")
    prompt, suffix = request.get("prompt"), request.get("suffix") or ""
    if prompt is not None:
        # What stands before and behind the gap is read as one text, so it is judged as one as well.
        reading.read(prompt, "prompt", server.max_messages, message=0 if suffix else -1)
    reading.text(suffix, ("suffix",), "user", message=0)
    user_texts = tuple(segment.text for segment in reading.segments)
    _others(request, reading)
    samples = max(request.get("n") or 1, request.get("best_of") or 1)
    choices = samples * max(reading.count, 1)
    bound = request.get("max_tokens")
    return Call(
        model=model,
        stream=bool(request.get("stream")),
        body=body,
        prompt=Prompt(model, tuple(reading.segments), tuple(reading.unscannable)),
        user_texts=user_texts,
        max_output_tokens=None if bound is None else bound * choices,
        choices=choices,
        token_ids=reading.token_ids,
        names=names_of(request),
        demand=reading.demand(request, body),
        repeats_prompt=request.get("echo") is True,
        unknown_fields=recorded(request.keys() - _FIELDS.known),
        sampling=sampling_of(request),
    )


def _others(request: dict[str, Any], reading: Inputs) -> None:
    """Everything beside the prompt."""
    for name, value in request.items():
        if name == "stop" and value is not None and not _is_stop(value):
            raise malformed("/stop", "a string or a list of strings")
        if name in {"model", "prompt", "suffix"} or (name in _FIELDS.known and isinstance(value, (bool, int, float))):
            continue
        if name == "logit_bias" and value and all(k.isdecimal() and type(v) in {int, float} for k, v in value.items()):
            continue  # token ids
        if (
            name == "stream_options"
            and value
            and all(key in _QUIET_OPTIONS and isinstance(item, bool) for key, item in value.items())
        ):
            continue
        if name == _EMBEDS and value is not None:
            reading.unscannable.append(Unscannable(pointer(name), _EMBEDS))
        reading.member(name, value, (), known=name in _FIELDS.known)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


class CompletionsWire(ChatWire):
    """How legacy completions are answered (`interfaces.Wire`)."""

    name = "openai.completions"
    path = "/completions"

    def pin(self, call: Call, text: str) -> bytes:
        """A text to be continued has no place for one. Raises Forbidden."""
        raise Forbidden("This key has a system prompt, which has no place on this route.")

    def clamp(self, call: Call, max_output_tokens: int) -> bytes:
        """The call's body with each sample's output bounded, every other byte as it is."""
        return strict_json.splice_member(call.body, "max_tokens", max_output_tokens)
