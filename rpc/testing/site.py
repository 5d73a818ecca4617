"""Where a test of a backend happens: backends of one URL, toys that serve them, and what the toys did."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

from ..backends import backend_from_url
from ..transport import (
    ATTEMPT,
    IDEMPOTENCY_KEY,
    STREAM,
    Address,
    Backend,
    Delivery,
    Handler,
    Message,
    Replies,
    Server,
    queue,
)
from ._portal import Portal

ONCE: Any = {IDEMPOTENCY_KEY: "order-17"}
"""Headers of a message that is to be handled once."""
PATIENCE = 20.0
"""Seconds after which something that must happen is taken to have failed to."""


class Log:
    """What handlers did, kept in a file: it does not depend on the broker under test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, line: str) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def clear(self) -> None:
        self.path.write_bytes(b"")

    def lines(self) -> list[str]:
        return self.path.read_text().split("\n")[:-1]


Answer = Callable[[Delivery], Message | None]
"""What is done with a delivery: returns its last reply, if it has not ended yet."""


def answering(answer: Answer) -> Handler:
    """The handler that finishes a delivery with what this returns."""

    def handle(delivery: Delivery) -> None:
        delivery.finish(answer(delivery))

    return handle


class Toy:
    """An answer that does what the body says: `verb:argument`."""

    def __init__(self, log: Log, name: str = "toy") -> None:
        self._log, self._name = log, name
        self.released = threading.Event()

    def __call__(self, delivery: Delivery) -> Message | None:
        verb, _, argument = delivery.message.body.partition(b":")
        return getattr(self, verb.decode())(delivery, argument)  # type: ignore[no-any-return]

    def echo(self, delivery: Delivery, argument: bytes) -> Message:
        return self._reply(delivery, argument)

    def headers(self, delivery: Delivery, argument: bytes) -> Message:
        return self._reply(delivery, delivery.message.headers[argument.decode()].encode())

    def whoami(self, delivery: Delivery, argument: bytes) -> Message:
        return self._reply(delivery, self._name.encode())

    def log(self, delivery: Delivery, argument: bytes) -> Message:
        self._log.write(f"{self._name} {argument.decode()}")
        return self._reply(delivery, b"logged")

    def count(self, delivery: Delivery, argument: bytes) -> Message:
        for number in range(int(argument)):
            delivery.reply(self._reply(delivery, b"%d" % number, **{STREAM: "1"}))
        return self._reply(delivery, b"end")

    def early(self, delivery: Delivery, argument: bytes) -> None:
        self._log.write(f"sent {delivery.reply(self._reply(delivery, argument))}")
        self._wait(self.released.is_set)
        self._log.write("ended")

    def hold(self, delivery: Delivery, argument: bytes) -> Message:
        self._log.write(f"holding {argument.decode()}")
        self._wait(self.released.is_set)
        self._log.write(f"held {argument.decode()}")
        return self._reply(delivery, argument)

    def until_cancelled(self, delivery: Delivery, argument: bytes) -> Message:
        called = threading.Event()
        delivery.on_cancel = called.set
        self._log.write("waiting")
        self._wait(lambda: delivery.cancelled)
        called.wait(PATIENCE)
        self._log.write(f"cancelled, sent {delivery.reply(self._reply(delivery, b'late'))}")
        return self._reply(delivery, b"late")

    def fail(self, delivery: Delivery, argument: bytes) -> Message:
        raise ValueError(argument)

    def die_at_first(self, delivery: Delivery, argument: bytes) -> Message:
        message = delivery.message
        self._log.write(f"{message.id} {message.deliveries}")
        if message.deliveries <= int(argument):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._reply(delivery, b"%d" % message.deliveries)

    def die_once(self, delivery: Delivery, argument: bytes) -> None:
        delivery.forbid_redelivery()
        self._log.write("once")
        os.kill(os.getpid(), signal.SIGKILL)

    def again(self, delivery: Delivery, argument: bytes) -> Message | None:
        message = delivery.message
        self._log.write(f"attempt {message.attempt}")
        if message.attempt > int(argument):
            return self._reply(delivery, message.headers[ATTEMPT].encode())
        delivery.postpone(0.2, message.replace(attempt=message.attempt + 1))
        return None

    def postpone_and_die(self, delivery: Delivery, argument: bytes) -> Message:
        message = delivery.message
        if argument == b"once":
            delivery.forbid_redelivery()
        self._log.write(f"attempt {message.attempt}")
        if message.attempt == message.deliveries == 1:
            delivery.postpone(0.2, message.replace(attempt=2))
            os.kill(os.getpid(), signal.SIGKILL)
        return self._reply(delivery, b"done")

    def bury(self, delivery: Delivery, argument: bytes) -> Message | None:
        self._log.write(f"bury {argument.decode()}")
        if self.released.is_set():
            return self._reply(delivery, b"done")
        delivery.bury(f"why {argument.decode()}", self._reply(delivery, b"buried"))
        return None

    def odd(self, delivery: Delivery, argument: bytes) -> Message:
        self._log.write(f"{'odd' if int(argument) % 2 else 'even'} {argument.decode()}")
        return self._reply(delivery, argument)

    def finish_odd(self, delivery: Delivery) -> None:
        """A handler that keeps what is even, and finishes what is odd after it has returned."""
        last = self(delivery)
        if last and int(last.body) % 2:
            threading.Timer(random.uniform(0.01, 0.1), delivery.finish, [last]).start()

    def _reply(self, delivery: Delivery, body: bytes, **headers: str) -> Message:
        return Message(body, {"id": delivery.message.id, **headers})

    def _wait(self, happened: Callable[[], bool]) -> None:
        eventually(happened, "the handler was left waiting")


class Site:
    """Where a test happens: backends of one URL, each closed at the end, and what serves them."""

    made = staticmethod(backend_from_url)
    module = __name__
    """Whose `main` serves in a process of its own."""

    def __init__(
        self,
        url: str,
        *,
        disrupt: Callable[[], object] | None = None,
        asynchronous: bool = False,
        named: Callable[[str], object] = lambda name: None,
    ) -> None:
        """`disrupt` cuts every connection to the broker, once; None if there is none to cut. `asynchronous`:
        callers use the backend's asynchronous side. `named` is told each name that a queue may have, for
        brokers that take no message to a queue that nobody has made."""
        self.url, self.disrupt, self._asynchronous = url, disrupt, asynchronous
        self._named = named
        self._name, self._names = f"q{uuid4().hex[:8]}", set[str]()
        self._stack = ExitStack()
        self._toys: list[Toy] = []

    def __enter__(self) -> Site:
        self._directory = Path(self._stack.enter_context(TemporaryDirectory()))
        self.log = Log(self._directory / "log")
        self.client = self.backend()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def patience(self) -> float:
        return PATIENCE

    def name(self, part: str = "") -> str:
        name = f"{self._name}.{part}" if part else self._name  # one hash slot, on a cluster
        if name not in self._names:
            self._names.add(name)
            self._named(name)
        return name

    def queue(self, part: str = "") -> Address:
        return queue(self.name(part))

    def needs(self, *features: str) -> None:
        import pytest  # not in those that serve, of which tests start hundreds

        for feature in features:
            if feature not in self.client.features:
                pytest.skip(f"{self.url.split(':')[0]} has no feature {feature!r}")

    def backend(self, **options: Any) -> Backend:
        backend = self.made(self.url, **options)
        if self._asynchronous:
            backend = cast("Backend", Portal(backend))
        self._stack.callback(backend.close)
        return backend

    def hang_up(self) -> None:
        """Close what callers use, and take another for those to come: what was to be said has been said."""
        self.client.close()
        self.client = self.backend()

    def toy(self, name: str = "toy") -> Toy:
        toy = Toy(self.log, name)
        self._toys.append(toy)
        return toy

    def serve(
        self,
        answer: Answer | None = None,
        *addresses: Address,
        handler: Handler | None = None,
        backend: Backend | None = None,
        **options: Any,
    ) -> tuple[Server, threading.Thread]:
        """A server that runs in a thread, until the end of the test; by default a toy on the queue. `handler`
        stands for an answer, and may finish later; `backend` is one that serves already, else there is
        another. Options are those of `Backend.server`."""
        server = (backend or self.backend()).server(
            addresses or [self.queue()], handler or answering(answer or self.toy()), **options
        )
        thread = threading.Thread(target=server.run)
        thread.start()

        def end() -> None:
            server.stop()
            self.release()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "run() did not return after stop()"

        self._stack.callback(end)
        return server, thread

    def release(self) -> None:
        """Let the toys go on that hold something."""
        for toy in self._toys:
            toy.released.set()

    def spawn(self, kind: str = "toy") -> subprocess.Popen[bytes]:
        """A process that serves a toy on the queue; a "detached" one finishes only what is odd."""
        command = [sys.executable, "-m", self.module, self.url, self.name(), str(self.log.path), kind]
        process = subprocess.Popen(command)

        def end() -> None:
            process.kill()
            process.wait()

        self._stack.callback(end)
        return process

    def ask(self, body: bytes, to: Address | None = None, ttl: float | None = 30, **headers: str) -> Replies:
        """A request; its way back is closed at the end of the test."""
        replies = self.client.request(to or self.queue(), request(body, ttl, **headers))
        self._stack.callback(replies.close)
        return replies

    def tell(self, body: bytes, to: Address | None = None, **headers: str) -> str:
        message = Message(body, {"id": uuid4().hex, **headers})
        self.client.send(to or self.queue(), message)
        return message.id


def request(body: bytes, ttl: float | None = 30, **headers: str) -> Message:
    id = uuid4().hex
    return Message(body, {"id": id, "reply-to": id, **headers}).replace(ttl=ttl)


def eventually(check: Callable[[], Any], what: str = "it never happened", *, within: float = PATIENCE) -> Any:
    """What `check` returns, as soon as it is true."""
    end = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return result


def main(
    url: str, name: str, path: str, kind: str, *, made: Callable[[str], Backend] = backend_from_url
) -> None:
    """Serve a toy on a queue, in a process of its own."""
    toy = Toy(Log(Path(path)))
    toy.released.set()
    handler = toy.finish_odd if kind == "detached" else answering(toy)
    made(url).server([queue(name)], handler, coroutines=1000).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
