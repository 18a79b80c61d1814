"""What Presidio's recognisers find without any model around them; skipped without the extra `pii`."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

from service.errors import ConfigError
from service.firewall.personal import spotted_in
from service.firewall.recognisers import Recognisers

pytest.importorskip("presidio_analyzer", reason='the extra "pii" is not installed')


@pytest.fixture(scope="module")
def recognise() -> Recognisers:
    return Recognisers((), 0.5)


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("Mail ann.lee@example.com now.", "EMAIL_ADDRESS", "ann.lee@example.com"),
        ("The card 4111 1111 1111 1111 expired.", "CREDIT_CARD", "4111 1111 1111 1111"),
        ("Pay into DE89 3704 0044 0532 0130 00 please.", "IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
        ("Call +44 20 7946 0958 today.", "PHONE_NUMBER", "+44 20 7946 0958"),
        ("My phone is (415) 555-2671.", "PHONE_NUMBER", "(415) 555-2671"),
        ("It came from 203.0.113.7 today.", "IP_ADDRESS", "203.0.113.7"),
        ("Social security 536-90-4399 it is.", "US_SSN", "536-90-4399"),
        ("NHS number 943 476 5919 please.", "UK_NHS", "943 476 5919"),
        ("Send to 1BoatSLRHtKNngkdXEeobR76b53LETtpyT in coins.", "CRYPTO", "1BoatSLRHtKNngkdXEeobR76b53LETtpyT"),
        ("Su DNI es 12345678Z hoy.", "ES_NIF", "12345678Z"),
        ("codice fiscale RSSMRA85T10A562S grazie", "IT_FISCAL_CODE", "RSSMRA85T10A562S"),
    ],
)
def test_data_are_found_by_form_and_checksum(recognise: Recognisers, text: str, entity: str, value: str) -> None:
    found = {(seen.entity, text[seen.start : seen.end]) for seen in spotted_in(recognise, text)}
    assert (entity, value) in found


@pytest.mark.parametrize(
    "text",
    [
        "The card 4111 1111 1111 1112 is none.",
        "Order 9434765919 left at 1764252000, build 20261127.",
        "In 2024 we sold 12,345,678 of them for 1,234.50.",
        "Version 1.2.3 of foo@1.2.3 is out.",
    ],
)
def test_numbers_that_only_look_like_data_are_left(recognise: Recognisers, text: str) -> None:
    assert not [seen for seen in spotted_in(recognise, text) if seen.entity != "IP_ADDRESS"]


def test_a_word_before_a_bare_number_or_the_name_of_its_member_says_what_it_is(recognise: Recognisers) -> None:
    assert not spotted_in(recognise, "9434765919")
    assert [seen.entity for seen in spotted_in(recognise, "9434765919", "nhs_number: ")] == ["UK_NHS"]


def test_nothing_is_fetched_and_nothing_is_logged(
    recognise: Recognisers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with caplog.at_level(logging.DEBUG):
        spotted_in(recognise, "ann.lee@example.com, GB82 WEST 1234 5698 7654 32, DE89 3704 ä044 0532 0130 00")
    assert "ann.lee" not in caplog.text
    assert "DE89" not in caplog.text


def test_an_entity_that_nobody_recognises_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"pii\.entities: there is no 'SHOE_SIZE'.*UK_NHS"):
        Recognisers(["SHOE_SIZE"], 0.5)
