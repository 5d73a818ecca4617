"""The table of services, given what was heard, and when."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc.core.registry import (
    LONGEST,
    MISSED,
    SHORTEST,
    SURE,
    Registry,
    ServiceInfo,
    Wanted,
    least_loaded,
    quiet,
    read_sign,
)
from rpc.errors import SerializationError


def sign(instance="a", **changes):
    told = {"domain": "shop", "type": "orders", "id": "eu", "version": "1.2.0", "instance": instance}
    told |= {"epoch": 1.0, "beat": 1, "interval": 1.0, "host": "h", "pid": 1, "started": 1.0, "capacity": 4}
    return ServiceInfo(**(told | changes))


def kinds(changes):
    return [change.kind for change in changes]


def test_who_is_heard_of_is_up_and_is_down_when_silent_for_three_intervals():
    table = Registry()
    assert kinds(table.hear(sign(), 10.0)) == ["up"]
    assert table.next_end() == 10.0 + MISSED
    assert kinds(table.hear(sign(beat=2), 11.0)) == []
    assert table.expire(11.0 + MISSED - 0.1) == []
    assert table.services(11.0 + MISSED, Wanted()) == []
    assert kinds(table.expire(11.0 + MISSED)) == ["down"]
    assert table.next_end() is None


def test_who_says_that_he_stops_is_down_at_once_and_a_sign_that_comes_late_does_not_raise_him():
    table = Registry()
    table.hear(sign(beat=5), 0.0)
    assert kinds(table.hear(sign(beat=-1), 1.0)) == ["down"]
    assert table.hear(sign(beat=6), 1.1) == []
    assert table.services(1.1, Wanted()) == []
    assert table.expire(10.0) == []  # it was told


def test_a_restart_is_no_pause():
    table = Registry()
    table.hear(sign(epoch=1.0, beat=9), 0.0)
    changes = table.hear(sign(epoch=2.0, beat=1), 0.5)
    assert [(each.kind, each.service.epoch) for each in changes] == [("down", 1.0), ("up", 2.0)]
    assert table.hear(sign(epoch=1.0, beat=-1), 0.6) == []
    assert [each.epoch for each in table.services(0.6, Wanted())] == [2.0]


@pytest.mark.parametrize("change", [{"schema": "x"}, {"version": "1.3.0"}, {"capacity": 9}])
def test_what_is_offered_otherwise_is_a_change_and_load_is_none(change):
    table = Registry()
    table.hear(sign(), 0.0)
    assert table.hear(sign(beat=2, running=3, idle=0.1), 0.1) == []
    assert kinds(table.hear(sign(beat=3, **change), 0.2)) == ["changed"]


def test_after_a_silence_that_was_ours_nobody_is_down():
    table = Registry()
    table.hear(sign(), 0.0)
    table.forgive(100.0)
    assert table.expire(100.0) == []
    assert kinds(table.expire(100.0 + MISSED)) == ["down"]


def test_what_is_known_is_fresh_until_one_more_silence_would_end_it():
    table = Registry()
    table.hear(sign(), 0.0)
    found = table.services(0.0, Wanted())
    assert table.is_fresh(found, 1.5)
    assert not table.is_fresh(found, 2.5)
    assert not table.is_fresh([sign("b")], 0.0)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), ["a", "b", "c"]),
        (Wanted(domain="shop"), ["a", "b"]),
        (Wanted(domain="sho"), []),  # not a prefix
        (Wanted(type="orders", id="us"), ["b"]),
        (Wanted(version=">=2"), ["b", "c"]),
        (Wanted(version=">=2", domain="shop"), ["b"]),
        (Wanted(instance="c"), ["c"]),
        (Wanted(domain="shop", type="stock"), []),
    ],
)
def test_filters_are_exact_and_go_together(wanted, found):
    table = Registry()
    table.hear(sign("a"), 0.0)
    table.hear(sign("b", id="us", version="2.0.0"), 0.0)
    table.hear(sign("c", domain="bank", type="stock", version="2.1.0"), 0.0)
    assert sorted(each.instance for each in table.services(0.0, wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (Wanted(domain="x y"), "'x y' is no domain"),
        (Wanted(type="a.b"), "'a.b' is no type"),
        (Wanted(type=""), "'' is no type"),
        (Wanted(id=7), "7 is no id"),
        (Wanted(version=1), "1 is no version"),
        (Wanted(version="new"), "'new' is no version"),
        (Wanted(instance=b"a"), "b'a' is no instance"),
    ],
)
def test_what_no_service_is_cannot_be_looked_for(wanted, error):
    with pytest.raises(ValueError, match=error):
        wanted.check()
    Wanted("shop", "orders", "eu", ">=1", "a").check()


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "a.b"}, {"type": 7}, {"version": "1"}, {"instance": ""}, {"instance": "x" * 65},
        {"interval": 0.0}, {"interval": -1}, {"interval": LONGEST + 1}, {"interval": float("nan")},
        {"interval": float("inf")}, {"pid": "x"}, {"beat": None}, {"epoch": float("nan")},
        {"instance": "a b"}, {"instance": "a*"}, {"instance": "a\n"}, {"running": -1}, {"running": 10**400},
        {"capacity": -4}, {"pid": 2**70}, {"started": float("inf")}, {"idle": float("nan")}, {"epoch": 1e300},
        {"beat": -2}, {"host": "h" * 256}, {"schema": "s" * 256}, {"version": f"1.0.0-{'a' * 200}"},
    ],
)  # fmt: skip
def test_what_is_no_sign_of_life_is_refused(change):
    with pytest.raises(SerializationError, match="no sign of life"):
        read_sign(msgspec.to_builtins(sign()) | change)


@pytest.mark.parametrize("told", [None, [], {}, "x", [1, 2]])
def test_what_is_not_even_an_object_is_refused(told):
    with pytest.raises(SerializationError, match="no sign of life"):
        read_sign(told)


def test_of_two_by_chance_the_one_with_less_to_do_is_taken():
    idle, busy = sign("idle"), sign("busy", running=4)
    taken = [least_loaded([idle, busy], number / 100).instance for number in range(100)]
    assert taken.count("idle") > taken.count("busy")
    assert least_loaded([busy], 0.999).instance == "busy"


FORGED = [
    {"epoch": 2.9e10}, {"epoch": 2.9e10, "beat": -1}, {"beat": 2**53 - 1}, {"beat": -1},
    {"epoch": 2.9e10, "interval": LONGEST}, {"epoch": 2.9e10, "beat": -1, "interval": LONGEST},
    {"beat": 2**53 - 1, "interval": LONGEST}, {"beat": 9, "version": "9.9.9", "type": "other"},
    {"epoch": 2.9e10, "interval": SHORTEST}, {"epoch": 0.0, "beat": -1}, {"started": 2.9e10, "idle": 2.9e10},
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED)
def test_what_somebody_else_says_of_a_service_is_believed_until_it_has_spoken_twice(forged):
    table = Registry()
    table.hear(sign(beat=5), 0.0)
    table.hear(sign(**({"beat": 6} | forged)), 0.1)
    for beat, now in [(6, 1.0), (7, 1.95)]:  # up to a tenth earlier than they need to
        table.hear(sign(beat=beat), now)
    assert table.services(1.95, Wanted()) == [sign(beat=7)]
    assert kinds(table.expire(1.95 + MISSED)) == ["down"]


def test_what_nobody_speaks_against_is_believed_for_minutes():
    table = Registry()
    table.hear(sign(), 0.0)
    table.hear(sign(epoch=2.9e10, beat=2**53 - 1, interval=LONGEST), 0.1)
    assert kinds(table.expire(0.1 + MISSED * 60)) == ["down"]


@pytest.mark.parametrize(
    ("expected", "answered", "seconds"),
    [("", "a", 1.0), ("ab", "a", math.inf), ("ab", "", math.inf), ("ab", "ba", SURE), ("ab", "abc", 1.0)],
)
def test_whoever_is_expected_is_waited_for(expected, answered, seconds):
    assert quiet(set(expected), list(answered), 1.0) == seconds


signs = st.builds(
    sign,
    instance=st.sampled_from("ab"),
    epoch=st.sampled_from([1.0, 2.0]),
    beat=st.sampled_from([-1, 1, 2, 3]),
    version=st.sampled_from(["1.0.0", "2.0.0"]),
)


@given(st.lists(st.tuples(signs, st.floats(0, 2)), max_size=30))
def test_whatever_is_heard_ups_and_downs_take_turns_and_agree_with_the_table(heard):
    """Signs that come again, in another order, or late, included."""
    table, up, now = Registry(), {}, 0.0
    for each, pause in heard:
        now += pause
        for change in [*table.expire(now), *table.hear(each, now)]:
            name = change.service.instance
            assert (name in up) == (change.kind != "up")
            if change.kind == "down":
                del up[name]
            else:
                up[name] = change.service
        known = {each.instance: each for each in table.services(now, Wanted())}
        assert known.keys() == up.keys()
        assert all(known[name].epoch == up[name].epoch for name in up)
