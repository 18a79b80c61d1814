"""A provider that keeps failing is left alone and tried once before it is trusted; places on a line are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from service.errors import MalformedRequest, UpstreamTimeout, UpstreamUnreachable
from service.upstream.breaker import Breaker
from service.upstream.line import Full, Line, Resting
from service.upstream.route import Route, Target


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Answer:
    content_type, headers = "application/json", ()

    def __init__(self, status: int) -> None:
        self.status, self.closed = status, 0

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def close(self) -> None:
        self.closed += 1


class Scripted:
    """Answers with what its list says: a status, an error to raise, or an event to wait for."""

    asks_usage = True

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.answers: list[Answer] = []
        self.asked: list[bytes] = []

    async def open(self, path: str, body: bytes, **_: Any) -> Answer:
        self.asked.append(body)
        step = self.script.pop(0) if self.script else 200
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
            step = 200
        self.answers.append(Answer(step))
        return self.answers[-1]


def line(provider: Scripted, clock: Clock, name: str = "a", **fields: Any) -> Line:
    return Line(name, provider, Breaker(2, 10.0, clock), **fields)


async def call(to: Line) -> Any:
    return await to.open("/p", b"{}", stream=False, headers={}, method="POST", model="m")


async def fail(to: Line, times: int = 2) -> None:
    for _ in range(times):
        with pytest.raises(UpstreamUnreachable):
            await call(to)


# -- the breaker -----------------------------------------------------------------------------------------------------


async def test_after_failures_in_a_row_nothing_is_sent_until_the_pause_is_over(clock: Clock) -> None:
    provider = Scripted(*[UpstreamUnreachable("gone")] * 2)
    to = line(provider, clock)
    await fail(to)
    assert to.state == "open"
    with pytest.raises(Resting) as caught:
        await call(to)
    assert caught.value.headers == {"retry-after": "10"}
    assert len(provider.asked) == 2
    clock.now += 10
    assert to.state == "half-open"
    await (await call(to)).close()
    assert to.state == "closed"


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_answer_out_of_service_is_a_failure_and_other_answers_are_none(clock: Clock, status: int) -> None:
    to = line(Scripted(status, 500, 429, 404, status, status), clock)
    for _ in range(5):
        await (await call(to)).close()
    assert to.state == "closed"
    await (await call(to)).close()
    assert to.state == "open"


async def test_of_the_calls_after_the_pause_one_alone_is_sent_and_its_failure_begins_another_pause(
    clock: Clock,
) -> None:
    gate = asyncio.Event()
    provider = Scripted(*[UpstreamUnreachable("gone")] * 2, gate, UpstreamUnreachable("gone"))
    to = line(provider, clock)
    await fail(to)
    clock.now += 10
    probe = asyncio.ensure_future(call(to))
    await asyncio.sleep(0)
    with pytest.raises(Resting):
        await call(to)
    probe.cancel()  # its caller left: nobody knows how it would have gone
    await asyncio.wait({probe})
    assert to.state == "half-open"
    await fail(to, 1)
    assert to.state == "open"
    assert len(provider.asked) == 4


async def test_what_began_before_the_breaker_opened_neither_closes_it_nor_prolongs_the_pause(clock: Clock) -> None:
    gate = asyncio.Event()
    to = line(Scripted(gate, *[UpstreamUnreachable("gone")] * 2), clock)
    old = asyncio.ensure_future(call(to))
    await asyncio.sleep(0)
    await fail(to)
    gate.set()
    await (await old).close()
    assert to.state == "open"


async def test_the_log_says_when_a_provider_is_left_alone_and_when_it_answers_again(clock: Clock) -> None:
    to = line(Scripted(*[UpstreamUnreachable("gone")] * 3), clock)
    with structlog.testing.capture_logs() as told:
        await fail(to)
        clock.now += 10
        await fail(to, 1)
        clock.now += 10
        await (await call(to)).close()
    again = "provider answers again"
    assert [(entry["event"], entry["provider"]) for entry in told] == [
        ("provider left alone", "a"),
        ("provider left alone", "a"),
        (again, "a"),
    ]


async def test_with_no_failures_allowed_for_the_breaker_never_opens(clock: Clock) -> None:
    to = Line("a", Scripted(*[UpstreamUnreachable("gone")] * 50), Breaker(0, 10.0, clock))
    await fail(to, 50)
    assert to.state == "closed"


# -- places ----------------------------------------------------------------------------------------------------------


async def test_a_call_waits_for_a_place_and_gets_it_when_the_reply_before_it_is_closed(clock: Clock) -> None:
    to = line(Scripted(), clock, concurrency=1, wait_s=60.0)
    first = await call(to)
    second = asyncio.ensure_future(call(to))
    await asyncio.sleep(0)
    assert not second.done()
    await first.close()
    await first.close()  # a second time gives back nothing more
    await (await second).close()
    assert to.under_way() == 0


async def test_a_reply_that_has_been_read_holds_no_place_while_its_caller_still_has_it(clock: Clock) -> None:
    to = line(Scripted(), clock, concurrency=1)
    reply = await call(to)
    assert [chunk async for chunk in reply.chunks()] == [b"{}"]
    assert to.under_way() == 0
    await reply.close()
    await (await call(to)).close()
    assert to.under_way() == 0


@pytest.mark.parametrize("wait_s", [0.0, 0.01])
async def test_where_no_place_comes_free_nothing_is_sent(clock: Clock, wait_s: float) -> None:
    provider = Scripted()
    to = line(provider, clock, concurrency=1, wait_s=wait_s)
    held = await call(to)
    with pytest.raises(Full):
        await call(to)
    assert (len(provider.asked), to.under_way()) == (1, 1)
    await held.close()
    await (await call(to)).close()


async def test_a_place_is_free_again_however_a_call_ends(clock: Clock) -> None:
    to = line(Scripted(UpstreamTimeout("silent"), asyncio.Event()), clock, concurrency=1, wait_s=60.0)
    with pytest.raises(UpstreamTimeout):
        await call(to)
    left = asyncio.ensure_future(call(to))
    waits = asyncio.ensure_future(call(to))
    gave_up = asyncio.ensure_future(call(to))
    await asyncio.sleep(0)
    gave_up.cancel()
    left.cancel()
    await asyncio.wait({left, gave_up})
    await (await waits).close()
    assert to.under_way() == 0


# -- one after the other ---------------------------------------------------------------------------------------------


async def ask(route: Route, noted: list[str], *, refusing: str = "") -> Any:
    """Ask; those whose names are `refusing` have no words for the call."""

    def ask_of(target: Any) -> tuple[str, bytes]:
        if target.name in refusing:
            raise MalformedRequest("cannot be said", pointer=f"/{target.name}")
        return "/p", target.model.encode()

    return await route.open(
        ask_of,
        stream=False,
        headers={},
        method="POST",
        note=lambda name, how: noted.append(f"{name} {how}"),
    )


def route(clock: Clock, *providers: Scripted, **fields: Any) -> Route:
    lines = [line(provider, clock, name) for provider, name in zip(providers, "abc", strict=False)]
    return Route([Target(to, f"model-{to.name}") for to in lines], **fields)


async def test_each_is_sent_its_own_body_and_who_answered_is_known(clock: Clock) -> None:
    providers, noted = (Scripted(UpstreamUnreachable("gone")), Scripted(503), Scripted(200)), list[str]()
    reply = await ask(route(clock, *providers), noted)
    assert (reply.provider, reply.status) == ("c", 200)
    assert noted == ["a unreachable", "b 503", "c 200"]
    assert [provider.asked for provider in providers] == [[b"model-a"], [b"model-b"], [b"model-c"]]
    assert providers[1].answers[0].closed == 1


async def test_where_nobody_can_the_last_answer_is_the_reply_and_only_it_stays_open(clock: Clock) -> None:
    providers, noted = (Scripted(503), Scripted(502), Scripted(UpstreamUnreachable("gone"))), list[str]()
    reply = await ask(route(clock, *providers), noted)
    assert (reply.provider, reply.status) == ("b", 502)
    assert (providers[0].answers[0].closed, providers[1].answers[0].closed) == (1, 0)
    assert noted == ["a 503", "b 502", "c unreachable"]


async def test_who_has_no_words_for_a_call_is_passed_over_wherever_it_stands(clock: Clock) -> None:
    for refusing, last in (("a", "b"), ("b", "a"), ("ab", "c")):
        noted = list[str]()
        reply = await ask(route(clock, *(Scripted() for _ in range(3))), noted, refusing=refusing)
        assert reply.provider == last
        assert noted == [*(f"{name} refused" for name in refusing if name < last), f"{last} 200"]


async def test_where_nobody_has_words_for_a_call_the_first_refusal_is_told(clock: Clock) -> None:
    first, second = Scripted(), Scripted()
    with pytest.raises(MalformedRequest) as caught:
        await ask(route(clock, first, second), [], refusing="ab")
    assert (caught.value.pointer, first.asked, second.asked) == ("/a", [], [])


async def test_a_call_that_somebody_may_take_later_is_not_called_malformed(clock: Clock) -> None:
    with pytest.raises(UpstreamUnreachable):
        await ask(route(clock, Scripted(), Scripted(UpstreamUnreachable("gone"))), [], refusing="a")
    answered = await ask(route(clock, Scripted(503), Scripted()), [], refusing="b")
    assert (answered.provider, answered.status) == ("a", 503)


async def test_a_silent_provider_may_be_working_and_nobody_is_asked_in_its_place(clock: Clock) -> None:
    first, second = Scripted(503), Scripted(UpstreamTimeout("silent"))
    third, noted = Scripted(), list[str]()
    with pytest.raises(UpstreamTimeout):
        await ask(route(clock, first, second, third), noted)
    assert (third.asked, first.answers[0].closed) == ([], 1)
    assert noted == ["a 503", "b timeout"]


async def test_who_has_had_enough_is_passed_over_only_where_that_is_asked_for(clock: Clock) -> None:
    assert (await ask(route(clock, Scripted(429), Scripted()), [])).provider == "a"
    assert (await ask(route(clock, Scripted(429), Scripted(), next_on_429=True), [])).provider == "b"


async def test_a_caller_who_leaves_is_noted_and_nobody_else_is_asked(clock: Clock) -> None:
    second, noted = Scripted(), list[str]()
    asked = asyncio.ensure_future(ask(route(clock, Scripted(asyncio.Event()), second), noted))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})
    assert (noted, second.asked) == (["a left"], [])
