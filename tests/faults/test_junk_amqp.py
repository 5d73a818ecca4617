"""Junk in all that is ours in RabbitMQ, as `test_junk` puts it into Redis: it costs at most that message,
nobody stops, no other call is delayed."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from decimal import Decimal
from itertools import count
from operator import ge
from typing import Any, cast
from uuid import uuid4

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from pamqp import frame, header

from rpc import Event, RpcClient, RpcError, RpcReceiver, job, on
from rpc.backends.amqp import AmqpBackend, deliveries, messages
from rpc.backends.amqp import dead_letters as letters
from rpc.backends.amqp.requests import ReplyQueue
from rpc.backends.amqp.wire import Basic, Broken, Exchange, Queue, body_frame, frames
from rpc.describe import ALL_WORKERS
from rpc.events import listeners_in
from rpc.settings import Settings
from rpc.testing.site import PATIENCE, eventually
from rpc.transport import ATTEMPT, DELAY, FAILED, HANDED_BACK, IDEMPOTENCY_KEY, LOST, NAME, STREAM

from .conftest import Pick

pytestmark = pytest.mark.xdist_group("rabbit_node")

AT_ONCE = 20
"""After so many, each neighbour is answered before there are more."""
QUEUES = ["default", "low"]
TEXTS = [
    *("", "x", "0", "-1", "999999999", "9" * 250, "1e9", "nan", "true", "ä" * 127, "\0", "x" * 255, "%s%n"),
    *("x\n2026-01-01 CRITICAL forged", "\u2028", "\r", "application/json", "application/msgpack"),
    *(messages.CANCEL, messages.PRESENT, "rpc-junk", "../../etc/passwd", "lost", "error"),
]
NAMES = [
    *(ATTEMPT, DELAY, FAILED, HANDED_BACK, IDEMPOTENCY_KEY, LOST, NAME, STREAM, "id", "ttl", "reply-to"),
    *("deliveries", "content-type", "traceparent", "x-own", messages.STAMP, messages.COPY, messages.WAY),
    *(messages.RESENT, messages.PUT_BACK, messages.AGAIN, deliveries.COUNTED, letters.TOKEN, letters.AT),
    *(letters.WHY, "CC", "BCC", "x-death", "x-first-death-queue", "", "ä" * 60, "\n"),
]
BODIES = [
    *(
        b"",
        b"\0",
        b"[]",
        b"{}",
        b"null",
        b"\xff" * 99,
        b'{"method": 7}',
        b'{"jsonrpc": "2.0", "method": "no"}',
    ),
    *(
        b'{"jsonrpc":"2.0","method":"%s","params":[1]}' % name
        for name in (b"echo", b"once", b"fail", b"a\\nb")
    ),
    *(b'{"jsonrpc":"2.0","id":"x","result":1}', b'{"error":{"code":-32700,"message":"\\n"}}', b"[" * 9999),
    b'{"jsonrpc":"2.0","method":"junk.durable.x","params":{"\\n":"\\u0000"}}',
]


class Junk:
    """Messages as nobody should send them, by dice."""

    def __init__(self, url: str, ways: list[str], dice: random.Random) -> None:
        """`ways` are the names of queues for replies, as they are made."""
        self._backend, self._ways, self._dice = AmqpBackend(url), ways, dice
        self._connection: Any = None
        self.sent = self.refused = 0
        """How many were sent, and how often RabbitMQ did not take one."""

    def send(self) -> None:
        self.sent += 1
        try:
            if self._connection is None:
                self._connection = self._backend.connect()
                self._prepare()
            self._connection.put(self._message())
            self._connection.flush()
            self._connection.look()
        except Broken:
            self.refused += 1
            self._connection = None

    def settle(self) -> None:
        """Return once RabbitMQ has seen all of it."""
        with suppress(Broken):
            self._connection.ask(1, Queue.Declare(queue="rpc:junk:own", exclusive=True), Queue.DeclareOk)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._backend.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.ask(1, Exchange.Declare(exchange="junk", exchange_type="fanout"), Exchange.DeclareOk)
        with suppress(Broken):  # another connection of ours has it
            connection.ask(2, Queue.Declare(queue="rpc:lock:junk", exclusive=True), Queue.DeclareOk)
        for name in self._queues():
            connection.ask(1, Queue.Bind(queue=name, exchange="junk"), Queue.BindOk)

    def _queues(self) -> list[str]:
        return [*(f"rpc:queue:{name}" for name in (*QUEUES, SHELF.name)), "rpc:dead:default"]

    def _message(self) -> bytes:
        dice, body = self._dice, self._body()
        content = header.ContentHeader(0, len(body), self._properties())
        try:
            said = bytearray(frame.marshal(content, 1))
        except Exception:  # pamqp does not write all that we make up
            said = bytearray(frame.marshal(header.ContentHeader(0, len(body), Basic.Properties()), 1))
        for _ in range(dice.choice([0, 0, 1, 3])):
            if len(said) > 22:  # not its length, nor its class, nor what properties there are
                said[dice.randrange(21, len(said) - 1)] = dice.choice([0, 255, dice.randrange(256)])
        return self._address() + bytes(said) + (body_frame(1, body) if body else b"")

    def _address(self) -> bytes:
        dice = self._dice
        exchange, key = dice.choice(
            [
                *(("", name) for name in (*self._queues(), *self._ways[-3:])),
                *(("rpc", f"control:{name}") for name in QUEUES),
                *(("rpc", f"topic:{name}") for name in (ALL_WORKERS.name, "junk")),
                *[("junk", "any")] * 3,
            ]
        )
        method = bytearray(frames(1, Basic.Publish(exchange=exchange, routing_key=key)))
        if exchange == "junk":
            method[-5:-2] = bytes(dice.randrange(256) for _ in range(3))  # the key is no text
        return bytes(method)

    def _body(self) -> bytes:
        dice = self._dice
        body = bytearray(dice.choice(BODIES))
        if body and dice.random() < 0.2:
            body[dice.randrange(len(body))] = dice.randrange(256)
        return bytes(body)

    def _properties(self) -> Any:
        dice, made = self._dice, Basic.Properties()
        made.correlation_id = uuid4().hex if dice.random() < 0.5 else dice.choice(TEXTS)
        made.headers = {dice.choice(NAMES): self._value() for _ in range(dice.randrange(6))} or None
        if dice.random() < 0.02:
            made.headers = {f"h{number}": "x" * 99 for number in range(dice.choice([65, 500]))}
        for name, values in {
            "content_type": TEXTS,
            "content_encoding": [*TEXTS, "gzip"],
            "delivery_mode": [0, 1, 2, 3, 255],
            "priority": [0, 9, 255],
            "reply_to": [*TEXTS, *self._ways[-2:], "rpc:lock:junk", "rpc:queue:default", "rpc:reply:gone"],
            "expiration": ["0", "1", "60000", "4294967295"],
            "message_id": TEXTS,
            "timestamp": [
                datetime(1970, 1, 1, tzinfo=timezone.utc),
                datetime(9999, 1, 1, tzinfo=timezone.utc),
            ],
            "message_type": TEXTS,
            "app_id": TEXTS,
        }.items():
            if dice.random() < 0.3:
                setattr(made, name, dice.choice(values))
        if dice.random() < 0.05:
            made.reply_to = f"amq.rabbitmq.reply-to.{dice.choice(['', '.', 'a.b', 'g1h2AA1y.eA=='])}"
        return made

    def _value(self, depth: int = 0) -> Any:
        dice = self._dice
        if dice.random() < 0.4:
            return dice.choice([*TEXTS, "x" * 9999, *self._ways[-1:]])
        if dice.random() < 0.2 and depth < 5:
            inner = [self._value(depth + 1) for _ in range(3)]
            return inner if dice.random() < 0.5 else {f"n{at}": each for at, each in enumerate(inner)}
        numbers = 0, -1, 2**31, 2**62, -(2**63), 1.5, float("nan"), Decimal("1.5"), True, None
        return dice.choice([*numbers, bytearray(b"\xff"), datetime(9999, 1, 1, tzinfo=timezone.utc)])


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of queues for replies that this process makes."""
    begin, made = ReplyQueue.__init__, list[str]()

    def noted(self: ReplyQueue, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self.name)

    monkeypatch.setattr(ReplyQueue, "__init__", noted)
    return made


@on("junk.plain")
def plain(event: Event) -> None:
    """Hears all that comes."""


@on("junk.durable", group="team", durable=True, retries=1, backoff=0.001)
def durable(event: Event) -> None:
    raise ValueError("no")


SHELF = listeners_in([("durable", durable)])[0].address.subscription_queue


@job(retries=1, backoff=0.001)
def fail(number: Any) -> None:
    raise ValueError(number)


@job(delivery="at-most-once")
def once(number: Any) -> Any:
    return number


@contextmanager
def serving(url: str) -> Iterator[list[threading.Thread]]:
    """One worker of both queues, and one of the first, which hear events, too."""
    jobs: Any = {"echo": lambda number: number, "fail": fail, "once": once}
    threads = []
    with ExitStack() as stack:
        for queues in QUEUES, QUEUES[:1]:
            receiver = RpcReceiver(
                jobs=jobs,
                backend=url,
                queues=queues,
                services=[plain, durable],
                settings=Settings(),
                concurrency=2,
            )
            thread = threading.Thread(target=receiver.run)
            thread.start()
            threads.append(thread)
            stack.callback(thread.join, PATIENCE)
            stack.callback(receiver.stop)
        yield threads


class Neighbour:
    """Calls, one way or the other, until it is over; each must be answered."""

    def __init__(self, client: RpcClient, queue: str) -> None:
        self._client, self._queue = client, queue
        self.answered, self.over = 0, threading.Event()
        self.wrong: list[object] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for number in count():
            if self.over.is_set():
                return
            try:
                if number % 2:
                    answer = self._client.call_and_wait("echo", [number], queue=self._queue)
                else:
                    answer = self._client.submit("echo", [number], queue=self._queue).result(PATIENCE)
                if answer.data != number:
                    self.wrong.append((number, answer.data))
            except Exception as error:
                self.wrong.append(error)
            self.answered += 1


@pytest.fixture
def amqp_url(rabbit_node: Any) -> str:
    """A vhost of its own: what has no prefix of ours is put there, too."""
    return str(rabbit_node.vhost("default", "nobody"))


@pytest.mark.slow
def test_junk_costs_itself_at_most(
    amqp_url: str, ways: list[str], dice: random.Random, pick: Pick, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rpc")
    backend = AmqpBackend(amqp_url)
    backend.declare(*(messages.Address("queue", name) for name in QUEUES))
    backend.senders.do(
        lambda connection: connection.ask(2, backend.servers.queue("rpc:dead:default"), Queue.DeclareOk)
    )
    with serving(amqp_url) as workers, RpcClient(backend=amqp_url, timeout=PATIENCE) as client:
        shelf = backend.servers.names.queue(SHELF)
        eventually(
            lambda: backend.senders.do(lambda it: it.succeeds(3, messages.Probe(shelf), Queue.DeclareOk, 404))
        )
        neighbours = [Neighbour(client, queue) for queue in QUEUES]
        junk = Junk(amqp_url, ways, dice)
        try:
            for _ in range(pick(400, 10_000) // AT_ONCE):
                for _ in range(AT_ONCE):
                    junk.send()
                answered = [each.answered + 1 for each in neighbours]
                eventually(lambda goal=answered: all(map(ge, (each.answered for each in neighbours), goal)))
            junk.settle()
        finally:
            for each in neighbours:
                each.over.set()
            for each in neighbours:
                each.thread.join(PATIENCE * 2)
        for queue in QUEUES * 4:
            assert client.call_and_wait("echo", [1], queue=queue).data == 1
        assert all(worker.is_alive() for worker in workers)
        look_at_letters(backend)
    junk.close()
    backend.close()
    said = [record.getMessage() for record in caplog.records]
    wrong = [each.wrong for each in neighbours if each.wrong]
    assert not wrong, wrong
    assert all(each.answered > 5 for each in neighbours)
    assert [text for text in said if "trying again" in text or "\n" in text] == []
    assert [record for record in caplog.records if record.levelno > logging.ERROR] == []
    assert junk.refused < junk.sent / 2


def look_at_letters(backend: Any) -> None:
    """All can be looked at, and the last ones be put back or dropped."""
    for name in (*QUEUES, SHELF.name):
        found = backend.dead_letters(name)
        for letter in found[:5]:
            with suppress(RpcError):
                cast("Any", backend).revive(letter)
        for letter in found[5:10]:
            backend.drop(letter)
