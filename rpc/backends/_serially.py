"""What comes to each address is done in its order."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from ..threads import DaemonThreads
from ..transport import Address

logger = logging.getLogger(__name__)


class Serially:
    """Runs what comes to each address one after the other, those of different addresses side by side: in
    threads that are started when they are needed."""

    def __init__(
        self, addresses: int, done: Callable[[], object] = lambda: None, *, in_place: bool = False
    ) -> None:
        """`done` is called after each action, once it does not count as waiting any more. `in_place`: there
        is one address, and whoever brings what comes there has nothing else to do: it is done by him, as to
        wake another thread costs more than most of it does."""
        self._in_place = in_place
        self._pool, self._done = DaemonThreads(max(1, addresses), "rpc-events"), done
        self._lock = threading.Lock()
        self._waiting: dict[Address, deque[Callable[[], object]]] = {}
        self._begun: set[Address] = set()
        """Those that a thread works off, or will."""
        self._working: set[Address] = set()
        self._ended = False

    def run(self, to: Address, action: Callable[[], object]) -> None:
        """What the action raises is logged. After the end, nothing is done."""
        if self._in_place:
            return None if self._ended else _contained(to, action)
        with self._lock:
            if self._ended:
                return
            self._waiting.setdefault(to, deque()).append(action)
            if to in self._begun:
                return
            try:
                self._pool.run(partial(self._work_off, to))
            except RuntimeError as error:  # it is begun with the next one
                logger.warning("%s waits: %s", to, error)
            else:
                self._begun.add(to)

    def waiting(self, to: Address) -> int:
        """How many actions are not done."""
        return len(self._waiting.get(to, ()))

    def end(self) -> None:
        """Forget what is not begun, and wait for the rest."""
        with self._lock:
            self._ended = True
            for waiting in self._waiting.values():
                waiting.clear()
        self._pool.shutdown()

    def _work_off(self, to: Address) -> None:
        with self._lock:
            if to in self._working:  # what could not be begun at first comes, too
                return
            self._working.add(to)
        while True:
            with self._lock:
                waiting = self._waiting.get(to)
                if not waiting:
                    self._waiting.pop(to, None)
                    self._begun.discard(to)
                    self._working.discard(to)
                    return
                action = waiting[0]
            _contained(to, action)
            with self._lock:
                if waiting:
                    waiting.popleft()
            self._done()


def _contained(to: Address, action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:  # what comes after it is done all the same
        logger.exception("what came to %s could not be handled", to)
