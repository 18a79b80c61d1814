"""What counts as a credential, what does not, and that detect-secrets sees the same where it knows the format."""

from __future__ import annotations

import importlib
import random

import pytest

from benchmarks.credential_cases import base62_crc, harmless, jwt, private_key, samples, token
from service.firewall import credential_checks as checks
from service.firewall.credential_formats import FORMATS
from service.firewall.credentials import CredentialScanner, Sight, may_hold
from service.firewall.protected import ProtectedTexts
from service.firewall.stream import ReplyJudge
from service.settings import Leakage

SAMPLES = list(samples(random.Random(7)))
# (plugin of detect-secrets, its class, format here)
SHARED = [
    ("aws", "AWSKeyDetector", "aws access key id"),
    ("github_token", "GitHubTokenDetector", "github token"),
    ("gitlab_token", "GitLabTokenDetector", "gitlab token"),
    ("jwt", "JwtTokenDetector", "json web token"),
    ("private_key", "PrivateKeyDetector", "private key"),
    ("pypi_token", "PypiTokenDetector", "pypi token"),
    ("sendgrid", "SendGridDetector", "sendgrid key"),
    ("slack", "SlackDetector", "slack token"),
    ("square_oauth", "SquareOAuthDetector", "square token"),
    ("stripe", "StripeDetector", "stripe key"),
    ("telegram_token", "TelegramBotTokenDetector", "telegram bot token"),
    ("twilio", "TwilioKeyDetector", "twilio api key"),
    ("discord", "DiscordBotTokenDetector", "discord bot token"),
    ("basic_auth", "BasicAuthDetector", "address with password"),
    ("openai", "OpenAIDetector", "openai legacy key"),
    ("npm", "NpmDetector", "npmrc"),
]


def scan(text: str) -> list[Sight]:
    scanner = CredentialScanner()
    return scanner.feed(text, 0) + scanner.finish()


def test_more_than_sixty_formats_are_known() -> None:
    assert len({form.name for form in FORMATS}) >= 90


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(SAMPLES)])
def test_a_credential_of_every_format_is_found_whole_and_nothing_before_it(sample: tuple[str, str, str, str]) -> None:
    _, before, credential, behind = sample
    found = scan(before + credential + behind)
    assert min(sight.start for sight in found) == len(before)
    assert max(sight.end for sight in found) == len(before) + len(credential)
    assert may_hold(before + credential + behind)


@pytest.mark.parametrize(("kind", "text"), list(harmless(random.Random(3))))
def test_what_only_looks_like_a_credential_is_none(kind: str, text: str) -> None:
    assert scan(text) == []


def _shared(name: str, rng: random.Random) -> str:
    if name == "openai legacy key":
        letters = "".join(rng.choices("abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=40))
        return f"sk-{letters[:20]}T3BlbkFJ{letters[20:]}"
    if name == "npmrc":
        body = "".join(rng.choices("0123456789abcdef", k=30))
        return f"//registry.npmjs.org/:_authToken=npm_{body}{base62_crc(body)}"
    if name == "pypi token":
        return "pypi-AgEIcHlwaS5vcmc" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789_-", k=90))
    if name == "gitlab token":
        return "glpat-" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=20))
    if name == "slack token":
        last = "".join(rng.choices("abcdefghijkXYZ0123456789", k=24))
        return f"xoxb-482913847561-938475612034-{last}"
    if name == "stripe key":
        return "sk_live_" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=24))
    if name == "square token":
        return "sq0csp-" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=43))
    if name == "sendgrid key":
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789", k=65))
        return f"SG.{letters[:22]}.{letters[22:]}"
    return next(f"{before}{credential}{behind}" for known, before, credential, behind in samples(rng) if known == name)


@pytest.mark.parametrize(("module", "plugin", "name"), SHARED)
def test_what_detect_secrets_finds_is_found_here_too(module: str, plugin: str, name: str) -> None:
    detector = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), plugin)()
    rng = random.Random(name)
    for _ in range(20):
        text = _shared(name, rng)
        theirs = {secret for line in text.splitlines() for secret in detector.analyze_string(line)}
        assert theirs, text
        assert scan(text), text


def test_the_checksums_hold_for_right_tokens_and_fail_for_changed_ones() -> None:
    rng = random.Random(5)
    for form in FORMATS:
        if form.check in (checks.crc_base62, checks.grafana):
            right = token(form, rng)
            wrong = right[:10] + ("a" if right[10] != "a" else "b") + right[11:]
            assert form.check is not None and form.check(right) and not form.check(wrong)
            assert [sight.score for sight in scan(right)] == [1.0]
            assert [sight.score for sight in scan(wrong)] == [0.6]
    # The example of BIP 173, and the master key of BIP 32's first test vector.
    assert checks.bech32("A12UEL5L") and not checks.bech32("A12UEL5M")
    xprv = "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33"
    xprv += "yuGBxrMPHi"
    assert checks.base58check(xprv) and not checks.base58check(xprv[:-1] + "j")
    assert [sight.name for sight in scan(xprv)] == ["bip32 private key"] and not scan(xprv[:-1] + "j")


def test_letters_written_behind_a_token_do_not_hide_it() -> None:
    right = token(next(form for form in FORMATS if form.name == "github token"), random.Random(1))
    assert [sight.score for sight in scan(right + "xyz")] == [1.0]


async def _judged(text: str, user: str = "", **settings: object) -> tuple[str, ReplyJudge]:
    judge = ReplyJudge(ProtectedTexts().for_request("t", [], [user]), Leakage(stream="exact", **settings), str.upper)  # type: ignore[arg-type]
    await judge.feed("c", text)
    await judge.finish()
    return judge.render("c", 0, judge.cleared("c")), judge


KEY = jwt(random.Random(2))


async def test_a_credential_is_redacted_by_default_and_the_words_around_it_stay() -> None:
    sent, judge = await _judged(f"Use {KEY} for it.")
    assert sent == "Use [redacted] for it."
    (finding,) = judge.verdict.findings
    assert (finding.category, finding.action, finding.start, finding.end) == (
        "leak.credential",
        "redact",
        4,
        4 + len(KEY),
    )


@pytest.mark.parametrize(("action", "kept"), [("block", False), ("flag", True), ("allow", True)])
async def test_credentials_have_an_action_of_their_own(action: str, kept: bool) -> None:
    sent, judge = await _judged(f"Use {KEY} for it.", credentials=action)
    assert (KEY in sent) == kept and judge.verdict.action == action


async def test_a_credential_that_the_caller_typed_is_no_leak() -> None:
    sent, judge = await _judged(f"Your key {KEY} has expired.", user=f"what is wrong with {KEY} please")
    assert KEY in sent and not judge.verdict.findings


async def test_a_private_key_is_taken_out_to_its_end_and_what_follows_stays() -> None:
    key = private_key(random.Random(4))
    sent, _ = await _judged(f"Here:\n{key}\nKeep it safe.")
    assert sent == "Here:\n[redacted]\nKeep it safe."


async def test_a_value_that_is_complete_in_itself_is_looked_at_for_credentials() -> None:
    judge = ReplyJudge(ProtectedTexts().for_request("t"), Leakage(), str.upper)
    short = "sk_live_" + "4eC39HqLyjWDar7tKzQ2xYpN"
    assert short not in await judge.whole("headers/x-note", short)
    assert await judge.whole("id", "chatcmpl-9fQk2mZx81LpVt0aYw73RbNcd2") == "chatcmpl-9fQk2mZx81LpVt0aYw73RbNcd2"


@pytest.mark.parametrize("end_of_line", ["\\n", "\\\\n", "\n", '",\n   "'])
async def test_a_private_key_without_its_end_leaves_what_holds_the_text_around_it_together(end_of_line: str) -> None:
    """Behind the last line may stand the quote that closes the string, and the next member of a call's arguments."""
    key = end_of_line.join(private_key(random.Random(4)).split("\n")[:-1])
    for behind in (f'{end_of_line}","host":"db1"}}', '","x-host":"db1"}', '"}', f'{end_of_line}"]', " " * 40):
        text = f'{{"key":"{key}{behind}'
        sent, _ = await _judged(text)
        assert sent == f'{{"key":"[redacted]{behind}', "and the last line does not stay"
        judge = ReplyJudge(ProtectedTexts().for_request("t"), Leakage(stream="exact"), str.upper)
        said, at = "", 0
        for start in range(0, len(text), 5):
            await judge.feed("c", text[start : start + 5])
            said, at = said + judge.render("c", at, judge.cleared("c")), judge.cleared("c")
        await judge.finish()
        assert said + judge.render("c", at, judge.cleared("c")) == sent
