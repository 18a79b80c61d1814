"""What requests ask of a model's sampling, and bodies without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.chat import parse_request as parse_chat
from service.api.completions import parse_request as parse_completion
from service.api.messages import parse_request as parse_message
from service.api.responses import parse_request as parse_response
from service.api.sampling import without_probes
from service.api.strict_json import splice_out
from service.firewall.extraction_observation import Sampling
from service.settings import Server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**more: Any) -> Sampling:
    return parse_chat(json.dumps(CHAT | more).encode(), Server()).sampling


def test_a_plain_call_asks_nothing_of_the_distribution() -> None:
    assert chat() == Sampling()
    assert not chat(logprobs=False, temperature=1).probes


def test_each_option_of_a_chat_is_told() -> None:
    asked = chat(logprobs=True, top_logprobs=5, logit_bias={"7": 3}, temperature=0, n=4, max_completion_tokens=1)
    assert asked.logprobs and asked.bias and asked.greedy and asked.short and asked.probes
    assert asked.answers == 4
    assert chat(logit_bias={"7": 3}).bias != chat(logit_bias={"8": 3}).bias
    assert chat(logit_bias={}).bias == 0


@pytest.mark.parametrize("member", [{"logit_bias": {"7": "much"}}, {"best_of": "two"}, {"tools": [{"type": ["x"]}]}])
def test_what_has_not_its_protocols_type_is_for_the_provider_to_refuse(member: dict[str, Any]) -> None:
    assert chat(**member).answers == 1
    response = {"model": "m", "input": "hi", "tools": [{"type": ["x"]}]}
    assert parse_response(json.dumps(response).encode(), Server()).tools is None


def test_the_other_protocols_tell_theirs() -> None:
    def completion(**more: Any) -> Sampling:
        body = json.dumps({"model": "m", "prompt": "hi"} | more).encode()
        return parse_completion(body, Server(), lambda *_: None).sampling

    def response(**more: Any) -> Sampling:
        return parse_response(json.dumps({"model": "m", "input": "hi"} | more).encode(), Server()).sampling

    assert completion(logprobs=0).logprobs and not completion().logprobs
    assert completion(best_of=3).answers == 3
    assert response(include=["message.output_text.logprobs"]).logprobs and response(top_logprobs=3).logprobs
    assert not response(include=["reasoning.encrypted_content"]).logprobs
    asked = parse_message(json.dumps(CHAT | {"max_tokens": 1, "temperature": 0.0}).encode(), Server()).sampling
    assert asked == Sampling(temperature=0.0, output_tokens=1)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"model":"m","logprobs":true,"n":1}', b'{"model":"m","n":1}'),
        (b'{ "logit_bias": {"1": 5, "2": -5} , "model": "m" }', b'{  "model": "m" }'),
        (b'{"model":"m","top_logprobs":5,"logprobs":true}', b'{"model":"m"}'),
        (b'{"logprobs":true}', b"{}"),
        (
            b'{"model":"m","user":"logprobs, \\"logit_bias\\": 1"}',
            b'{"model":"m","user":"logprobs, \\"logit_bias\\": 1"}',
        ),
        (
            b'{"include":["a","message.output_text.logprobs"],"top_logprobs":2,"input":"x"}',
            b'{"include":["a"],"input":"x"}',
        ),
    ],
)
def test_what_probes_is_taken_out_and_every_other_byte_stays(body: bytes, left: bytes) -> None:
    assert without_probes(body) == left
    json.loads(left)


def test_only_a_member_of_the_whole_is_taken_out() -> None:
    body = b'{"a":{"logprobs":1},"messages":[{"logprobs":2}]}'
    assert splice_out(body, "logprobs") == body
