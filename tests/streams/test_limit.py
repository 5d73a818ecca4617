"""Streams of one client."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Any
from uuid import uuid4

import pytest

from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.core.streams import CREDIT, OPEN
from rpc.errors import QueueFull
from rpc.settings import Settings
from rpc.streams.limit import StreamLimit
from rpc.transport import FAILED, STREAM, Message, queue

from .conftest import Site
from .handlers import PATIENCE, until

MOST = 3
TELLS = ("zmq", "http", "ws")
"""Where whoever asks with another id each time is the same client."""


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_client_has_so_many_at_a_time(site: Site, how: str) -> None:
    site.serve(settings=Settings(streams_per_client=MOST), jobs={"plain": lambda: 1})
    client = site.client(how)
    with ExitStack() as stack:
        opened = [stack.enter_context(client.stream("echo", {"value": n})) for n in range(MOST)]
        assert [next(each) for each in opened] == [*range(MOST)]
        for _ in range(5):
            with client.stream("echo", {"value": 1}) as another, pytest.raises(QueueFull, match="at most 3"):
                next(another)
        assert site.client().call_and_wait("plain").data == 1
        assert [each.send("still there") for each in opened] == ["still there"] * MOST
        opened[0].close()
        until(lambda: site.open < MOST, "it did not end")
        assert next(stack.enter_context(client.stream("echo", {"value": 7}))) == 7
    until(lambda: not site.open, "they did not end")


def test_one_who_names_himself_anew_is_told_apart_where_the_backend_can(site: Site) -> None:
    receiver = site.serve(settings=Settings(streams_per_client=MOST), jobs={"plain": lambda: 1})
    client = site.client()
    with ExitStack() as stack:
        came: list[Message] = []
        for _ in range(2 * MOST):
            id = uuid4().hex
            asked = call_message(id, "echo", {"value": 1}, Writing(JSON), ttl=PATIENCE, replies=True)
            replies = client.backend.request(queue("default"), asked.replace(**{CREDIT: "1"}))
            came.append(stack.enter_context(closing(replies)).receive(PATIENCE))
        opened = sum(each.headers.get(STREAM) == OPEN for each in came)
        refused = sum(each.headers.get(FAILED) == "QueueFull" for each in came)
        assert (opened, refused) == ((MOST, MOST) if site.kind in TELLS else (2 * MOST, 0))
        assert client.call_and_wait("plain").data == 1
    until(lambda: not site.open, "they did not end")
    assert not receiver.stream_limit._open


def test_there_may_be_any_number() -> None:
    limit: Any = StreamLimit(None)
    for _ in range(1000):
        limit.begin("a")
    with limit.one_more("a"):
        assert limit._open == {"a": 1001}
