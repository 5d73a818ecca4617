"""The state of a connection, without I/O: what was asked and not answered yet, what was published and not
confirmed, who listens on which channel, why it broke. For threads and for event loops."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator
from threading import RLock
from typing import Any, Protocol

from pamqp import base

from .servers import Terms
from .wire import Arrival, Basic, Broken, Channel, Confirm, Connection, Wire, frames, published

logger = logging.getLogger(__name__)

_NEWS = (Connection.Close, Channel.Close, Basic.Cancel, Connection.Blocked, Connection.Unblocked)


Steps = Generator[Callable[[Any], Any], Any, None]
"""What to do with a connection, one after the other: each is given what came of the one before."""


class Answer(Protocol):
    """A future: of asyncio, or of concurrent.futures; or what acts like one."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, error: Any, /) -> None: ...


class Dialogue:
    """The base of both connections. It breaks once, and is of no use then. A channel is opened by its first
    use."""

    def __init__(self) -> None:
        self.failure: Broken | None = None
        """Why it is of no use any more."""
        self.terms = Terms(4096, 1, 0)
        self.blocked = ""
        """Why RabbitMQ takes no messages at present; "" if it does."""
        self.listeners: dict[int, Callable[[Arrival], object]] = {}
        """Who hears what is delivered on a channel."""
        self.order = RLock()
        """Held to say something that will be answered, and to hear."""
        self._wire, self._opened = Wire(), {0}
        self._asked: dict[int, deque[tuple[tuple[type[Any], ...], Answer]]] = {}
        self._tags: dict[int, int] = {}
        """How many messages were published on each channel with confirms."""
        self._unconfirmed: dict[int, dict[int, tuple[str, Answer]]] = {}
        self._returned: dict[str, Arrival] = {}
        """What came back and will be confirmed next, by id."""

    def put(self, data: bytes) -> None:
        """Let it leave, after all that was put before."""
        raise NotImplementedError

    def tell(self, channel: int, *methods: base.Frame) -> None:
        """Say what has no answer, or one that nobody needs."""
        with self.order:
            self.put(self._opening(channel) + frames(channel, *methods))

    def expect(self, channel: int, expected: tuple[type[Any], ...], answer: Answer) -> None:
        """The answer will be an Arrival with one of these methods."""
        self._asked.setdefault(channel, deque()).append((expected, answer))

    def say(self, channel: int, method: base.Frame, expected: tuple[type[Any], ...], answer: Answer) -> None:
        """Ask. Raises Broken."""
        with self.order:
            self._check()
            self.expect(channel, expected, answer)
            self.tell(channel, method)

    def publish(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> None:
        """Publish what nobody asks for."""
        with self.order:
            if channel in self._tags:
                self._tags[channel] += 1
            self.put(published(channel, key, properties, body, self.terms.frame_max, **how))

    def publish_safely(
        self, channel: int, key: str, properties: Any, body: bytes, answer: Answer, **how: Any
    ) -> None:
        """The answer is None once RabbitMQ has it, or what says that it has not. Raises Broken."""
        said = published(channel, key, properties, body, self.terms.frame_max, mandatory=True, **how)
        with self.order:
            self._check()
            if channel not in self._tags:
                self._tags[channel], self._unconfirmed[channel] = 0, {}
                self.tell(channel, Confirm.Select(nowait=True))
            self._tags[channel] += 1
            self._unconfirmed[channel][self._tags[channel]] = properties.correlation_id or "", answer
            self.put(said)

    def _opening(self, channel: int) -> bytes:
        if channel in self._opened:
            return b""
        self._opened.add(channel)
        return frames(channel, Channel.Open())

    def _check(self) -> None:
        if self.failure:
            raise self.failure

    def hear(self, data: bytes) -> None:
        """Raises Broken if this is the end, when all else that came has been heard."""
        failure = None
        with self.order:
            for arrival in self._wire.feed(data):
                try:
                    self._sort(arrival)
                except Broken as error:
                    failure = error
        if failure:
            raise failure

    def _sort(self, arrival: Arrival) -> None:
        channel, method = arrival.channel, arrival.method
        if isinstance(method, Basic.Deliver):
            if listener := self.listeners.get(channel):
                self._tell(listener, arrival)
        elif isinstance(method, Basic.Ack | Basic.Nack):
            self._confirm(arrival)
        elif isinstance(method, Basic.Return):
            self._returned[arrival.properties.correlation_id or ""] = arrival
        elif isinstance(method, _NEWS):
            self._heed(arrival)
        elif (asked := self._asked.get(channel)) and isinstance(method, asked[0][0]):
            _resolve(asked.popleft()[1], arrival)

    def _tell(self, listener: Callable[[Arrival], object], arrival: Arrival) -> None:
        try:
            listener(arrival)
        except Broken:
            raise
        except Exception:  # whatever it is, it costs this message at most
            logger.exception("a message cannot be handled")

    def _confirm(self, arrival: Arrival) -> None:
        method, unconfirmed = arrival.method, self._unconfirmed.get(arrival.channel, {})
        last = method.delivery_tag
        for tag in [tag for tag in unconfirmed if tag <= last] if method.multiple else (last,):
            if entry := unconfirmed.pop(tag, None):
                back = self._returned.pop(entry[0], None) if self._returned else None
                _resolve(entry[1], arrival if isinstance(method, Basic.Nack) else back)

    def _heed(self, arrival: Arrival) -> None:
        method, channel = arrival.method, arrival.channel
        if isinstance(method, Connection.Blocked):
            self.blocked = f"it takes no messages at present: {method.reason}"
        elif isinstance(method, Connection.Unblocked):
            self.blocked = ""
        elif isinstance(method, Basic.Cancel):
            raise Broken("a queue that was served is gone")
        else:
            is_channel = isinstance(method, Channel.Close)
            self.put(frames(channel, Channel.CloseOk() if is_channel else Connection.CloseOk()))
            error = Broken(f"{method.reply_code} {method.reply_text}", method.reply_code)
            if not is_channel or not self._asked.get(channel):
                raise error
            self.closed(channel, error)

    def closed(self, channel: int, error: Broken | None = None) -> None:
        """The channel was closed: what was asked there was refused. It is opened again by its next use."""
        self._opened.discard(channel)
        self._tags.pop(channel, None)
        answers = [answer for _, answer in self._asked.pop(channel, ())]
        for answer in answers + [answer for _, answer in self._unconfirmed.pop(channel, {}).values()]:
            if not answer.done():
                answer.set_exception(error)

    def end(self, error: BaseException) -> Broken:
        """Nothing will be heard any more, for this reason. The first one."""
        with self.order:
            failure = error if isinstance(error, Broken) else Broken(str(error) or type(error).__name__)
            self.failure = self.failure or failure
            for channel in {*self._asked, *self._unconfirmed}:
                self.closed(channel, self.failure)
            return self.failure


def _resolve(answer: Answer, result: Arrival | None) -> None:
    if not answer.done():  # whoever waited may have given up
        answer.set_result(result)
