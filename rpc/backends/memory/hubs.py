"""The hubs of this process, and what becomes of them in its forks."""

from __future__ import annotations

import threading
from collections import defaultdict
from os import register_at_fork

from .hub import Hub

HUBS: defaultdict[tuple[str, str], Hub] = defaultdict(Hub)
"""By URL and prefix. They name the same hub everywhere in the process, as they name the same broker
elsewhere."""


class _Fork(threading.local):
    """A process forks while no other thread is in a hub: no lock stays locked in the child. Who serves and
    what waits are the parent's."""

    def before(self) -> None:
        self._hubs = list(HUBS.values())
        for hub in self._hubs:
            hub.lock.acquire()

    def after(self) -> None:
        for hub in reversed(self._hubs):
            hub.lock.release()

    def after_in_child(self) -> None:
        for hub in self._hubs:
            hub.begin()
        self.after()


_fork = _Fork()
register_at_fork(before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child)
