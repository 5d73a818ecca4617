"""Poison: what nobody should send, return or raise. It is answered, and the worker serves on."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import pytest

from rpc.transport import FAILED, LOST, Message, queue

from .conftest import Pick
from .load import ask, tell
from .oracle import ANSWERED, WRONG, Call
from .stage import Stage


def call(method: Any = "work", params: Any = None, **more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": "x", "method": method, "params": params, **more}).encode()


REQUESTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "SerializationError"),
    "any bytes": (bytes(range(256)), "SerializationError"),
    "half a call": (call()[:-9], "SerializationError"),
    "a list": (b"[]", "SerializationError"),
    "a number": (b"1", "SerializationError"),
    "a call without a name": (b'{"params": {}}', "SerializationError"),
    "a name that is a number": (call(7), "SerializationError"),
    "parameters that are text": (call(params="x"), "SerializationError"),
    "a deep nest": (b"[" * 100_000 + b"]" * 100_000, "SerializationError"),
    "5000 digits": (b'{"method": "work", "params": [' + b"9" * 5000 + b"]}", "SerializationError"),
    "not a number": (b'{"method": "work", "params": [NaN]}', "SerializationError"),
    "a name that is not mapped": (call("nobody"), "MethodNotFound"),
    "a path": (call("../../etc/passwd"), "ServiceNotFound"),
    "a dotted path": (call("os.system", ["true"]), "ServiceNotFound"),
    "the name of an attribute": (call("__class__"), "MethodNotFound"),
    "a lone surrogate": (b'{"method": "\\ud800"}', ""),
    "10 MB": (call("odd", {"job": "poison", "how": "returns nothing", "x": "x" * 10_000_000}), ""),
    "17 MB": (call("work", {"x": "x" * 17_000_000}), "SerializationError"),
}
"""The body of a request, and the error that answers it ("": any, or none)."""

HANDLERS = {
    "returns a function": "SerializationError",
    "returns a generator": "InvalidParams",
    "returns itself within itself": "SerializationError",
    "returns 17 MB": "SerializationError",
    "returns nothing": WRONG,
    "responds twice": ANSWERED,
    "raises": "RemoteError",
    "raises what has no text": "RemoteError",
    "raises no Exception": "RemoteError",
    "exits": "RemoteError",
    "interrupts itself": "RemoteError",
    "recurses": "RemoteError",
}
"""What a handler does, and what comes of the call: null is an answer, though not the one asked for."""


@pytest.mark.parametrize("codec", ["application/json", "application/msgpack", "application/x-python-pickle"])
def test_poisonous_requests(stage: Stage, codec: str) -> None:
    """Requests that are no calls, or calls of what is not there: each is answered with the error that fits"""
    worker, client = stage.worker(), stage.client()
    for body, error in REQUESTS.values():
        id = uuid4().hex
        sent = Call(stage.job(), time.monotonic())
        message = Message(body, {"id": id, "reply-to": id, "content-type": codec, "ttl": "30"})
        replies = client.backend.request(queue("default"), message)
        reply = replies.receive(30)
        replies.close()
        fits = LOST not in reply.headers and (
            not error or codec != "application/json" or reply.headers.get(FAILED) == error
        )
        sent.outcome, sent.done = ANSWERED if fits else WRONG, time.monotonic()
        stage.oracle.calls.append(sent)
    ask(stage, client)
    assert stage.verdict().answered == len(REQUESTS) + 1
    assert worker.poll() is None


def test_poisonous_handlers(stage: Stage) -> None:
    """Handlers that return what cannot travel, answer twice, raise anything, exit: each caller is told"""
    worker, client = stage.worker(), stage.client()
    for how, outcome in HANDLERS.items():
        call = ask(stage, client, "odd", how=how)
        assert call.outcome == outcome, how
        call.outcome = ANSWERED
    ask(stage, client)
    assert stage.verdict().answered == len(HANDLERS) + 1
    assert worker.poll() is None


@pytest.mark.only("redis", "rq")
def test_nonsense_in_redis(stage: Stage, pick: Pick) -> None:
    """Somebody else writes into the lists in Redis: what is no job of ours is dropped, ours are done"""
    client, admin = stage.client(), stage.redis.admin
    for _ in range(10):
        tell(stage, client)
    names = [*admin.scan_iter("rpc:*", _type="list"), *admin.scan_iter("rq:queue:*", _type="list")]
    for _ in range(pick(20, 1000)):
        admin.lpush(stage.dice.choice(names), stage.dice.randbytes(stage.dice.randrange(200)))
        stage.oracle.faults["nonsense"] += 1
    for name in names:
        admin.rpush(name, b"\n\n\n", b"x\n0\n\n", b"x\n0\nx\n\0\0", b"\xff" * 9999)
    worker = stage.worker()
    ask(stage, client)
    figures = stage.verdict()
    assert figures.executed == 11
    assert worker.poll() is None
