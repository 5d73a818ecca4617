"""Tokens: who may ask for what, and how often."""

from __future__ import annotations

from typing import Any

import pytest

from rpc import RateLimited, SettingsError, Unauthorized
from rpc.core.patterns import first_for
from rpc.core.tokens import UNAUTHORIZED, Token, Tokens, sent

TOKENS = Tokens(
    {
        "pay.refund": "for refunds",
        "pay.*": ["new", "old", {"token": "reader", "methods": ["pay.list", "pay.show*"]}],
        "report": {"token": "often", "rate": 2},
        "slow": {"token": "seldom", "rate": 0.1},
    }
)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("pay.refund", "for refunds"), ("pay.place", "new"), ("pay.place", "old"), ("pay.list", "reader"),
        ("pay.shows.all", "reader"), ("add", None), ("add", "any"), ("payment", None), ("report", "often"),
    ],
)  # fmt: skip
def test_the_first_pattern_that_fits_says_which_tokens_open_a_job(name: str, token: str | None) -> None:
    TOKENS.check(name, token, 0.0)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("pay.refund", "new"), ("pay.place", "for refunds"), ("pay.place", "reader"), ("pay.place", None),
        ("pay.place", ""), ("pay.place", "new "), ("pay.place", "New"), ("pay.place", "ne"), ("pay.", None),
        ("pay.no such", None), ("report", "x" * 10_000), ("report", "\ud800"), ("report", "oftén"),
    ],
)  # fmt: skip
def test_a_missing_token_is_refused_as_a_wrong_one(name: str, token: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        TOKENS.check(name, token, 0.0)
    assert str(refused.value) == UNAUTHORIZED


def test_a_pattern_that_fits_no_job_is_told_with_the_jobs_that_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = Tokens({"pay.*": "secret", "pya.*": "secret", "report": "secret"}, "shop: RPC_TOKENS")
    tokens.warn_of_unused({"pay.refund": 1, "add": 2})
    assert caplog.messages == [
        f"shop: RPC_TOKENS[{pattern!r}] fits no job of this worker: there is add, pay.refund"
        for pattern in ("pya.*", "report")
    ]
    caplog.clear()
    Tokens({"x": "secret"}).warn_of_unused([])
    Tokens({"x": "secret"}).warn_of_unused([f"job{number}" for number in range(30)])
    none, many = caplog.messages
    assert none == "RPC_TOKENS['x'] fits no job of this worker: there is none"
    assert many.count("job") == 21
    assert many.endswith(", ...")


def test_a_token_allows_so_many_calls_in_a_second() -> None:
    tokens = Tokens({"*": [{"token": "often", "rate": 2}, "always"], "slow": "x"})
    for now, allowed in ((0.0, 2), (0.1, 0), (0.6, 1), (0.61, 0), (100.0, 2), (99.0, 0)):
        for _ in range(allowed):
            tokens.check("add", "often", now)
        with pytest.raises(RateLimited, match="2 calls in a second"):
            tokens.check("add", "often", now)
        tokens.check("add", "always", now)


def test_one_call_may_come_however_low_the_rate_is() -> None:
    TOKENS.check("slow", "seldom", 0.0)
    with pytest.raises(RateLimited):
        TOKENS.check("slow", "seldom", 9.0)
    TOKENS.check("slow", "seldom", 30.0)


@pytest.mark.parametrize(
    "given", [{"x": []}, {"x": ""}, {"x": 7}, {"x": {"token": "hunter2", "rate": 0}},
              {"x": {"tokn": "hunter2"}},
              {"x": {"token": "hunter2", "methods": 7}}, {"x": [["hunter2"]]}]
)  # fmt: skip
def test_what_is_no_token_is_refused_and_not_shown(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"RPC_TOKENS\['x'\]") as refused:
        Tokens(given)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(Token(token="hunter2"))


def test_a_client_sends_a_token_only_with_what_it_is_for() -> None:
    tokens = sent({"pay.refund": "r", "pay.*": "p"})
    found = [first_for(name, tokens) for name in ("pay.refund", "pay.place", "payment", "add", "x.pay.y")]
    assert found == ["r", "p", None, None, None]
    for wrong in "hunter2", {"pay.*": 7}:
        with pytest.raises(SettingsError, match="RPC_TOKEN says for which jobs"):
            sent(wrong)  # type: ignore[arg-type]
