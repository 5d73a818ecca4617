"""The state of a connection, without I/O: what was asked and not answered yet, what was published and not
confirmed, who listens on which channel, why it broke. For whoever blocks and for event loops."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pamqp import base

from .servers import Terms
from .wire import Arrival, Basic, Broken, Channel, Confirm, Connection, Wire, frames, published

_KNOWN = (Connection.Close, Channel.Close, Basic.Cancel, Connection.Blocked, Connection.Unblocked)


class Answer(Protocol):
    """A future: of asyncio, or of concurrent.futures; or what acts like one."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, error: Any, /) -> None: ...


class Dialogue:
    """Whoever calls sees to it that what `say` is given leaves in this order."""

    def __init__(self, say: Callable[[bytes], object]) -> None:
        self._say, self._wire = say, Wire()
        self.terms = Terms(4096, 1, 0)
        self.blocked = ""
        """Why RabbitMQ takes no messages at present; "" if it does."""
        self.listeners: dict[int, Callable[[Arrival], object]] = {}
        """Who hears what comes on a channel and answers no question."""
        self._opened: set[int] = {0}
        self._asked: dict[int, deque[tuple[tuple[type[Any], ...], Answer]]] = {}
        self._tags: dict[int, int] = {}
        """How many messages were published on each channel with confirms."""
        self._unconfirmed: dict[int, dict[int, tuple[str, Answer]]] = {}
        self._returned: dict[str, Arrival] = {}
        """What came back and will be confirmed next, by id."""

    # What is said.

    def ask(self, channel: int, method: base.Frame, expected: tuple[type[Any], ...], answer: Answer) -> None:
        """The answer is an Arrival with one of these methods. A channel is opened by its first use."""
        self.expect(channel, expected, answer)
        self._say(self._opening(channel) + frames(channel, method))

    def expect(self, channel: int, expected: tuple[type[Any], ...], answer: Answer) -> None:
        self._asked.setdefault(channel, deque()).append((expected, answer))

    def tell(self, channel: int, *methods: base.Frame) -> None:
        """What has no answer, or one that nobody needs."""
        self._say(self._opening(channel) + frames(channel, *methods))

    def publish(self, channel: int, key: str, properties: Any, body: bytes, **how: Any) -> None:
        """On a channel without confirms, or one where nobody asks for this one."""
        if channel in self._tags:
            self._tags[channel] += 1
        self._say(published(channel, key, properties, body, self.terms.room, **how))

    def publish_safely(
        self, channel: int, key: str, properties: Any, body: bytes, answer: Answer, **how: Any
    ) -> None:
        """The answer is None once RabbitMQ has it, or the Arrival that says that it has not."""
        said = published(channel, key, properties, body, self.terms.room, mandatory=True, **how)
        if channel not in self._tags:
            self._tags[channel], self._unconfirmed[channel] = 0, {}
            self.tell(channel, Confirm.Select(nowait=True))
        self._tags[channel] += 1
        self._unconfirmed[channel][self._tags[channel]] = properties.correlation_id or "", answer
        self._say(said)

    def _opening(self, channel: int) -> bytes:
        if channel in self._opened:
            return b""
        self._opened.add(channel)
        return frames(channel, Channel.Open())

    # What is heard.

    def hear(self, data: bytes) -> None:
        """Raises Broken if this is the end, when all else that came has been heard."""
        failure = None
        for arrival in self._wire.feed(data):
            try:
                self._sort(arrival)
            except Broken as error:
                failure = error
        if failure:
            raise failure

    def _sort(self, arrival: Arrival) -> None:
        channel, method = arrival.channel, arrival.method
        if isinstance(method, Basic.Ack | Basic.Nack):
            self._confirm(arrival)
        elif isinstance(method, Basic.Return):
            self._returned[arrival.properties.correlation_id or ""] = arrival
        elif isinstance(method, _KNOWN):
            self._heed(arrival)
        elif (asked := self._asked.get(channel)) and isinstance(method, asked[0][0]):
            _resolve(asked.popleft()[1], arrival)
        elif listener := self.listeners.get(channel):
            listener(arrival)

    def _confirm(self, arrival: Arrival) -> None:
        method, unconfirmed = arrival.method, self._unconfirmed.get(arrival.channel, {})
        last = method.delivery_tag
        for tag in [tag for tag in list(unconfirmed) if tag <= last] if method.multiple else (last,):
            if entry := unconfirmed.pop(tag, None):
                back = self._returned.pop(entry[0], None) if self._returned else None
                _resolve(entry[1], arrival if isinstance(method, Basic.Nack) else back)

    def _heed(self, arrival: Arrival) -> None:
        method = arrival.method
        if isinstance(method, Connection.Blocked):
            self.blocked = f"it takes no messages at present: {method.reason}"
        elif isinstance(method, Connection.Unblocked):
            self.blocked = ""
        elif isinstance(method, Basic.Cancel):
            raise Broken("a queue that was served is gone")
        else:
            closed = isinstance(method, Channel.Close)
            self._say(frames(arrival.channel, Channel.CloseOk() if closed else Connection.CloseOk()))
            error = Broken(f"{method.reply_code} {method.reply_text}", method.reply_code)
            if not closed or not self._asked.get(arrival.channel):
                raise error
            self.closed(arrival.channel, error)

    def closed(self, channel: int, error: Broken | None = None) -> None:
        """The channel was closed: what was asked there was refused. It is opened again by its next use."""
        self._opened.discard(channel)
        self._tags.pop(channel, None)
        answers = [answer for _, answer in self._asked.pop(channel, ())]
        for answer in answers + [answer for _, answer in self._unconfirmed.pop(channel, {}).values()]:
            if not answer.done():
                answer.set_exception(error)

    def end(self, error: Broken) -> None:
        """Nothing will be heard any more."""
        for channel in {*self._asked, *self._unconfirmed}:
            self.closed(channel, error)


def _resolve(answer: Answer, result: Arrival | None) -> None:
    if not answer.done():  # whoever waited may have given up
        answer.set_result(result)
