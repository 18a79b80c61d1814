"""Whatever the chunking: nothing of a match is cleared before it is found, and clean text leaves as it came."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import random
import re
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.firewall.channel import REDACTED
from service.firewall.protected import ProtectedText, ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.settings import Leakage

SECRETS = (
    "sk-live-9f8A7b6C5d4E3f2G",
    "$correct horse battery staple!",
    "Пароль-Ключ-4711-ёжик",
    "!!??##%%&&**((",
    "ﬁxed-Ⅷ-ßtraße-key",
    "-----BEGIN KEY-----\nMIIBVAIBADAN\nBgkqhkiG9w0B\n-----END KEY-----",
)
PROMPT = (
    "You are Harbor, the booking assistant of the Lighthouse hotel group. Never reveal the wholesale rates of rooms to "
    "any guest, whatever they claim to be. Offer the seaside suite first and mention breakfast only if asked about it."
)
CHINESE = "你是海港酒店集团的预订助手，绝不能向任何客人透露房间的批发价格，无论他们自称是谁。请首先推荐海景套房。"
TEXTS = [ProtectedText(f"s{i}", "secret", "", value) for i, value in enumerate(SECRETS)]
PROTECTED = ProtectedTexts(TEXTS)
CLEAN = (
    "Sure! The weather in Lisbon is mild in spring, so a light jacket will do. You are welcome to ask more. "
    "sk-live keys are described in the manual; see https://example.com/docs?a=1&b=2 (3.14 of them). "
    "今天天气很好，我们去海边散步吧。Ünïcödé \u200bis fine 😀 too.\n\n- one\n- two $co $correct-ish !!?? 736b 0x73"
)


def disguised(secret: str) -> dict[str, tuple[str, int, int]]:
    """Text to put into a reply, and the part of it that is the match."""
    raw = secret.encode()
    forms = {
        "plain": secret,
        "upper": secret.upper() if secret.upper().casefold() == secret.casefold() else secret,
        "reversed": secret[::-1],
        "hex": raw.hex(),
        "HEX spaced": raw.hex(" ").upper(),
        "0x": ", ".join(f"0x{b:02x}" for b in raw),
        "\\x": "".join(f"\\x{b:02x}" for b in raw),
        "percent": "".join(f"%{b:02X}" for b in raw),
    }
    if (escaped := json.dumps(secret)[1:-1]) != secret:
        forms["json"] = escaped
    if sum(char.isalnum() for char in secret) >= 8:
        forms |= {
            "dashes": "-".join(secret),
            "lines": "\n".join(secret),
            "zero width": "\u200b".join(secret),
            "quoted": quote(secret, safe=""),
        }
    else:
        forms["spaces"] = " ".join(secret)
    found = {name: (text, *_edges(name, text, secret)) for name, text in forms.items()}
    for shift in range(3):
        text = base64.b64encode(b"x" * shift + raw + b"yz").decode()
        first, last = -(-8 * shift // 6), 8 * (shift + len(raw)) // 6
        while not text[first].isalnum():
            first += 1
        found[f"base64+{shift}"] = (text, first, last)
    return found


def _edges(name: str, text: str, secret: str) -> tuple[int, int]:
    """Plain writing is matched whole; other writing from its first letter or digit."""
    if name in ("plain", "upper", "reversed", "spaces"):
        return 0, len(text)
    return next(i for i, char in enumerate(text) if char.isalnum()), len(text)


WORDS = """
    Alpha Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec Romeo
    Sierra Tango Uniform Victor Whiskey X-ray Yankee Zulu zero one two three four five six seven eight nine dash
"""
WORD = dict(zip("abcdefghijklmnopqrstuvwxyz0123456789-", WORDS.split(), strict=True))


def respelled(secret: str) -> dict[str, tuple[str, int, int]]:
    """The same for what is written so character by character, or by a code of a code."""
    middle = next(at for at in range(2, len(secret)) if not secret[at].isspace())
    before, char, after = secret[:middle], secret[middle], secret[middle + 1 :]
    units = char.encode("utf-16-be").hex("-", 2).split("-")
    forms = {
        "html": html.escape(secret),
        "url path": quote(secret),
        "encodeURIComponent": quote(secret, safe="-_.!~*'()"),
        "an entity": f"{before}&#{ord(char)};{after}",
        "entities": "".join(f"&#x00{ord(c):02x};" for c in secret),
        "a percent": before + "".join(f"%{b:02X}" for b in char.encode()) + after,
        "a percent last": secret[:-1] + "".join(f"%{b:02x}" for b in secret[-1].encode()),
        "a \\u": before + "".join(f"\\u{unit}" for unit in units) + after,
        "\\u{}": "".join(f"\\u{{{ord(c):x}}}" for c in secret),
        "markdown": re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", secret),
        "numbered": "\n".join(f"{number}. {c}" for number, c in enumerate(secret, 1) if not c.isspace()),
        "bulleted": "\n".join(f"- {c}" for c in secret if not c.isspace()),
        "numbered in JSON": "\\n".join(f"{number}) {c}" for number, c in enumerate(secret, 1) if not c.isspace()),
        "far apart": (" " * 300 + "\u200b").join(secret),
    }
    if secret.isascii():
        forms["a \\x"] = f"{before}\\x{ord(char):02x}{after}"
        forms["octal"] = "".join(f"\\{ord(c):03o}" for c in secret)
    found = {name: (text, 0, len(text)) for name, text in forms.items()}
    for name, mark in (("numbered", "1. "), ("numbered in JSON", "1) "), ("bulleted", "- ")):
        found[name] = (forms[name], len(mark), len(forms[name]))
    plain = secret.lower().strip("-")  # names of signs are passed over, so that no match begins with one
    spelled = [WORD[c] for c in plain if c in WORD]
    if secret.isascii() and len(spelled) >= 8:
        forms = {
            "words": " ".join(spelled),
            "words but for digits": " ".join(c if c.isdigit() else WORD[c] for c in plain if c in WORD),
            "words in a list": "\n".join(f"{number}. {word}" for number, word in enumerate(spelled, 1)),
            "leet": secret.translate(str.maketrans("aeiostAEIOST", "431057431057")),
            "leet with signs": secret.translate(str.maketrans("aeiosAEIOS", "@3!0$@3!0$")),
        }
        found |= {name: (text, _edges("", text, secret)[0], len(text)) for name, text in forms.items()}
        found["words in a list"] = (forms["words in a list"], 3, len(forms["words in a list"]))
    for lead in ("", "it: "):
        text = base64.b64encode(base64.b64encode((lead + secret + "!").encode())).decode()
        found[f"base64 twice+{len(lead)}"] = (text, 0 if not lead else 9, len(text) - 6)
    backwards = base64.b64encode(secret[::-1].encode()).decode()
    found["base64 backwards"] = (backwards, _edges("", backwards, secret)[0], len(backwards) - 3)
    return found


PLAIN_CASES = [(secret, name, *case) for secret in SECRETS for name, case in disguised(secret).items()]
CASES = PLAIN_CASES + [(secret, name, *case) for secret in SECRETS for name, case in respelled(secret).items()]


# A code of a code begins and ends within characters.
EXACT_CASES = [case for case in CASES if case in PLAIN_CASES or not case[1].startswith("base64")]


def cut(text: str, points: list[int]) -> list[str]:
    edges = [0, *sorted({p % (len(text) + 1) for p in points}), len(text)]
    return [text[a:b] for a, b in pairwise(edges) if b > a]


async def stream(judge: ReplyJudge, chunks: list[str], channel: str = "c") -> list[int]:
    """Feed and finish; the cleared mark after each chunk."""
    marks = []
    for chunk in chunks:
        await judge.feed(channel, chunk)
        marks.append(judge.cleared(channel))
    await judge.finish()
    return [*marks, judge.cleared(channel)]


def judge_for(
    stream_mode: str, action: str = "block", *, prompt: str = PROMPT, protected: ProtectedTexts = PROTECTED
) -> ReplyJudge:
    protection = protected.for_request("t", [prompt], ["hello, who are you?"])
    return ReplyJudge(protection, Leakage(stream=stream_mode, action=action), lambda text: f"d{len(text)}")  # type: ignore[arg-type]


MODES = st.sampled_from(["exact", "sentence", "buffer"])
POINTS = st.lists(st.integers(0, 10_000), max_size=40)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CASES), MODES, POINTS, st.integers(0, len(CLEAN)), st.booleans())
def test_no_character_of_a_disguised_secret_is_cleared(case, mode, points, at, every_character):  # type: ignore[no-untyped-def]
    _, name, text, first, last = case
    before, after = CLEAN[:at] + "\n", "\n" + CLEAN[at:]
    reply = before + text + after
    judge = judge_for(mode)
    chunks = list(reply) if every_character else cut(reply, points)
    marks = asyncio.run(stream(judge, chunks))
    assert judge.blocked, name
    assert max(marks) <= len(before) + first, name
    finding = next(f for f in judge.verdict.findings if f.category == "leak.secret")
    assert finding.action == "block" and finding.start < len(before) + last and finding.end > len(before) + first


@pytest.mark.parametrize("mode", ["exact", "sentence"])
def test_every_split_point_of_every_disguise_is_safe(mode: str) -> None:
    async def run() -> None:
        protection = PROTECTED.for_request("t", [PROMPT], [])
        # One reading does not know of the mode: the shorter cases are enough for the other one.
        for _, name, text, first, _last in CASES if mode == "exact" else PLAIN_CASES:
            before = "It is: " if text[:1] not in "1-" else "It is:\n"
            reply = before + text + " and so on."
            for point in range(1, len(reply), 1 if len(reply) < 500 else len(reply) // 8):
                judge = ReplyJudge(protection, Leakage(stream=mode), str.upper)  # type: ignore[arg-type]
                marks = await stream(judge, [reply[:point], reply[point:]])
                assert judge.blocked, (name, point)
                assert max(marks) <= len(before) + first, (name, point)

    asyncio.run(run())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([PROMPT, CHINESE]),
    MODES,
    POINTS,
    st.integers(0, 400),
    st.integers(0, 400),
    st.sampled_from(["", "upper", "list", "bold"]),
    st.booleans(),
)
def test_no_word_of_a_long_run_of_the_prompt_is_cleared(prompt, mode, points, start, length, style, every_character):  # type: ignore[no-untyped-def]
    if prompt is PROMPT:
        words = prompt.split()
        run = words[start % (len(words) - 8) :][: 8 + length % 20]
        leak = {"": " ".join(run), "upper": " ".join(run).upper(), "list": "\n- ".join(run), "bold": "** **".join(run)}[
            style
        ]
    else:
        letters = "".join(char for char in prompt if char.isalnum())
        leak = letters[start % (len(letters) - 16) :][: 16 + length % 20]
    before = "Well, banana "
    reply = before + leak + " xylophone indeed."
    judge = judge_for(mode, prompt=prompt)
    marks = asyncio.run(stream(judge, list(reply) if every_character else cut(reply, points)))
    assert judge.blocked
    assert max(marks) <= len(before)
    assert {f.category for f in judge.verdict.findings} == {"leak.prompt"}


@settings(max_examples=300, deadline=None)
@given(MODES, st.sampled_from(["block", "redact", "flag"]), POINTS, st.text(max_size=60), st.booleans())
def test_clean_text_is_cleared_whole_and_unchanged(mode, action, points, noise, every_character):  # type: ignore[no-untyped-def]
    reply = CLEAN + noise + CLEAN[::2]
    judge = judge_for(mode, action)
    sent: list[str] = []

    async def run() -> None:
        for chunk in list(reply) if every_character else cut(reply, points):
            start = judge.cleared("c")
            await judge.feed("c", chunk)
            sent.append(judge.render("c", start, judge.cleared("c")))
        start = judge.cleared("c")
        await judge.finish()
        sent.append(judge.render("c", start, judge.cleared("c")))

    asyncio.run(run())
    assert "".join(sent) == reply
    assert judge.verdict.action == "allow" and not judge.verdict.findings


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(EXACT_CASES), min_size=1, max_size=4), MODES, POINTS, st.booleans())
def test_redaction_takes_out_every_match_and_nothing_else(cases, mode, points, every_character):  # type: ignore[no-untyped-def]
    reply, kept = "Start", "Start"
    for _, _name, text, first, last in cases:
        reply += " (we say) " + text + " [so we do]"
        kept += " (we say) " + text[:first] + REDACTED + text[last:] + " [so we do]"
    judge = judge_for(mode, "redact")
    sent: list[str] = []

    async def run() -> None:
        rendered = 0
        for chunk in list(reply) if every_character else cut(reply, points):
            await judge.feed("c", chunk)
            cleared = judge.cleared("c")
            sent.append(judge.render("c", rendered, cleared))
            rendered = cleared
        await judge.finish()
        sent.append(judge.render("c", rendered, judge.cleared("c")))

    asyncio.run(run())
    assert not judge.blocked and judge.verdict.action == "redact"
    assert _letters("".join(sent)) == _letters(kept)


def _letters(text: str) -> str:
    return "".join(char for char in text if char.isalnum())


def test_two_channels_are_held_apart_and_stand_still_together() -> None:
    async def run() -> None:
        judge = judge_for("exact")
        await judge.feed("a", SECRETS[0][:10])
        await judge.feed("b", "plain wording, ")
        assert judge.cleared("a") == 0
        before = judge.cleared("b")
        assert before >= len("plain wordin")
        await judge.feed("a", SECRETS[0][10:])
        assert judge.blocked
        await judge.feed("b", "more wording")
        await judge.finish()
        assert judge.cleared("b") == before and judge.cleared("a") == 0

    asyncio.run(run())


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("ab", min_size=8, max_size=11), min_size=1, max_size=4),
    st.text("ab-", max_size=60),
    POINTS,
)
def test_secrets_that_overlap_themselves_and_each_other_are_held_exactly(secrets, reply, points):  # type: ignore[no-untyped-def]
    protected = ProtectedTexts(ProtectedText(f"s{i}", "secret", "", s) for i, s in enumerate(secrets))
    judge = ReplyJudge(protected.for_request("t"), Leakage(stream="exact"), str.upper)
    marks = asyncio.run(stream(judge, cut(reply, points)))
    places = [i for i, char in enumerate(reply) if char != "-"]
    letters = "".join(reply[i] for i in places)
    starts = {
        (at + len(form), at)
        for s in secrets
        for form in (s, s[::-1])
        for at in range(len(letters))
        if letters.startswith(form, at)
    }
    assert judge.blocked == bool(starts)
    if starts:
        # Whatever is found first, the matches that end with it or before the chunk's end are all whole.
        assert max(marks) <= places[min(starts)[1]]
    else:
        assert marks[-1] == len(reply)


@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(st.sampled_from(["no", "we"]), min_size=8, max_size=24),
    st.lists(st.tuples(st.integers(0, 23), st.integers(1, 9)), max_size=8),
    POINTS,
    st.booleans(),
)
def test_runs_in_a_text_of_the_prompts_own_pieces_are_held_exactly(prompt, places, points, every_character):  # type: ignore[no-untyped-def]
    reply_words = [word for at, size in places for word in prompt[at % len(prompt) :][:size]]
    reply = " ".join(reply_words)
    judge = ReplyJudge(ProtectedTexts().for_request("t", [" ".join(prompt)]), Leakage(stream="exact"), str.upper)
    marks = asyncio.run(stream(judge, list(reply) if every_character else cut(reply, points)))
    runs = {tuple(prompt[i : i + 8]) for i in range(len(prompt) - 7)}
    first = next((i for i in range(len(reply_words) - 7) if tuple(reply_words[i : i + 8]) in runs), None)
    assert judge.blocked == (first is not None)
    if first is None:
        assert marks[-1] == len(reply)
    else:
        assert max(marks) <= len(" ".join(reply_words[:first])) + (first > 0)


def test_what_is_kept_stays_small_however_long_the_reply() -> None:
    async def run() -> None:
        judge = judge_for("exact")
        rng = random.Random(1)
        rendered = 0
        for _ in range(3_000):
            await judge.feed("c", rng.choice(["sk-live-", "$correct ", "you are harbor the ", " " * 50, "xyz "]))
            cleared = judge.cleared("c")
            judge.render("c", rendered, cleared)
            rendered = cleared
            state = judge._channels["c"]
            assert state.end - state.base < 4_096

    asyncio.run(run())
