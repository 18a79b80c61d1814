"""Who is refused again and again is told to wait, and is on record once."""

from __future__ import annotations

import pytest

from service.errors import Forbidden, LimitExceeded, MalformedRequest, RequestError, Unauthenticated
from service.tenancy import refusals as module
from service.tenancy.refusals import Refusals, TooManyRefused, network_of

HERE = "192.0.2.1"


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(error: RequestError) -> str:
    if isinstance(error, TooManyRefused):
        return "first" if error.first else "again"
    return str(error.status)


def wrong_key(counted: Refusals, address: str = HERE) -> str:
    return told(counted.weigh(Unauthenticated("no"), address, ""))


def refused(counted: Refusals, key_id: str = "k") -> str:
    return told(counted.weigh(MalformedRequest("no"), HERE, key_id))


def test_wrong_keys_of_one_address_end_in_a_wait_of_which_the_first_is_for_the_record(clock: Clock) -> None:
    """After as many as the setting says, further ones are 429, and but the first of them is not recorded."""
    counted = Refusals(3, clock)
    assert [wrong_key(counted) for _ in range(6)] == ["401", "401", "401", "first", "again", "again"]
    assert wrong_key(counted, "192.0.2.2") == "401"


def test_what_is_left_comes_back_and_a_new_spell_begins_only_after_a_pause(clock: Clock) -> None:
    """A third of a minute frees one of three; the spell has ended once all three are free."""
    counted = Refusals(3, clock)
    for _ in range(4):
        wrong_key(counted)
    clock.now += 20.0
    assert [wrong_key(counted) for _ in range(2)] == ["401", "again"]
    clock.now += 60.0
    assert [wrong_key(counted) for _ in range(4)] == ["401", "401", "401", "first"]


def test_who_waits_is_told_for_how_long(clock: Clock) -> None:
    """`retry-after` is when the next one is free."""
    counted = Refusals(3, clock)
    for _ in range(3):
        wrong_key(counted)
    clock.now += 5.0
    answer = counted.weigh(Unauthenticated("no"), HERE, "")
    assert isinstance(answer, TooManyRefused)
    assert (answer.status, answer.headers["retry-after"]) == (429, "15")


def test_a_key_that_is_only_refused_waits_at_the_door_and_no_other_does(clock: Clock) -> None:
    """The key as a whole is told to wait; wrong keys of the same address are counted apart."""
    counted = Refusals(2, clock)
    assert [refused(counted) for _ in range(3)] == ["400", "400", "first"]
    with pytest.raises(TooManyRefused) as caught:
        counted.admit("k")
    assert not caught.value.first
    counted.admit("other")
    assert wrong_key(counted) == "401"
    clock.now += 30.0
    counted.admit("k")


def test_calls_that_are_served_make_up_for_those_that_are_refused(clock: Clock) -> None:
    """A key that is refused no more often than it is served never waits."""
    counted = Refusals(2, clock)
    for _ in range(50):
        assert refused(counted) == "400"
        counted.served("k")
        counted.admit("k")


def test_limits_that_are_reached_and_open_mode_are_not_counted(clock: Clock) -> None:
    """A 429 of a quota keeps its own words however often it comes; without keys there is nobody to tell apart."""
    counted = Refusals(1, clock)
    limit = LimitExceeded("the limit", headers={"retry-after": "900"})
    assert all(counted.weigh(limit, HERE, "k") is limit for _ in range(5))
    forbidden = Forbidden("no")
    assert all(counted.weigh(forbidden, HERE, "") is forbidden for _ in range(5))
    counted.admit("k")
    counted.admit("")


def test_zero_counts_nothing(clock: Clock) -> None:
    """The setting 0 lets any number be refused."""
    counted = Refusals(0, clock)
    assert {wrong_key(counted) for _ in range(100)} == {"401"}


def test_only_so_many_are_remembered_the_newest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many addresses do not fill the memory; whoever was refused last is still known."""
    monkeypatch.setattr(module, "MAX_BUCKETS", 2)
    counted = Refusals(1, clock)
    assert [wrong_key(counted, address) for address in ("a", "b", "a", "c", "a", "b")] == [
        *("401", "401", "first", "401", "again", "401")
    ]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
        ("a socket", "a socket"),
    ],
)
def test_the_addresses_that_one_host_can_choose_from_count_together(address: str, network: str) -> None:
    """A host of IPv6 has a whole /64; an IPv4 address in the dress of IPv6 is itself."""
    assert network_of(address) == network
