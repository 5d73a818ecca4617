"""Who sends heartbeats ends when there is nobody to send them for."""

from __future__ import annotations

import gc
import threading

import pytest

from rpc.backends.amqp import AmqpBackend
from rpc.backends.amqp.connection import Connection
from rpc.testing.site import PATIENCE, eventually
from tests.rabbit import Rabbit


def test_the_thread_ends_with_the_last_connection(broker: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the next heartbeat is due."""
    monkeypatch.setattr(Connection, "interval", 4000.0)
    before = {*threading.enumerate()}
    backends = [AmqpBackend(broker.admin_url) for _ in range(2)]
    for each in backends:
        assert each.dead_letters("none") == []
    begun = {*threading.enumerate()} - before
    assert [each.name for each in begun] == ["rpc-heartbeats"] * 2
    for each in backends:
        each.close()
    for thread in begun:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def await_heartbeat(connection: Connection) -> None:
    eventually(lambda: connection._spoke > connection._heard, within=PATIENCE)


def test_the_thread_keeps_no_connection_that_is_nobody_s_any_more(broker: Rabbit) -> None:
    """Whoever made it was interrupted before it could be kept."""
    backend = AmqpBackend(broker.admin_url, heartbeat=2)
    before = {*threading.enumerate()}
    connection = backend.connect()
    (thread,) = {*threading.enumerate()} - before
    await_heartbeat(connection)
    del connection
    eventually(lambda: gc.collect() >= 0 and not thread.is_alive(), within=PATIENCE)
