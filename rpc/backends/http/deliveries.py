"""What a worker has in hand, and the ways back to those who wait for it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ...errors import SerializationError, shown
from ...transport import STREAM, Address, Message
from .._serving import BaseDelivery, lost
from .wire import ONCE

logger = logging.getLogger(__name__)

KEPT = 64 * 1024
"""Bytes of a reply, at most, that is kept after it was sent."""
FAREWELL = 1.0
"""Seconds in which something that must be said before the process may die is said."""


class Back:
    """Instead of a reply: it is to be posted to another one."""

    def __init__(self, why: str) -> None:
        self.why = why


class Way:
    """The way back to whoever waits: an HTTP response in an event loop. What is put there, from any thread,
    is taken in that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._out: deque[Message | Back | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.is_gone = False
        """Nobody is there any more."""
        self.is_used = False
        """Something was sent."""
        self.is_open, self.is_cut = True, False
        """Whether somebody is there, or was and left."""
        self.bouncing: asyncio.TimerHandle | None = None
        """After which whoever is there is sent to another worker."""
        self.sent: Callable[[], object] | None = None
        """Called in the loop once all that was put there is sent."""

    def put(self, what: Message | Back | None) -> None:
        """A reply; None: there is none any more."""
        self._out.append(what)
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> Message | Back | None:
        """The next one."""
        while not self._out:
            if self.sent:
                self.sent()
            self._waiter = self._loop.create_future()
            await self._waiter
        self.is_used = True
        return self._out.popleft()

    def leave(self) -> list[Message | Back | None]:
        """Nobody is there any more: what could not be sent."""
        self.is_gone = True
        return [*self._out]


class Serving(Protocol):
    """What is needed of the server."""

    def finished(self, delivery: HttpDelivery) -> None: ...


class HttpDelivery(BaseDelivery):
    """A message that was posted."""

    def __init__(
        self, server: Serving, to: Address, message: Message, way: Way | None, caller: str | None = ""
    ) -> None:
        """Without a way nobody waits."""
        self.caller = caller
        self._server, self.to, self.message, self.way = server, to, message, way
        self._came = time.monotonic()
        self.is_begun = self.is_once = self.is_given_back = False
        self._has_replied = self._has_ended = False
        self._last: Message | Back | None = None
        """What was said last, for whoever comes again after it was sent."""
        self.may_resume = True
        """Whether it can go on for whoever comes again: not if the last reply was sent, and is not kept."""
        self._saying = threading.Lock()

    def begin(self) -> None:
        """Tell the handler how much time is left."""
        self.is_begun = True
        self.has_waited(time.monotonic() - self._came)

    @property
    def is_answered(self) -> bool:
        """The last reply is there, or there is none."""
        return self.finished or self._has_replied

    def reply(self, message: Message) -> bool:
        if self.cancelled or self.finished or self._has_replied or self.way is None:
            return False
        if STREAM not in message.headers:
            self._has_replied, self._last = True, message
        self._say(message)
        return True

    def _say(self, what: Message | Back | None) -> None:
        with self._saying:  # another way may be put in place
            if self.way:
                self.way.put(what)

    def _finish(self, last: Message | None) -> None:
        if self._has_replied:
            self._end(None, self._last)
        else:
            last = None if self.cancelled else last
            self._end(last, last)

    def _end(self, what: Message | Back | None, last: Message | Back | None) -> None:
        """Nothing is said after this."""
        with self._saying:
            self.may_resume = not isinstance(last, Message) or len(last.body) <= KEPT
            self._has_ended, self._last = True, last if self.may_resume else None
            if self.way:
                self.way.put(what)
        self._server.finished(self)

    def give_back(self, why: str, gone: str) -> None:
        """Its caller is to post it again, to another one; if he may not, he is told that it is `gone`. Any
        thread."""
        if not self.finished:
            self.finished = self.is_given_back = True
            what = lost(self.message, gone) if self.is_once else Back(why)
            self._end(what, what)

    def go_on(self, way: Way) -> None:
        """Its caller has come again, on another connection."""
        with self._saying:
            before, self.way = self.way, way
            unsent = before.leave() if before else []
            for what in unsent:
                way.put(what)
            if (self._has_ended or self._has_replied) and not unsent:
                way.put(self._last)

    def forbid_redelivery(self) -> None:
        """Returns once that is on its way to the caller, or he is gone."""
        self.is_once = True
        if (way := self.way) is None or way.is_gone:
            return
        said = threading.Event()
        way.sent = said.set
        self._say(Message(headers={ONCE: "1"}))
        said.wait(FAREWELL)


def readable(last: Message, frame: Callable[[Message], bytes]) -> bytes:
    """The frame of a reply, or of one that says that it cannot be sent."""
    try:
        return frame(last)
    except SerializationError as error:
        logger.error("the reply to %s cannot be sent: %s", last.id, shown(error))
        return frame(lost(last, "its reply cannot be sent"))
