"""The gRPC side alone, over a real channel: what an Envoy seldom says, and what a faulty one might."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.api.ext_proc import external_processor_pb2 as pb
from service.api.ext_proc import frames
from service.api.ext_proc.server import SERVICE, ExtProcServer

SECRET = "hunter2-correct-horse"
BOTH = pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED)
CALL = json.dumps({"model": "up-whole", "messages": [{"role": "user", "content": "hello"}]}).encode()
REPLY = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'


def head(kind: str, *, ended: bool = False, **headers: str) -> Any:
    """`headers` have `_` for `-`; those of HTTP/2 itself begin with `p_`."""
    named = [(name.replace("p_", ":").replace("_", "-"), value) for name, value in headers.items()]
    sent = pb.HeaderMap(headers=[pb.HeaderValue(key=name, raw_value=value.encode()) for name, value in named])
    message = pb.HttpHeaders(headers=sent, end_of_stream=ended)
    return pb.ProcessingRequest(**{kind: message}, protocol_config=BOTH)


ASKED = head("request_headers", p_method="POST", p_path="/v1/chat/completions", content_type="application/json")
ANSWERED = head("response_headers", p_status="200", content_type="application/json")


def body(kind: str, data: bytes, *, last: bool = True) -> Any:
    return pb.ProcessingRequest(**{kind: pb.HttpBody(body=data, end_of_stream=last)})


def trailers(kind: str) -> Any:
    said = pb.HeaderMap(headers=[pb.HeaderValue(key="x-said", raw_value=SECRET.encode())])
    return pb.ProcessingRequest(**{kind: pb.HttpTrailers(trailers=said)})


class Talk:
    """One stream to the processor."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self._call.write(message)

    async def hear(self) -> Any:
        """The next message; None at the end."""
        message = await asyncio.wait_for(self._call.read(), 10)
        return None if message is grpc.aio.EOF else message

    async def end(self) -> Any:
        """Send nothing more, as an Envoy that is done; the status."""
        await self._call.done_writing()
        return await asyncio.wait_for(self._call.code(), 10)


@pytest.fixture
async def talk(processor: ExtProcServer) -> AsyncIterator[Talk]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{processor.port}") as channel:
        method = channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        yield Talk(method())


def headers_of(mutation: Any) -> dict[str, str]:
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


async def test_a_call_is_let_go_on_when_all_of_it_was_judged_and_its_reply_when_all_of_that_was(
    world: Any, talk: Talk
) -> None:
    await talk.say(ASKED, body("request_body", CALL[:20], last=False), body("request_body", CALL[20:]))
    first, second = await talk.hear(), await talk.hear()
    mutation = first.request_headers.response.header_mutation
    assert headers_of(mutation) == {"accept-encoding": "identity", "content-length": str(len(CALL))}
    assert list(mutation.remove_headers) == ["x-firewall-key"]
    sent = second.request_body.response.body_mutation.streamed_response
    assert (sent.body, sent.end_of_stream) == (CALL, True)

    await talk.say(ANSWERED, body("response_body", REPLY))
    third, fourth = await talk.hear(), await talk.hear()
    assert headers_of(third.response_headers.response.header_mutation)["x-firewall-action"] == "allow"
    sent = fourth.response_body.response.body_mutation.streamed_response
    assert (sent.body, sent.end_of_stream) == (REPLY, True)
    assert await talk.end() == grpc.StatusCode.OK


async def test_trailers_go_on_without_what_nobody_has_judged(world: Any, talk: Talk) -> None:
    await talk.say(ASKED, body("request_body", CALL, last=False), trailers("request_trailers"))
    heard = [await talk.hear() for _ in range(3)]
    assert not heard[1].request_body.response.body_mutation.streamed_response.end_of_stream
    assert list(heard[2].request_trailers.header_mutation.remove_headers) == ["x-said"]

    await talk.say(ANSWERED, body("response_body", REPLY, last=False), trailers("response_trailers"))
    heard = [await talk.hear() for _ in range(3)]
    assert heard[1].response_body.response.body_mutation.streamed_response.body == REPLY
    assert not heard[1].response_body.response.body_mutation.streamed_response.end_of_stream
    assert list(heard[2].response_trailers.header_mutation.remove_headers) == ["x-said"]
    assert await talk.end() == grpc.StatusCode.OK


async def test_a_reply_without_a_body_passes_without_one(world: Any, talk: Talk) -> None:
    await talk.say(ASKED, body("request_body", CALL))
    await talk.hear(), await talk.hear()
    await talk.say(head("response_headers", ended=True, p_status="503"))
    passed = await talk.hear()
    assert passed.WhichOneof("response") == "response_headers"
    assert await talk.end() == grpc.StatusCode.OK
    assert world.row().status == 503


async def test_what_envoy_itself_refuses_keeps_its_status_and_loses_its_text(world: Any, talk: Talk) -> None:
    await talk.say(head("response_headers", p_status="403", x_said=SECRET), body("response_body", SECRET.encode()))
    first, second = await talk.hear(), await talk.hear()
    assert first.WhichOneof("response") == "response_headers"
    assert "x-said" in first.response_headers.response.header_mutation.remove_headers
    said = json.loads(second.response_body.response.body_mutation.streamed_response.body)
    assert said["error"]["code"] == "refused_by_proxy"
    assert await talk.end() == grpc.StatusCode.OK


async def test_a_reply_to_a_request_that_was_not_shown_is_withheld(world: Any, talk: Talk) -> None:
    await talk.say(ANSWERED, body("response_body", REPLY))
    heard = await talk.hear()
    assert heard.immediate_response.status.code == 503
    assert b"hello" not in heard.immediate_response.body


async def test_a_request_that_envoy_gives_up_within_its_body_is_on_record(world: Any, talk: Talk) -> None:
    await talk.say(ASKED, body("request_body", CALL[:9], last=False))
    await talk.say(head("response_headers", p_status="408"), body("response_body", b"request timeout"))
    first, second = await talk.hear(), await talk.hear()
    assert first.WhichOneof("response") == "response_headers"
    assert b"refused_by_proxy" in second.response_body.response.body_mutation.streamed_response.body
    assert (await asyncio.to_thread(world.row)).error == "client_disconnected"


@pytest.mark.parametrize(
    "said",
    [
        [body("request_body", CALL)],
        [ASKED, ASKED],
        [ASKED, body("request_body", CALL[:9], last=False), pb.ProcessingRequest()],
        [ASKED, body("request_body", CALL[:9], last=False), body("response_body", b"x")],
    ],
)
async def test_what_cannot_come_now_ends_the_stream_with_an_error_and_lets_nothing_go_on(
    world: Any, talk: Talk, said: list[Any]
) -> None:
    await talk.say(*said)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await talk.hear()
    assert raised.value.code() == grpc.StatusCode.ABORTED


async def test_an_envoy_that_leaves_within_a_reply_is_on_record(world: Any, talk: Talk) -> None:
    await talk.say(ASKED, body("request_body", CALL))
    await talk.hear(), await talk.hear()
    await talk.say(ANSWERED, body("response_body", REPLY[:20], last=False))
    assert await talk.end() == grpc.StatusCode.ABORTED
    assert (await asyncio.to_thread(world.row)).error == "client_disconnected"


async def test_a_stream_stays_open_after_an_answer_until_envoy_ends_it(world: Any, talk: Talk) -> None:
    # One that ended well would be leave for Envoy to let the rest of a reply pass unseen.
    await talk.say(head("request_headers", p_method="POST", p_path="/v1/files"))
    assert (await talk.hear()).immediate_response.status.code == 404
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(talk.hear(), 0.3)


def test_a_body_is_cut_into_messages_that_envoy_takes() -> None:
    data = b"x" * (2 * frames.MAX_CHUNK_BYTES + 1)
    sent = [m.request_body.response.body_mutation.streamed_response for m in frames.body("request", data, last=True)]
    assert b"".join(each.body for each in sent) == data
    assert [each.end_of_stream for each in sent] == [False, False, True]
    assert max(len(each.body) for each in sent) < 65_536


def test_an_empty_end_is_one_message_and_nothing_in_between_is_none() -> None:
    assert [m.WhichOneof("response") for m in frames.body("response", b"", last=True)] == ["response_body"]
    assert list(frames.body("response", b"", last=False)) == []
