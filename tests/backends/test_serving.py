"""What the backends do alike when they serve."""

import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

import pytest

from rpc.backends import _serving
from rpc.backends._serving import Turns
from rpc.testing.site import eventually


class Crew:
    """Threads that take turns at what is put there."""

    def __init__(self) -> None:
        self.work: SimpleQueue[threading.Event] = SimpleQueue()
        self.begun: list[threading.Event] = []
        self.stopped = False
        self.turns = Turns(self.fetch, self.handle, lambda: self.stopped)
        self.threads: list[threading.Thread] = []

    def join(self) -> None:
        """One more."""
        self.threads.append(threading.Thread(target=self.turns.work))
        self.threads[-1].start()

    def fetch(self) -> threading.Event | None:
        try:
            return self.work.get(timeout=0.01)
        except Empty:
            return None

    def handle(self, end: threading.Event) -> None:
        self.begun.append(end)
        assert self.stopped or end.wait(30)

    def put(self, number: int = 1) -> None:
        for _ in range(number):
            self.work.put(threading.Event())


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.stopped = True
    for end in crew.begun:
        end.set()
    for thread in crew.threads:
        thread.join(30)
        assert not thread.is_alive()


def test_who_comes_while_the_only_thread_handles_something_takes_the_turn(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serving, "STUCK", 1.0)  # it comes before the other one is known to be slow
    crew.join()
    crew.put(2)
    eventually(lambda: len(crew.begun) == 1)
    crew.join()
    eventually(lambda: len(crew.begun) == 2)


def test_all_threads_handle_something_at_a_time(crew: Crew) -> None:
    for _ in range(8):
        crew.join()
    crew.put(8)
    eventually(lambda: len(crew.begun) == 8)


def test_one_that_is_slow_all_of_a_sudden_is_replaced(crew: Crew) -> None:
    crew.join()
    for _ in range(200):  # fast ones: the leader stays the leader
        end = threading.Event()
        end.set()
        crew.work.put(end)
    eventually(lambda: len(crew.begun) == 200)
    crew.join()
    crew.put(2)
    eventually(lambda: len(crew.begun) == 202)


def test_who_looks_after_a_leader_is_not_woken_for_each_message(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[None] = []
    wake = crew.turns._have_watched
    monkeypatch.setattr(crew.turns, "_have_watched", lambda: (woken.append(None), wake()))
    crew.join()
    crew.join()
    done = threading.Event()
    done.set()
    began = time.monotonic()
    for number in range(1000):
        crew.work.put(done)
        while len(crew.begun) <= number:
            time.sleep(0)
    # Whoever has looked in vain, once for each STUCK seconds, a few times, waits to be woken.
    assert len(woken) <= 1 + (time.monotonic() - began) / (2 * _serving.STUCK)
