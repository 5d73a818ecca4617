"""Streams of replies on Redis: a reader may pause for longer than an ordinary reply is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rpc.testing import RedisServer
from rpc.testing.site import Site, eventually

pytestmark = pytest.mark.redis
PAUSE = 300.0
"""Seconds; an ordinary reply is kept for a minute."""


@pytest.fixture
def site(rpc_redis: RedisServer) -> Iterator[Site]:
    with Site(rpc_redis.url) as site:
        yield site


def test_what_a_reader_has_not_read_outlives_a_long_pause(site: Site, rpc_redis: RedisServer) -> None:
    site.serve()
    with redis.Redis.from_url(rpc_redis.url) as observer:
        replies = site.ask(b"count:3")
        assert replies.receive(site.patience).body == b"0"
        site.tell(b"log:after")  # what came before it has been done
        eventually(site.log.lines)
        inboxes = [key for key in observer.scan_iter(f"rpc:{{{site.name()}}}:in:*") if observer.llen(key) > 1]
        assert [observer.ttl(key) > PAUSE for key in inboxes] == [True]
        rest = [replies.receive(site.patience).body for _ in range(3)]
    assert rest == [b"1", b"2", b"end"]
