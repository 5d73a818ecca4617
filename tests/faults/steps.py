"""Receivers that take one step at a time, when they are told to: in threads, and in other processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Listener, Pipe
from typing import Any

from rpc.backends import backend_from_url
from rpc.testing.site import answering
from rpc.transport import STREAM, Backend, Delivery, Message, Server, queue

from .nursery import PATIENCE, Child

Event = tuple[Any, ...]


class Hand:
    """A handler that tells what it got, and then does what it is told."""

    server: Server

    def __init__(self, connection: Any) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def __call__(self, delivery: Delivery) -> Message | None:
        try:
            return self._handle(delivery)
        except (EOFError, OSError):  # the play is over
            return None

    def _handle(self, delivery: Delivery) -> Message | None:
        message = delivery.message
        if message.ttl is not None and message.ttl <= 0:
            self._tell("expired", message.id)
            return None
        delivery.on_cancel = lambda: self._tell("cancelled", message.id)
        self._tell("holds", message.id, message.deliveries)
        while True:
            order, body = self._connection.recv()
            if order == "finish":
                return Message(body, {"id": message.id}) if message.reply_to else None
            if order == "part":
                part = Message(body, {"id": message.id, STREAM: "1"})
                self._tell("sent", delivery.reply(part))
            elif order == "raise":
                raise ValueError("as I was told")
            else:
                self.server.hand_back()
                os._exit(0)

    def _tell(self, *event: Any) -> None:
        with self._lock:
            self._connection.send(event)


def server_of(backend: Backend, name: str, connection: Any) -> Server:
    hand = Hand(connection)
    hand.server = backend.server([queue(name)], answering(hand))
    return hand.server


def stepper(url: str, name: str, address: str) -> None:
    """A process that serves like that."""
    server_of(backend_from_url(url), name, Client(address)).run()


class Receiver:
    """The other end: one receiver, and what it holds."""

    def __init__(self, connection: Any, stop: Callable[[], object], join: Callable[[], object]) -> None:
        self.connection, self._stop, self.join = connection, stop, join
        self.holds: str | None = None
        self.parts = 0
        """How many replies before the last one it has sent."""

    def order(self, what: str, body: bytes = b"") -> None:
        self.connection.send((what, body))

    def next_event(self) -> Event:
        assert self.connection.poll(PATIENCE), f"a receiver that holds {self.holds} says nothing"
        return tuple(self.connection.recv())

    def end(self) -> None:
        """It takes nothing more; `join` waits until it has gone."""
        self._stop()
        self.connection.close()


def in_thread(url: str, name: str) -> Receiver:
    ours, theirs = Pipe()
    server = server_of(backend_from_url(url), name, theirs)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def join() -> None:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "run() did not return"

    return Receiver(ours, server.stop, join)


def in_process(spawn: Callable[..., Child], url: str, name: str, listener: Listener) -> Receiver:
    child = spawn("stepper", url=url, name=name, address=listener.address)
    return Receiver(listener.accept(), child.kill, child.wait)
