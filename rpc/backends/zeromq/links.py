"""A socket that connects to one endpoint, and how it is found out at once whether somebody has come there.

ZeroMQ tries again where nobody is, but only each half second: what is published meanwhile, somebody who has
just come would miss. So whoever publishes has it try now, and is told by ZeroMQ if that was in vain.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator

import zmq

from .session import Route

logger = logging.getLogger(__name__)

CLOSED, AGAIN = int(zmq.EVENT_CLOSED), int(zmq.EVENT_CONNECT_RETRIED)
"""What ZeroMQ says when an attempt has failed, and, after that or when a connection breaks, that it will try
again."""
EVENT = struct.Struct("=H")


class Link:
    """Not for several threads at a time, but for `is_settled`."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self.socket, self.endpoint, self.route = socket, endpoint, Route(socket)
        self.greeted = 0.0
        """When HELLO was said last on this connection; 0: not yet."""
        self.monitor: zmq.Socket[bytes] | None = None
        """Where ZeroMQ says that it will try again later, once it was asked for."""
        self.is_slow = False
        """Whether nothing was heard from there for long: neither an answer nor that nobody is there."""
        self._tried = self._failed = self._wanted = 0
        """Attempts that were asked for, by number: the last one that was begun, that failed, that is to be
        made."""
        self._answered = self._is_closed = self._is_trying = False

    def look(self) -> int:
        """Find out whether somebody is there; the number of the attempt that will tell."""
        self._answered = False
        self._wanted = self._tried + 1
        if not self._is_trying and (self.greeted or not self.route.is_open()):
            self._try()  # whoever was greeted has left
        return self._wanted

    def is_settled(self, number: int) -> bool:
        """Whether somebody has answered since, or this attempt has failed. Any thread."""
        return self._answered or self._failed >= number or self.is_slow

    def answered(self) -> None:
        """Somebody is there."""
        self._answered, self.is_slow, self._is_trying = True, False, False

    def hear(self) -> bool:
        """Take what ZeroMQ says; whether it says that there is no connection."""
        is_lost = False
        for event in self._events():
            if event == CLOSED:  # of an attempt, or of one that was given up for another
                self._is_closed = True
            else:
                is_lost, self.greeted, self._is_trying = True, 0.0, False
                if self._is_closed:  # else a connection broke
                    self._is_closed, self._failed = False, self._tried
        if is_lost and self._wanted > self._tried:
            self._try()
        return is_lost

    def _try(self) -> None:
        self._tried, self.greeted, self._is_trying = self._wanted, 0.0, True
        try:
            if self.monitor is None:
                self.monitor = self.socket.get_monitor_socket(CLOSED | AGAIN)
                self.monitor.linger = 0
            for _ in self._events():  # of what was before
                pass
            self._is_closed = False
            self.socket.disconnect(self.endpoint)
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:  # no more sockets, or descriptors: ZeroMQ goes on in its own time
            logger.warning("it is not known whether somebody is at %s: %s", self.endpoint, error)
            self.is_slow = True

    def _events(self) -> Iterator[int]:
        while self.monitor and int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield EVENT.unpack_from(self.monitor.recv_multipart()[0])[0]

    def close(self) -> None:
        self.is_slow = True
        if self.monitor is not None:
            self.socket.disable_monitor()
        self.socket.close()


class Look:
    """One for somebody who is about to publish. `changed` is called, by whoever has the turn, when it may be
    over."""

    def __init__(self, links: list[Link], patience: float, changed: Callable[[], object]) -> None:
        """Who says nothing for `patience` seconds is not waited for again until he has answered."""
        self._looked = [(link, link.look()) for link in links]
        self._end, self.changed = time.monotonic() + patience, changed

    def is_over(self) -> bool:
        """Whether it is known of all. Any thread."""
        return all(link.is_settled(number) for link, number in self._looked)

    def end(self) -> None:
        """It is over, its time is up, or nobody wants to know any more."""
        if time.monotonic() >= self._end:
            for link, number in self._looked:
                link.is_slow = link.is_slow or not link.is_settled(number)
