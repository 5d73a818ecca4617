"""Connections that nobody uses now."""

from __future__ import annotations

from typing import Any, cast

import pytest

from rpc.backends._idle import Idle
from rpc.testing.site import Site


def test_what_is_given_back_is_taken_again_the_last_one_first() -> None:
    closed: list[str] = []
    idle = Idle(closed.append)
    assert idle.take() is None
    idle.give_back("a")
    idle.give_back("b")
    assert [idle.take(), idle.take(), idle.take()] == ["b", "a", None]
    assert closed == []


def test_what_is_given_back_after_the_end_is_closed() -> None:
    closed: list[str] = []
    idle = Idle(closed.append)
    idle.give_back("a")
    idle.close()
    assert closed == ["a"]
    idle.give_back("b")
    assert (closed, len(idle)) == (["a", "b"], 0)


@pytest.mark.redis
def test_redis_keeps_no_connection_that_is_given_back_after_the_end(redis_url: str) -> None:
    """As of a thread that is at it still."""
    with Site(redis_url) as site:
        site.serve()
        replies = cast("Any", site.ask(b"echo:x"))
        assert replies.receive(site.patience).body == b"x"
        link = replies._mine.link
        site.client.close()
        assert link.connected
        replies.close()
        assert not link.connected
