"""RabbitMQ, as a broker of the fault suite."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from rpc.backends.amqp import AmqpBackend
from rpc.transport import queue
from tests.rabbit import Node

from .broker import Broker
from .wire import of_amqp

QUEUES = "default", "high", "low"


class Rabbit(Broker):
    """A vhost of a node; `close` is called at its end. With a vhost of its own it is nobody else's."""

    name, lease, remembers_calls, counts_in_copies = "RabbitMQ", 2.0, False, True
    keeps_topics, outlasts_pauses, frame_end = False, False, staticmethod(of_amqp)

    def __init__(self, node: Node, url: str, close: Callable[[], object] = lambda: None) -> None:
        self.node, self.port, self.close_node = node, node.port, close
        self.vhost = urlsplit(url).path[1:] or "/"
        self.backend = AmqpBackend(url)

    @classmethod
    def alone(cls, node: Node) -> Rabbit:
        """On a node that nobody else uses, and that may be killed."""
        node.start()
        broker = cls(node, node.url, partial(node.stop, signal.SIGKILL))
        broker.declare(*QUEUES)
        return broker

    def declare(self, *names: str) -> None:
        self.backend.declare(*map(queue, names))

    def url(self, host: str, port: int, **options: Any) -> str:
        options["heartbeat"] = max(self.lease, options.pop("lease"))
        return f"amqp://{host}:{port}/{self.vhost.removeprefix('/')}?{urlencode(options)}"

    def close(self) -> None:
        self.backend.close()
        self.close_node()

    def crash(self, pause: float = 0.0) -> None:
        self.node.stop(signal.SIGKILL)
        time.sleep(pause)
        self.node.start()

    def send_signal(self, number: int) -> None:
        self.node.send_signal(number)

    def cut(self) -> None:
        self.node.control("close_all_connections", "-p", self.vhost, "a fault")

    def fill(self, *, full: bool = True) -> None:
        self.node.control("set_vm_memory_high_watermark", "0.00001" if full else "0.9")

    def waiting(self) -> int:
        return self.backend.queue_info("default").workers

    def connections(self) -> int:
        ours = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_socket()}
        known = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        there = f":{self.port:04X}"
        return sum(fields[2].endswith(there) and f"socket:[{fields[9]}]" in ours for fields in known)

    def keys(self) -> dict[str, int]:
        queues = self.node.listed("queues", "name", "arguments", "auto_delete", vhost=self.vhost)
        return {each["name"]: _kept(each) for each in queues}

    def size(self) -> int:
        queues = self.node.listed("queues", "message_bytes", vhost=self.vhost)
        return sum(each["message_bytes"] for each in queues)


def _kept(listed: dict[str, Any]) -> int:
    arguments = {name: value for name, _, value in listed["arguments"]}
    ends_with_its_owner = 0 if listed["auto_delete"] else -1
    return int(arguments.get("x-expires", ends_with_its_owner))
