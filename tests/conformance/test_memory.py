from collections import deque
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from rpc.backends.memory import MemoryBackend
from rpc.testing.conformance import Conformance, Site
from rpc.transport import queue


class TestMemory(Conformance):
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with Site(f"memory://{uuid4().hex}", asynchronous=self.asynchronous) as site:
            yield site


class TestMemoryInALoop(TestMemory):
    asynchronous = True


def test_a_queue_is_made_by_one_thread_at_a_time(memory_url: str) -> None:
    """Two that made it at once had each its own: what was sent into the one was not found in the other."""
    backend = MemoryBackend(memory_url)
    is_locked: list[bool] = []

    def made() -> deque[Any]:
        is_locked.append(backend.hub.lock._is_owned())  # type: ignore[attr-defined]
        return deque()

    backend.hub.waiting.default_factory = made
    server = backend.server([queue("default")], lambda delivery: None)
    server.stop()
    server.run()
    assert is_locked == [True]
