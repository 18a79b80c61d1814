"""The addresses of Azure OpenAI are those that OpenAI's own SDK asks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.upstream.azure import below

openai = pytest.importorskip("openai")

HOST = "https://name.openai.azure.com"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("version", ["2024-10-21", "2025-03-01-preview"])
@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/chat/completions", lambda client: client.chat.completions.create(model="d-1", **CHAT)),
        ("/completions", lambda client: client.completions.create(model="d-1", prompt="hi")),
        ("/embeddings", lambda client: client.embeddings.create(model="d-1", input="hi")),
        ("/responses", lambda client: client.responses.create(model="d-1", input="hi")),
        ("/responses/resp_1?include=a.b", lambda client: client.responses.retrieve("resp_1", include=["a.b"])),
    ],
)
def test_every_operation_lies_where_the_sdk_looks_for_it(version: str, path: str, call: Any) -> None:
    asked: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        assert request.headers["api-key"] == "k"
        return httpx.Response(418, json={})

    with pytest.raises(openai.APIStatusError):
        call(
            openai.AzureOpenAI(
                azure_endpoint=HOST,
                api_key="k",
                api_version=version,
                max_retries=0,
                http_client=httpx.Client(transport=httpx.MockTransport(answer)),
            )
        )
    ours = httpx.URL(HOST + below(path, "d-1", version))
    assert ours.path == asked[0].path
    wanted = {name.removesuffix("[]"): value for name, value in asked[0].params.items()}
    assert dict(ours.params) == wanted
