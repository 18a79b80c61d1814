"""Personal data in requests: what is found where, what the provider is sent in its place, what is left as it is."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.api.chat import parse_request as parse_chat
from service.api.messages import parse_request as parse_messages
from service.api.personal_data import PersonalData
from service.errors import ConfigError, PayloadTooLarge
from service.firewall.placeholders import Restored
from service.interfaces import Call, Hidden
from service.settings import Pii, Server, Settings, check
from tests.plain_recogniser import plain

ANN = "ann.lee@example.com"
CARD = "4111 1111 1111 1111"


def keyed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16, key=b"k").hexdigest()


async def hidden(
    body: bytes | dict[str, Any],
    settings: Pii | None = None,
    parse: Callable[[bytes, Server], Call] = parse_chat,
    tenant: str = "one",
) -> Hidden:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def read(changed: bytes) -> Call:
        return parse(changed, Server())

    guard = PersonalData(settings or Pii(enabled=True), plain, tag=keyed, digest=keyed)
    return await guard.hide(parse(raw, Server()), tenant, read)


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}, *more.pop("messages", [])], **more}


def sent(found: Hidden) -> Any:
    return json.loads(found.call.body)


async def test_a_datum_is_replaced_in_the_body_and_in_what_is_judged_and_every_other_byte_stays() -> None:
    body = b'{ "model":"m",\n "messages":[{"role":"user",'
    body += b' "content":"Caf\\u00e9 \\ud83d\\ude00 \\/ ann.lee@example.com!"} ] }'
    found = await hidden(body)
    placeholder = next(iter(found.values))
    assert found.call.body == body.replace(ANN.encode(), placeholder.encode())
    assert found.call.prompt.segments[0].text == f"Café 😀 / {placeholder}!"
    assert found.values == {placeholder: ANN}
    assert found.call.user_texts == (f"Café 😀 / {ANN}!",)  # the caller's own words, that his reply is judged by


async def test_a_body_with_nothing_in_it_is_the_very_same() -> None:
    body = b'{"model":"m", "messages":[{"role":"user","content":"caf\\u00e9 at 10"}]}'
    found = await hidden(body)
    assert found.call.body == body
    assert not found.findings
    assert not found.values


async def test_a_value_has_one_placeholder_wherever_it_stands_and_another_for_another_tenant() -> None:
    asked = {"role": "assistant", "tool_calls": [{"id": "c1"}]}
    result = {"role": "tool", "tool_call_id": "c1", "content": f"{ANN} again"}
    body = chat(f"{ANN} and {CARD}", messages=[asked, result])
    one, again, other = await hidden(body), await hidden(body), await hidden(body, tenant="two")
    assert len(one.values) == 2
    assert one.call.body == again.call.body
    assert not one.values.keys() & other.values.keys()
    mail = next(name for name, value in one.values.items() if value == ANN)
    assert one.call.body.count(mail.encode()) == 2
    assert mail.startswith("<EMAIL_ADDRESS_")


async def test_arguments_of_calls_stay_json_and_escapes_in_them_stay_whole() -> None:
    arguments = '{"note": "first\\nann.lee@example.com", "to": "ann.lee\\u0040example.com", "card": 4111111111111111}'
    call = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": arguments}}
    body = chat("go", messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    found = await hidden(body)
    text = sent(found)["messages"][1]["tool_calls"][0]["function"]["arguments"]
    mail, card = (next(n for n, v in found.values.items() if v == value) for value in (ANN, "4111111111111111"))
    assert json.loads(text) == {"note": f"first\n{mail}", "to": mail, "card": card}


async def test_input_of_tools_and_names_of_members_are_read_as_well_and_settings_are_not() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "mail", "input": {ANN: 1, "card": 4111111111111111}}
    body = {
        "model": "claude-1",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": f"Hi, {ANN}"}, {"role": "assistant", "content": [use]}],
        "tools": [{"name": "mail", "input_schema": {"type": "object", "maximum": 4111111111111111}}],
    }
    found = await hidden(body, parse=parse_messages)
    out = sent(found)
    assert ANN not in found.call.body.decode()
    assert list(out["messages"][1]["content"][0]["input"]) == [
        next(n for n, v in found.values.items() if v == ANN),
        "card",
    ]
    assert str(out["messages"][1]["content"][0]["input"]["card"]).startswith("<CREDIT_CARD_")
    assert out["tools"][0]["input_schema"]["maximum"] == 4111111111111111


async def test_roles_that_are_not_named_are_left_alone() -> None:
    body = {"model": "m", "messages": [{"role": "system", "content": ANN}, {"role": "user", "content": "hi"}]}
    assert not (await hidden(body)).findings
    assert (await hidden(body, Pii(enabled=True, roles=("system",)))).findings


async def test_a_finding_says_where_and_what_kind_and_never_what() -> None:
    found = await hidden(chat(f"Write to {ANN}.", user=ANN))
    first = found.findings[0]
    assert (first.category, first.action, first.detail) == ("pii", "redact", "EMAIL_ADDRESS")
    assert (first.pointer, first.start, first.end) == ("/messages/0/content", 9, 9 + len(ANN))
    assert first.digest == keyed(ANN)
    assert ANN not in repr(found.findings)


@pytest.mark.parametrize("action", ["flag", "block"])
async def test_what_is_not_to_be_redacted_is_told_and_the_body_left(action: Any) -> None:
    body = json.dumps(chat(ANN)).encode()
    found = await hidden(body, Pii(enabled=True, action=action))
    assert [finding.action for finding in found.findings] == [action]
    assert found.call.body == body
    assert not found.values


PACKED = base64.b64encode(f"Our customer {ANN} wrote to us in March about her order.".encode()).decode()


@pytest.mark.parametrize(
    "address", [f"data:text/plain;base64,{PACKED}", "data:text/plain,Ask%20ann.lee%40example.com", PACKED]
)
async def test_data_in_a_file_that_cannot_be_changed_are_blocked(address: str) -> None:
    found = await hidden(chat([{"type": "file", "file": {"filename": "a.txt", "file_data": address}}]))
    assert [(f.action, f.detail) for f in found.findings] == [("block", "EMAIL_ADDRESS, in a file")]


async def test_a_text_that_only_begins_as_an_address_is_read_as_a_text() -> None:
    found = await hidden(chat(f"data:text/plain;base64,{ANN}"))
    assert ANN not in found.call.body.decode()
    assert [finding.action for finding in found.findings] == ["redact"]


async def test_more_text_than_may_be_looked_at_is_refused_or_said_to_be_unjudged() -> None:
    body = chat("word " * 100)
    with pytest.raises(PayloadTooLarge, match="personal data"):
        await hidden(body, Pii(enabled=True, max_chars=50))
    assert (await hidden(body, Pii(enabled=True, max_chars=50, action="flag"))).unjudged == ("pii",)


def test_a_configuration_that_asks_for_it_without_the_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.find_spec", lambda name: None)
    check(Settings())
    with pytest.raises(ConfigError, match=r"pii\.enabled: needs the extra"):
        check(Settings(pii=Pii(enabled=True)))


async def test_without_restoring_nothing_is_kept_of_what_was_replaced() -> None:
    found = await hidden(chat(ANN), Pii(enabled=True, restore=False))
    assert ANN not in found.call.body.decode()
    assert not found.values


async def test_a_placeholder_is_found_in_both_its_spellings_and_no_other_is() -> None:
    restored = Restored({"<CREDIT_CARD_ABCDEFG>": CARD})
    assert restored.whole("a <CREDIT_CARD_ABCDEFG>, \\u003cCREDIT_CARD_ABCDEFG\\u003e") == f"a {CARD}, {CARD}"
    assert restored.whole("<CREDIT_CARD_GFEDCBA>") == "<CREDIT_CARD_GFEDCBA>"
    assert restored.whole("\\\\u003cCREDIT_CARD_ABCDEFG\\u003e") == "\\\\u003cCREDIT_CARD_ABCDEFG\\u003e"
