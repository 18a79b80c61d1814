"""Envoy's messages, read and written. Nothing here decides anything.

Source: Envoy's API reference, `envoy.service.ext_proc.v3`; body mode FULL_DUPLEX_STREAMED: what comes is answered when
there is something to say, in the order head, body, trailers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from service.api.ext_proc import external_processor_pb2 as pb
from service.interfaces import Headers

Way = Literal["request", "response"]

MAX_CHUNK_BYTES = 61_440
"""Of a body in one message: Envoy's reference asks for no more than 64 KiB."""


def is_full_duplex(message: Any) -> bool:
    """Both bodies come here and wait for what is answered: in every other mode Envoy would let something go by."""
    modes = message.protocol_config
    wanted = pb.FULL_DUPLEX_STREAMED
    return bool(modes.request_body_mode == modes.response_body_mode == wanted and not message.observability_mode)


def headers_of(sent: Any) -> dict[str, str]:
    """A `HeaderMap` by lower-case name; of a repeated one, all values joined by a comma (RFC 9110)."""
    headers: dict[str, str] = {}
    for header in sent.headers:
        name = header.key.lower()
        value = header.raw_value.decode("latin-1") or header.value
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def head(way: Way, put: Headers, removed: Sequence[str]) -> Any:
    """Let the head go on, with these headers in the place of theirs and without those."""
    return _answer(
        f"{way}_headers", pb.HeadersResponse(response=pb.CommonResponse(header_mutation=_mutation(put, removed)))
    )


def body(way: Way, data: bytes, *, last: bool) -> Iterator[Any]:
    """Send these bytes on; `last`: nothing follows, not even trailers."""
    for start in range(0, max(len(data), 1), MAX_CHUNK_BYTES):
        chunk = data[start : start + MAX_CHUNK_BYTES]
        ends = last and start + MAX_CHUNK_BYTES >= len(data)
        if chunk or ends:
            streamed = pb.StreamedBodyResponse(body=chunk, end_of_stream=ends)
            common = pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))
            yield _answer(f"{way}_body", pb.BodyResponse(response=common))


def trailers(way: Way, removed: Sequence[str]) -> Any:
    """End with trailers, without these: nobody has judged what they say."""
    return _answer(f"{way}_trailers", pb.TrailersResponse(header_mutation=_mutation((), removed)))


def immediate(status: int, put: Headers, data: bytes) -> Any:
    """Answer in the place of whoever would have; Envoy drops what has not been sent."""
    answer = pb.ImmediateResponse(status=pb.HttpStatus(code=status), headers=_mutation(put, ()), body=data)
    return _answer("immediate_response", answer)


def _answer(kind: str, what: Any) -> Any:
    return pb.ProcessingResponse(**{kind: what})


def _mutation(put: Headers, removed: Sequence[str]) -> Any:
    options = [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")),
            append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in put
    ]
    return pb.HeaderMutation(set_headers=options, remove_headers=removed)
