"""A secret in pieces: over choices, calls, values of one call, content and arguments, and several replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.chat_reply import ChatWire
from service.api.messages_reply import MessagesWire
from service.api.responses_reply import ResponsesWire
from service.firewall.argument_values import ArgumentValues
from service.firewall.asked import Asked
from service.firewall.leakage import LeakageGuard
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.split_secrets import ToldSecrets
from service.firewall.stream import ReplyJudge
from service.release import Release
from service.settings import Leakage

SECRET = "sk-live-9f8A7b6C5d4E3f2G"
HALVES = (SECRET[:12], SECRET[12:])
THIRDS = (SECRET[:8], SECRET[8:16], SECRET[16:])
FEW = ProtectedTexts([ProtectedText("vault", "secret", "", SECRET)])
MANY = ProtectedTexts()
MANY.merge(
    [ProtectedText(f"s{at}", "secret", "", f"sk-test-{at:05}-{at * 7919:08}", f"i{at}") for at in range(1_200)]
    + [ProtectedText("vault", "secret", "", SECRET, "mine")]
)


def judge(action: str = "block", stream: str = "exact", protected: ProtectedTexts = FEW) -> ReplyJudge:
    settings = Leakage(action=action, stream=stream, credentials="allow")  # type: ignore[arg-type]
    return ReplyJudge(protected.for_request("t"), settings, lambda text: "digest")


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def chat_event(index: int, **delta: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def call(arguments: str, at: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": at, "function": {"arguments": arguments}}]}


async def streamed(events: Iterable[bytes], release: Release, wire: Any = None) -> bytes:
    """What leaves of a stream up to its end, or up to where it is cut."""
    reader, out = (wire or ChatWire()).open_stream(), b""
    for event in events:
        for piece in reader.feed(event):
            await release.take(piece)
        out += release.cleared()
        if release.blocked:
            return out
    await release.finish()
    return out + release.cleared()


async def whole(document: dict[str, Any], release: Release, wire: Any = None) -> bytes:
    await release.take((wire or ChatWire()).read_reply(json.dumps(document).encode()), last=True)
    await release.finish()
    return release.cleared()


def categories(release: Release) -> set[str]:
    return {finding.category for finding in release.verdict.findings}


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "choices": [{"index": at, "message": message, "finish_reason": "stop"} for at, message in enumerate(messages)]
    }


REPLIES: dict[str, dict[str, Any]] = {
    "two choices": chat({"content": f"It is {HALVES[0]}"}, {"content": HALVES[1] + " of it."}),
    "two choices, the rest first": chat({"content": HALVES[1]}, {"content": f"It begins: {HALVES[0]}"}),
    "three choices": chat(*({"content": third} for third in THIRDS)),
    "three choices in another order": chat(*({"content": THIRDS[at]} for at in (2, 0, 1))),
    "two calls": chat(
        {
            "tool_calls": [
                {"function": {"name": "put", "arguments": json.dumps({"to": "a file", "text": half})}}
                for half in HALVES
            ]
        }
    ),
    "two values": chat({"tool_calls": [{"function": {"arguments": json.dumps({"a": HALVES[0], "b": HALVES[1]})}}]}),
    "two values apart": chat(
        {"tool_calls": [{"function": {"arguments": json.dumps({"a": HALVES[0], "n": "no", "b": [HALVES[1]]})}}]}
    ),
    "content and arguments": chat(
        {"content": f"Now: {HALVES[0]}", "tool_calls": [{"function": {"arguments": json.dumps({"b": HALVES[1]})}}]}
    ),
}


@pytest.mark.parametrize("protected", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", REPLIES)
async def test_a_whole_reply_that_tells_a_secret_in_pieces_is_blocked(name: str, protected: ProtectedTexts) -> None:
    release = Release(judge(protected=protected), ChatWire())
    assert await whole(REPLIES[name], release) == b""
    assert release.blocked and categories(release) == {"leak.secret"}


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("protected", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", REPLIES)
async def test_a_streamed_reply_ends_before_the_piece_that_completes_a_secret(
    name: str, protected: ProtectedTexts, size: int
) -> None:
    events = []
    for at, choice in enumerate(REPLIES[name]["choices"]):
        for part in cut(choice["message"].get("content", ""), size):
            events.append(chat_event(at, content=part))
        for number, made in enumerate(choice["message"].get("tool_calls", ())):
            events += [chat_event(at, **call(part, number)) for part in cut(made["function"]["arguments"], size)]
    release = Release(judge(protected=protected), ChatWire())
    out = (await streamed(events, release)).decode()
    assert release.blocked and categories(release) == {"leak.secret"}
    sent: dict[Any, str] = {}
    for line in out.split("\n\n")[:-1]:
        (choice,) = json.loads(line[6:])["choices"]
        calls = choice["delta"].get("tool_calls", [{"index": None, "function": {"arguments": ""}}])
        place = choice["index"], calls[0]["index"]
        text = choice["delta"].get("content", "") + calls[0]["function"]["arguments"]
        sent[place] = sent.get(place, "") + text
    assert not all(any(half in text for text in sent.values()) for half in HALVES)


@settings(max_examples=150, deadline=None)
@given(st.data())
async def test_pieces_are_found_however_the_events_of_the_choices_alternate(data: st.DataObject) -> None:
    at = data.draw(st.integers(8, len(SECRET) - 8))
    texts = [f"So: {SECRET[:at]}", SECRET[at:] + "."]
    size = data.draw(st.integers(1, 9))
    queues = [cut(text, size) for text in texts]
    events = []
    while any(queues):
        number = data.draw(st.sampled_from([at for at, queue in enumerate(queues) if queue]))
        events.append(chat_event(number, content=queues[number].pop(0)))
    release = Release(judge(), ChatWire())
    await streamed(events, release)
    assert release.blocked and categories(release) == {"leak.secret"}


async def test_a_message_is_blocked_for_a_secret_in_two_values_of_one_call_whole_and_streamed() -> None:
    given_ = {"a": HALVES[0], "b": HALVES[1]}
    block = {"type": "tool_use", "id": "t1", "name": "put", "input": given_}
    document = {"type": "message", "role": "assistant", "content": [block]}
    release = Release(judge(), MessagesWire())
    assert await whole(document, release, MessagesWire()) == b""
    assert categories(release) == {"leak.secret"}

    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()

    begun = event("message_start", message={"type": "message", "role": "assistant", "content": []})
    for size in (1, 5, 100):
        events = [begun, event("content_block_start", index=0, content_block={**block, "input": {}})]
        events += [
            event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": part})
            for part in cut(json.dumps(given_), size)
        ]
        release = Release(judge(), MessagesWire())
        out = await streamed(events, release, MessagesWire())
        assert categories(release) == {"leak.secret"} and HALVES[1].encode() not in out
    release = Release(judge(), MessagesWire())
    await streamed([begun, event("content_block_start", index=0, content_block=block)], release, MessagesWire())
    assert release.blocked and categories(release) == {"leak.secret"}


async def test_a_response_is_blocked_for_a_secret_over_its_text_and_a_call() -> None:
    items = [
        {"type": "message", "content": [{"type": "output_text", "text": f"Key: {HALVES[0]}"}]},
        {"type": "function_call", "name": "put", "arguments": json.dumps({"x": HALVES[1]})},
    ]
    release = Release(judge(), ResponsesWire())
    assert await whole({"object": "response", "output": items}, release, ResponsesWire()) == b""
    assert categories(release) == {"leak.secret"}


@pytest.mark.parametrize("stream", ["exact", "sentence"])
async def test_what_only_begins_a_secret_leaves(stream: str) -> None:
    events = [chat_event(0, content=SECRET[:20])]
    others = ["sk-live is how keys begin.", "9f8A", " 7b6C5d4E3f", "ordinary"]
    events += [chat_event(at, content=text) for at, text in enumerate(others, 1)]
    release = Release(judge(stream=stream), ChatWire())
    assert await streamed(events, release) == b"".join(events)
    assert release.verdict.action == "allow"


async def test_what_goes_on_otherwise_is_not_held_till_the_end() -> None:
    release, reader = Release(judge(), ChatWire()), ChatWire().open_stream()
    out = b""
    for event in (chat_event(0, content=HALVES[0]), chat_event(0, content=" ... "), chat_event(1, content="7b6C")):
        for piece in reader.feed(event):
            await release.take(piece)
        out += release.cleared()
    assert out == b""
    for event in (chat_event(0, content="but no"), chat_event(1, content=" nothing"), chat_event(1, content=" more")):
        for piece in reader.feed(event):
            await release.take(piece)
        out += release.cleared()
    assert b"7b6C" in out


async def test_long_pieces_are_found_between_other_words() -> None:
    release = Release(judge(), ChatWire())
    texts = ("First comes sk-live-9f8A7b6 and then more.", "It goes on with C5d4E3f2G, I think.")
    await streamed([chat_event(at, content=char) for at, text in enumerate(texts) for char in text], release)
    assert categories(release) == {"leak.secret"}


async def test_a_completing_value_is_redacted_and_the_arguments_stay_json() -> None:
    given_ = {"a": HALVES[0], "b": f"{HALVES[1]}!", "c": "plain"}
    release = Release(judge("redact"), ChatWire())
    message = {"tool_calls": [{"function": {"name": "put", "arguments": json.dumps(given_)}}]}
    out = json.loads(await whole(chat(message), release))
    sent = json.loads(out["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    assert sent["c"] == "plain" and HALVES[1] not in sent["b"] and "[redacted]" in sent["b"]
    assert release.verdict.action == "redact"


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_values_are_read_wherever_their_json_is_cut(size: int) -> None:
    given_ = {"a": ['x"y\\', {"b": "\u00fc\n", "c": {}}, 4, "z"], "d": "", "e": {"f": "\ud83d\ude00 end"}}
    reader, values = ArgumentValues(), []
    text = json.dumps(given_)
    for at in range(0, len(text), size):
        for part in reader.feed(text[at : at + size], at):
            if part.begins:
                values.append("")
            assert all(0 < after - before <= 6 for before, after in pairwise(part.edges) if part.text)
            values[-1] += part.text
    assert values == ['x"y\\', "ü\n", "z", "", "   end"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guard(action: str = "block") -> LeakageGuard:
    return LeakageGuard(Leakage(stream="exact", action=action, credentials="allow"), FEW, None, None, digest=str)  # type: ignore[arg-type]


async def said(to: LeakageGuard, texts: Sequence[str], caller: str = "t\0k") -> bool:
    judge = await to.open("t", (), (), Asked(caller=caller))
    for text in texts:
        await judge.feed("choices/0/content", text)
        if judge.blocked:
            return True
    await judge.finish()
    return judge.blocked


async def test_the_reply_that_completes_a_secret_of_thirds_is_blocked_and_stays_so() -> None:
    to = guard()
    assert [await said(to, [third]) for third in THIRDS] == [False, False, True]
    assert await said(to, cut(THIRDS[2], 1))
    assert await said(to, [HALVES[0]]) is False


async def test_pieces_told_to_different_callers_do_not_add_up() -> None:
    to = guard()
    assert [await said(to, [third], caller=f"t\0{at}") for at, third in enumerate(THIRDS)] == [False] * 3
    assert not await said(to, [HALVES[1]], caller="t\0new")


async def test_a_caller_who_leaves_early_was_told_what_he_was_told() -> None:
    to = guard()
    judge = await to.open("t", (), (), Asked(caller="t\0k"))
    await judge.feed("choices/0/content", SECRET[:14])
    await judge.feed("choices/0/content", " and")
    assert await said(to, ["It ends in: " + SECRET[12:]])


async def test_pieces_are_forgotten_after_the_window_and_beyond_so_many_callers() -> None:
    clock = Clock()
    told = ToldSecrets(window_s=60.0, most_callers=2, clock=clock)
    owners = FEW.for_request("t").patterns[0].owners[0]
    pattern = "sklive9f8a7b6c5d4e3f2g"

    def tell(caller: str) -> None:
        told.follow(caller, lambda form, text: owners).take("c", "letters", pattern[:9], [(pattern, owners, 9)])

    def knows(caller: str) -> bool:
        found, _ = told.follow(caller, lambda form, text: owners).take("c", "letters", pattern[9:], ())
        return bool(found)

    tell("a")
    assert knows("a") and not knows("b")
    clock.now = 61.0
    assert not knows("a")
    for caller in "abc":
        tell(caller)
    assert [knows(caller) for caller in "abc"] == [False, True, True]


async def test_a_secret_that_is_registered_no_more_is_completed_by_nothing() -> None:
    protected = ProtectedTexts()
    protected.merge([ProtectedText("vault", "secret", "t", SECRET, "one")])
    to = LeakageGuard(Leakage(stream="exact", credentials="allow"), protected, None, None, digest=str)
    assert not await said(to, [HALVES[0]])
    protected.merge([], ["one"])
    assert not await said(to, [HALVES[1]])
