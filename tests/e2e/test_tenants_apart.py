"""Two tenants share one account at a provider: neither meets the other's names, files, containers or models there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import service.app
from service import settings as config
from service.records.place import database_place
from service.records.store import Store
from service.tenancy.keys import Keys, load_root
from tests.servers import running

CHAT, MESSAGES, RESPONSES = "chat/completions", "messages", "responses"
ASKED = '[{"role": "user", "content": "Caf\\u00e9 \\/ now?"}]'
FRESH = count(1)


class Provider:
    """Keeps what it was asked and answers with `answer`: a whole reply, or the events of a stream."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.answer: dict[str, Any] | list[dict[str, Any]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind.endswith("shutdown"):
                return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        answer = self.answer
        kind, out = "application/json", json.dumps(answer).encode()
        if isinstance(answer, list):
            kind, out = "text/event-stream", b"".join(map(event, answer))
            out += b"data: [DONE]\n\n" if "chat" in scope["path"] else b""
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]},
        )
        await send({"type": "http.response.body", "body": out})


def event(document: dict[str, Any]) -> bytes:
    name = f"event: {document['type']}\n" if "type" in document else ""
    return f"{name}data: {json.dumps(document)}\n\n".encode()


PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]},
    MESSAGES: {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]},
    RESPONSES: {"id": "resp_plain", "object": "response", "status": "completed", "output": []},
}
MODELS = {CHAT: "gpt-a", MESSAGES: "claude-a", RESPONSES: "gpt-a"}


class Service:
    """The whole service in front of the provider, and a key for each of two tenants."""

    def __init__(self, folder: Path, provider: Provider) -> None:
        self.settings = config.load(folder / "firewall.toml")
        self.provider = provider
        self.url = ""
        self.acme, self.other = (self.key("acme"), self.key("other"))

    def key(self, tenant: str, **terms: Any) -> str:
        async def make() -> str:
            store = Store(database_place(self.settings))
            await store.open()
            try:
                return (await Keys(store, load_root(self.settings.folder)).create(tenant, **terms)).key
            finally:
                await store.close()

        return asyncio.run(make())

    def send(self, key: str, path: str, body: bytes | None) -> tuple[int, str]:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.url}/v1/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, key: str, path: str, answer: Any = None, **fields: Any) -> tuple[int, str]:
        """Ask for `answer`; `fields` come beside a question, or in its place."""
        self.provider.answer = answer or PLAIN[path]
        asked: dict[str, Any] = {"input" if path == RESPONSES else "messages": json.loads(ASKED)}
        if path == MESSAGES:
            asked["max_tokens"] = 100
        if isinstance(answer, list):
            asked["stream"] = True
        return self.send(key, path, json.dumps({"model": MODELS[path], **asked, **fields}).encode())

    def last_row(self) -> tuple[str, str]:
        """Action and category of the last call."""
        with sqlite3.connect(self.settings.folder / "a.db") as database:
            row = database.execute("SELECT action, category FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        return row[0], row[1]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a service with more lines of configuration."""
    with ExitStack() as stack:

        def start(more: str = "", mode: str = "keys") -> Service:
            provider = Provider()
            address = stack.enter_context(running(provider))
            folder = tmp_path_factory.mktemp("service")
            toml = f'[auth]\nmode = "{mode}"\n[detection]\nenabled = false\n[leakage]\nstream = "exact"\n'
            toml += f'[storage]\nurl = "sqlite:///a.db"\n{more}\n'
            for name, kind, glob, base, lines in (
                ("a", "openai", "gpt-*", "/v1", ""),
                ("b", "anthropic", "claude-*", "", ""),
                ("c", "openai", "told-*", "/v1", "pseudonym = true"),
            ):
                toml += f'[[providers]]\nname = "{name}"\nkind = "{kind}"\nmodels = ["{glob}"]\n'
                toml += f'base_url = "{address}{base}"\n{lines}\n'
            (folder / "firewall.toml").write_text(toml, encoding="utf-8")
            made = Service(folder, provider)
            made.url = stack.enter_context(running(service.app.create_app(made.settings)))
            return made

        yield start


@pytest.fixture(scope="module")
def firewall(begin: Any) -> Service:
    made: Service = begin()
    return made


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "member"),
    [
        *((path, f' "{name}" :  %s,') for path in (CHAT, RESPONSES) for name in ("user", "safety_identifier")),
        *((path, '"prompt_cache_key":%s,') for path in (CHAT, RESPONSES)),
        (MESSAGES, '"metadata" : {"a": {"user_id": "%%"}, "user_id": %s , "b":[1]},'),
        ("embeddings", '"user":%s,'),
        ("completions", '"user":%s,'),
    ],
)
def test_a_name_of_the_caller_s_reaches_the_provider_as_a_pseudonym_and_no_other_byte_changes(
    firewall: Service, path: str, member: str
) -> None:
    model = MODELS.get(path, "gpt-a")
    given = {MESSAGES: f'"max_tokens": 9, "messages": {ASKED}', CHAT: f'"messages": {ASKED}'}
    text = f'"input": {ASKED}' if path == RESPONSES else '"input": "é", "prompt": "\\u00e9"'
    body = "{ " + member.replace("%%", "ann-7") + f' "model":"{model}",\n {given.get(path, text)} }}'
    if path in {"embeddings", "completions"}:
        body = body.replace('"prompt": ' if path == "embeddings" else '"input": ', '"x": ')
    firewall.provider.answer = PLAIN.get(path, PLAIN[CHAT])
    if path == "embeddings":
        firewall.provider.answer = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1]}]}
    raw, names = "ann-7 at Café / 1 \U0001f600", []
    begun = len(firewall.provider.bodies)
    for key in (firewall.acme, firewall.acme, firewall.other):
        status, answer = firewall.send(key, path, (body % json.dumps(raw)).encode())
        assert status == 200, answer
        sent = firewall.provider.bodies[-1].decode()
        before, _, after = body.partition("%s")
        assert sent.startswith(before) and sent.endswith(after)
        names.append(json.loads(sent[len(before) : len(sent) - len(after)]))
    assert len(firewall.provider.bodies) == begun + 3
    assert names[0] == names[1] != names[2]
    assert all(name.isascii() and name.isprintable() and 16 <= len(name) <= 64 for name in names)
    assert not any(secret in name for name in names for secret in ("ann", "Caf", firewall.acme, "acme"))


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_body_without_names_passes_byte_for_byte(firewall: Service, path: str) -> None:
    texts = f'"max_tokens": 9, "messages": {ASKED}' if path == MESSAGES else f'"messages": {ASKED}'
    texts = f'"input": {ASKED}' if path == RESPONSES else texts
    body = f'{{ "metadata" : {{"user":"ann"}},\n"model":"{MODELS[path]}", {texts}}}'.encode()
    firewall.provider.answer = PLAIN[path]
    assert firewall.send(firewall.acme, path, body)[0] == 200
    assert firewall.provider.bodies[-1] == body


def test_a_provider_is_told_a_tenant_s_pseudonym_only_where_that_is_configured(firewall: Service) -> None:
    users = []
    for key, fields in ((firewall.acme, {}), (firewall.acme, {"user": ""}), (firewall.other, {})):
        for path in (CHAT, RESPONSES):
            assert firewall.ask(key, path, model="told-a", **fields)[0] == 200
            users.append(json.loads(firewall.provider.bodies[-1])["user"])
    assert len(set(users[:4])) == 1 == len(set(users[4:])) and users[0] != users[4]
    assert firewall.ask(firewall.acme, CHAT, model="told-a", safety_identifier="ann")[0] == 200
    sent = json.loads(firewall.provider.bodies[-1])
    assert "user" not in sent and sent["safety_identifier"] not in {"ann", users[0]}
    assert firewall.ask(firewall.acme, CHAT)[0] == 200
    assert "user" not in json.loads(firewall.provider.bodies[-1])


# -- ids --------------------------------------------------------------------------------------------------------------


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


REFERRED: list[tuple[str, str, Any]] = [
    (
        CHAT,
        "/messages/0/content/0/file/file_id",
        lambda i: {"messages": user({"type": "file", "file": {"file_id": i}})},
    ),
    (
        CHAT,
        "/messages/0/audio/id",
        lambda i: {"messages": [{"role": "assistant", "audio": {"id": i}}, *json.loads(ASKED)]},
    ),
    (CHAT, "/tools/0/vector_store_ids/0", lambda i: {"tools": [{"type": "file_search", "vector_store_ids": [i]}]}),
    (
        CHAT,
        "/tool_resources/code_interpreter/file_ids/0",
        lambda i: {"tool_resources": {"code_interpreter": {"file_ids": [i]}}},
    ),
    (MESSAGES, "/container", lambda i: {"container": i}),
    (MESSAGES, "/container/id", lambda i: {"container": {"id": i}}),
    (
        MESSAGES,
        "/messages/0/content/0/source/file_id",
        lambda i: {"messages": user({"type": "document", "source": {"type": "file", "file_id": i}})},
    ),
    (
        MESSAGES,
        "/messages/0/content/0/source/file_id",
        lambda i: {"messages": user({"type": "image", "source": {"type": "file", "file_id": i}})},
    ),
    (
        MESSAGES,
        "/messages/0/content/0/file_id",
        lambda i: {"messages": user({"type": "container_upload", "file_id": i})},
    ),
    (RESPONSES, "/input/0/content/0/file_id", lambda i: {"input": user({"type": "input_file", "file_id": i})}),
    (RESPONSES, "/input/0/content/0/file_id", lambda i: {"input": user({"type": "input_image", "file_id": i})}),
    (
        RESPONSES,
        "/input/0/output/0/file_id",
        lambda i: {
            "input": [
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_id": i}]}
            ]
        },
    ),
    (RESPONSES, "/tools/0/vector_store_ids/0", lambda i: {"tools": [{"type": "file_search", "vector_store_ids": [i]}]}),
    (RESPONSES, "/tools/0/container", lambda i: {"tools": [{"type": "code_interpreter", "container": i}]}),
    (
        RESPONSES,
        "/tools/0/container/file_ids/0",
        lambda i: {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [i]}}]},
    ),
    (
        RESPONSES,
        "/tools/0/input_image_mask/file_id",
        lambda i: {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": i}}]},
    ),
    (
        RESPONSES,
        "/input/0/tools/0/vector_store_ids/0",
        lambda i: {
            "input": [{"type": "additional_tools", "tools": [{"type": "file_search", "vector_store_ids": [i]}]}]
        },
    ),
]


@pytest.mark.parametrize(("path", "pointer", "fields"), REFERRED)
def test_an_id_that_no_reply_issued_to_the_tenant_is_not_found_and_reaches_nobody(
    firewall: Service, path: str, pointer: str, fields: Any
) -> None:
    begun = len(firewall.provider.bodies)
    status, answer = firewall.ask(firewall.acme, path, **fields("file-of-nobody"))
    assert status == 404
    error = json.loads(answer)["error"]
    assert pointer == error["param"] if path != MESSAGES else error["message"].startswith(f"{pointer}: ")
    assert len(firewall.provider.bodies) == begun


def cited(name: str) -> dict[str, Any]:
    return {"type": "container_file_citation", "container_id": f"cntr_{name}", "file_id": f"cfile_{name}"}


def made_file(name: str) -> dict[str, Any]:
    made = {"type": "bash_code_execution_output", "file_id": f"file_{name}"}
    result = {"type": "bash_code_execution_result", "content": [made]}
    return {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": result}


def whole(path: str, name: str) -> dict[str, Any]:
    """A reply that issues ids."""
    if path == CHAT:
        said = {"role": "assistant", "content": None, "audio": {"id": f"audio_{name}", "transcript": "hi"}}
        return {"id": "c", "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
    if path == MESSAGES:
        return {**PLAIN[MESSAGES], "container": {"id": f"container_{name}"}, "content": [made_file(name)]}
    text = {"type": "output_text", "text": "hi", "annotations": [cited(name)]}
    found = {"type": "code_interpreter_call", "id": f"ci_{name}", "container_id": f"cntr_{name}", "code": "1"}
    output = [{"type": "message", "id": f"msg_{name}", "role": "assistant", "content": [text]}, found]
    return {**PLAIN[RESPONSES], "id": f"resp_{name}", "output": output}


def streamed(path: str, name: str) -> list[dict[str, Any]]:
    """The same as events."""
    if path == CHAT:
        choice = {"index": 0, "delta": {"audio": {"id": f"audio_{name}", "transcript": "hi"}}, "finish_reason": None}
        return [{"choices": [choice]}, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    if path == MESSAGES:
        return [
            {"type": "message_start", "message": {**PLAIN[MESSAGES], "content": []}},
            {"type": "content_block_start", "index": 0, "content_block": made_file(name)},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "container": {"id": f"container_{name}"}},
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
            {"type": "message_stop"},
        ]
    reply = whole(path, name)
    kind = "response.output_text.annotation.added"
    added = {"type": kind, "output_index": 0, "content_index": 0, "annotation_index": 0, "annotation": cited(name)}
    found = {"type": "response.output_item.done", "output_index": 1, "item": reply["output"][1]}
    return [added, found, {"type": "response.completed", "response": {**reply, "output": []}}]


ISSUED: list[tuple[str, str, Any]] = [
    (CHAT, "audio_", REFERRED[1][2]),
    (MESSAGES, "container_", REFERRED[4][2]),
    (MESSAGES, "file_", REFERRED[6][2]),
    (RESPONSES, "cntr_", REFERRED[13][2]),
    (RESPONSES, "cfile_", REFERRED[9][2]),
]


@pytest.mark.parametrize("form", [whole, streamed])
@pytest.mark.parametrize(("path", "prefix", "fields"), ISSUED)
def test_an_id_that_a_reply_issued_works_for_its_tenant_and_for_no_other(
    firewall: Service, path: str, prefix: str, fields: Any, form: Any
) -> None:
    name = f"n{next(FRESH)}"
    status, answer = firewall.ask(firewall.acme, path, form(path, name))
    assert status == 200 and prefix + name in answer
    referring = fields(prefix + name)
    assert firewall.ask(firewall.other, path, **referring)[0] == 404
    assert firewall.ask(firewall.acme, path, **referring)[0] == 200
    assert firewall.provider.bodies[-1].decode().count(prefix + name) == 1


@pytest.mark.parametrize(("policy", "told"), [("flag", ("flag", "foreign_id")), ("allow", ("allow", ""))])
def test_a_file_of_nobody_s_may_pass_where_that_is_configured_and_another_tenant_s_never(
    begin: Any, policy: str, told: tuple[str, str]
) -> None:
    made: Service = begin(f'[tenancy]\nforeign_ids = "{policy}"')
    path, _, fields = REFERRED[6]
    assert made.ask(made.acme, path, **fields("file_uploaded"))[0] == 200
    assert made.last_row() == told
    assert made.ask(made.acme, MESSAGES, whole(MESSAGES, "x"))[0] == 200
    assert made.ask(made.other, path, **fields("file_x"))[0] == 404
    assert made.ask(made.acme, path, **fields("file_x"))[0] == 200
    # What only replies issue is nobody's to bring along.
    assert made.ask(made.acme, RESPONSES, previous_response_id="resp_of_nobody")[0] == 404
    assert made.ask(made.acme, RESPONSES, **REFERRED[13][2]("cntr_of_nobody"))[0] == 404


def test_in_open_mode_a_file_that_was_uploaded_elsewhere_passes_and_is_on_record(begin: Any) -> None:
    made: Service = begin(mode="open")
    for path, _, fields in (REFERRED[0], REFERRED[4], REFERRED[9]):
        assert made.ask("", path, **fields("file-uploaded"))[0] == 200
        assert made.last_row() == ("flag", "foreign_id")
        assert b"file-uploaded" in made.provider.bodies[-1]


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "pointer", "fields"),
    [
        (RESPONSES, "/tools/0/model", {"tools": [{"type": "image_generation", "model": "gpt-image-1"}]}),
        (RESPONSES, "/input/0/tools/0/model", {"input": [{"type": "additional_tools", "tools": [{"model": "o3"}]}]}),
        (MESSAGES, "/tools/0/model", {"tools": [{"type": "advisor_1", "name": "advisor", "model": "claude-big"}]}),
        (
            CHAT,
            "/tools/0/parameters/deep/0/model",
            {"tools": [{"type": "x", "parameters": {"deep": [{"model": "o3"}]}}]},
        ),
        (CHAT, "/plugins/0/model", {"plugins": [{"model": "o3"}]}),
    ],
)
def test_a_model_that_a_tool_names_must_be_among_the_key_s(
    firewall: Service, path: str, pointer: str, fields: dict[str, Any]
) -> None:
    key = firewall.key("acme", models=["gpt-a", "claude-a"])
    begun = len(firewall.provider.bodies)
    status, answer = firewall.ask(key, path, **fields)
    assert status == 403 and pointer in answer
    assert len(firewall.provider.bodies) == begun
    assert firewall.ask(firewall.acme, path, **fields)[0] == 200


def test_a_function_may_have_a_parameter_that_is_called_model(firewall: Service) -> None:
    key = firewall.key("acme", models=["gpt-a"])
    schema = {
        "type": "object",
        "properties": {"model": {"type": "string"}},
        "examples": [{"model": "T", "file_id": "f"}],
    }
    function = {"name": "find_car", "parameters": schema}
    assert firewall.ask(key, CHAT, tools=[{"type": "function", "function": function}])[0] == 200
    assert firewall.ask(key, RESPONSES, tools=[{"type": "function", **function}])[0] == 200


def test_a_key_sees_the_models_that_it_may_ask_for(firewall: Service) -> None:
    def listed(key: str) -> list[str]:
        status, answer = firewall.send(key, "models", None)
        assert status == 200
        return [model["id"] for model in json.loads(answer)["data"]]

    assert listed(firewall.acme) == ["gpt-*", "claude-*", "told-*"]
    key = firewall.key("acme", models=["gpt-a*", "told-*", "o3"])
    assert listed(key) == ["gpt-a*", "told-*"]
    assert firewall.send(key, "models/gpt-a1", None)[0] == 200
    assert firewall.send(key, "models/claude-a", None)[0] == 404
    assert firewall.send(firewall.acme, "models/claude-a", None)[0] == 200
