"""Which headers match: the table that was measured on RabbitMQ's headers exchange."""

from __future__ import annotations

from typing import Any

import pytest

from rpc.core.events import header_parts, needs
from rpc.core.filters import Filter, matches

MESSAGES: list[dict[str, Any]] = [{"a": 1}, {"a": "zz"}, {"b": 2}, {"c": 3}, {"x-foo": "1"}, {"a": True}]
EVERY = [0, 1, 2, 3, 4, 5]
TABLE: list[tuple[str, dict[str, Any], list[int]]] = [
    ("all", {}, EVERY),
    ("any", {}, []),
    ("all", {"a": None}, [0, 1, 5]),
    ("all", {"a": True}, [5]),
    ("all", {"a": 1}, [0]),
    ("all", {"a": 1.0}, [0]),
    ("all", {"a": "1"}, []),
    ("all", {"a": 1, "b": 2}, []),
    ("any", {"a": 1, "b": 2}, [0, 2]),
    ("any", {"a": None, "c": 4}, [0, 1, 5]),
    ("all", {"x-foo": "1"}, EVERY),
    ("any", {"x-foo": "1"}, []),
    ("all", {"a": 1, "x-foo": "nobody looks"}, [0]),
    ("all-with-x", {"x-foo": "1"}, [4]),
    ("any-with-x", {"x-foo": "1", "c": 3}, [3, 4]),
    ("all-with-x", {}, EVERY),
]
"""How, which headers, and the messages that match."""


@pytest.mark.parametrize(("match", "headers", "wanted"), TABLE, ids=str)
def test_it_matches_as_measured(match: Any, headers: dict[str, Any], wanted: list[int]) -> None:
    a_filter = Filter.of(headers, match)
    assert [n for n, message in enumerate(MESSAGES) if a_filter(message)] == wanted
    others = {"other": "header", "n": 5}
    assert [
        n for n, message in enumerate(MESSAGES) if matches(headers, match, {**others, **message})
    ] == wanted


def test_all_needs_all_of_them() -> None:
    a_filter = Filter.of({"a": "1", "b": "2"})
    assert [a_filter(each) for each in ({"a": "1"}, {"b": "2"}, {"a": "1", "b": "2", "c": 3})] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("match", ["none", "", "ALL", "all-without-x", None, 1])
def test_another_way_to_match_is_an_error(match: Any) -> None:
    with pytest.raises(ValueError, match="match is one of all, any, all-with-x, any-with-x"):
        Filter.of({"a": 1}, match)


@pytest.mark.parametrize(
    "headers",
    [
        {"a": []},
        {"a": {}},
        {"a": b"x"},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 2**63},
        {1: "a"},
        {"": 1},
        {"a": "\ud800"},
        {"\ud800": 1},
    ],
    ids=str,
)
def test_what_is_no_header_is_an_error(headers: Any) -> None:
    with pytest.raises(ValueError, match="header"):
        Filter.of(headers)


def test_how_headers_match_is_not_said_by_a_header() -> None:
    with pytest.raises(ValueError, match="match="):
        Filter.of({"x-match": "any"})


def test_filters_that_ask_for_the_same_have_one_digest() -> None:
    one = Filter.of({"a": 1, "b": None})
    assert one.digest == Filter.of({"b": None, "a": 1.0}).digest
    others = [{"a": 1}, {"a": True, "b": None}, {"a": "1", "b": None}, {"a": 2, "b": None}]
    assert len({each.digest for each in [one, *map(Filter.of, others), Filter.of(one.headers, "any")]}) == 6
    assert Filter.of({}).digest == Filter.of(None).digest == ""
    assert Filter.of({}, "any").digest


def test_the_caller_keeps_his_dict() -> None:
    headers = {"a": 1}
    a_filter = Filter.of(headers)
    headers["a"] = 2
    assert a_filter({"a": 1})


@pytest.mark.parametrize(
    ("match", "headers", "wanted"),
    [
        ("all", {"a": "1", "b": "2"}, ((("x-a", "1"), ("x-b", "2")),)),
        ("all", {"a": "1", "b": 2, "c": None}, ((("x-a", "1"),),)),
        ("all", {"b": 2}, None),
        ("all", {}, None),
        ("all", {"x-a": "1"}, None),
        ("all-with-x", {"x-a": "1"}, ((("x-x-a", "1"),),)),
        ("any", {"a": "1", "b": "2"}, ((("x-a", "1"),), (("x-b", "2"),))),
        ("any", {"a": "1", "b": 2}, None),
        ("any", {"a": "1", "x-b": 2}, ((("x-a", "1"),),)),
        ("any", {"a": None}, None),
        ("any", {}, ()),
    ],
    ids=str,
)
def test_a_broker_is_told_what_it_can_see(match: Any, headers: dict[str, Any], wanted: Any) -> None:
    assert needs(Filter.of(headers, match)) == wanted


@pytest.mark.parametrize(("match", "headers", "wanted"), TABLE, ids=str)
def test_a_broker_leaves_out_nothing_that_is_wanted(
    match: Any, headers: dict[str, Any], wanted: list[int]
) -> None:
    needed = needs(Filter.of(headers, match))
    for number in wanted:
        texts, _ = header_parts(MESSAGES[number])
        assert needed is None or any({*each} <= {*texts.items()} for each in needed)
