"""Generators in the hands of a receiver: they are advanced as far as their callers take items.

A generator waits for credit without a thread. A plain one is advanced by a pool, by one thread at a time, and
in one context from its first line to its last; an async one by a coroutine of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

from ..core.codecs import Accepted
from ..core.handling import Spawn, contained
from ..core.jobs import Request, current_request
from ..core.streams import SEND, THROW, Sending, credit_in, to_throw
from ..core.work import Work
from ..errors import Cancelled, RpcError, SerializationError, shown
from ..transport import STREAM, Delivery, Message

logger = logging.getLogger(__name__)

COLLECT = 0.005
"""Seconds that an item waits for more to travel with, at most."""
AGAIN = 0.5
"""Seconds between two attempts to send what could not be sent."""
TURN = 0.02
"""Seconds after which a generator that has not used up its credit lets others run."""

Later = Callable[[float, Callable[[], None]], bool]
"""Does something after so many seconds; False if it will not."""


class Means(Protocol):
    """What a receiver has things done with: in a thread, in an event loop, later."""

    spawn: Spawn
    later: Later

    def submit(self, action: Callable[[], None]) -> object: ...


class Talk(Protocol):
    """The conversation of which the items of a generator are a part."""

    delivery: Delivery
    accept: Accepted
    """What can be read of its caller."""

    @property
    def streams(self) -> Means: ...

    def say(self, headers: Mapping[str, str], body: bytes = b"") -> bool:
        """Send a reply before the last one; False if nobody listens. Raises BackendUnavailable."""

    def abandon(self, why: str) -> None:
        """The caller is gone."""

    def end(self) -> None:
        """There is nothing more to be said."""


class Production:
    """A generator in the hands of a receiver, and the items that wait to be sent. Any thread."""

    def __init__(self, stream: Talk, work: Work, request: Request) -> None:
        self._stream, self._work, self._request = stream, work, request
        self._writing = work.writing()
        self._sending = Sending(*credit_in(stream.delivery.message), self._writing.most_of_items)
        self._value: Any = None
        """What `yield` returns."""
        self._error: BaseException | None = None
        """What it raises instead."""
        self._closing: BaseException | None = None
        """Why there is to be an end."""
        self._is_closing = self._is_ending = self._is_over = self._is_waiting = False
        self._lock, self._has_ended = threading.RLock(), threading.Event()

    def begin(self) -> None:
        raise NotImplementedError

    def wait(self) -> None:
        """Until it is over."""
        self._has_ended.wait()

    def wake(self) -> None:
        """There is credit, or to be an end."""
        raise NotImplementedError

    def take(self, message: Message) -> None:
        """Credit, and perhaps what `yield` returns or raises. Raises SerializationError."""
        kind, items, size = message.headers.get(STREAM), *credit_in(message)
        value, error = None, None
        try:
            if kind == SEND:
                value = self._stream.accept.value(message)
            elif kind == THROW:
                error = to_throw(*self._stream.accept.opened(message))
        except SerializationError as unreadable:  # whoever said that waits for an answer
            self.close(unreadable)
            return
        with self._lock:
            if not self._sending.grant(items, size):
                return
            self._value, self._error = value, error
        self.wake()

    def close(self, why: BaseException | None = None) -> None:
        """Close the generator as soon as it does not run. `why` is what the caller is told, if he listens."""
        with self._lock:
            if self._is_closing or self._is_over:
                return
            self._is_closing, self._closing = True, why
        self.wake()

    def _leave_with_caller(self) -> None:
        delivery, leave = self._stream.delivery, partial(self._stream.abandon, "its caller has left")
        delivery.on_cancel = leave
        if delivery.cancelled:
            leave()

    def _resumption(self) -> tuple[Any, BaseException | None]:
        value, error = self._value, self._error
        self._value = self._error = None
        return value, error

    @property
    def sent(self) -> int:
        """How many items were sent, in all."""
        return self._sending.sent

    def _collect(self, item: Any) -> None:
        """Send it, now or a little later. Raises SerializationError."""
        encoded = self._writing.item(item)
        with self._lock:
            self._sending.add(encoded)
            if self._sending.is_due or not (self._is_waiting or self._flush_later(COLLECT)):
                self._flush()

    def _flush_later(self, seconds: float) -> bool:
        self._is_waiting = self._stream.streams.later(seconds, self._flush_now)
        return self._is_waiting

    def _flush_now(self) -> None:
        with self._lock:
            self._is_waiting = False
            if not (self._is_over or self._is_ending):
                self._flush()

    def _flush(self) -> None:
        if not self._is_flushed():
            self._flush_later(AGAIN)

    def _is_flushed(self) -> bool:
        """Send what is collected. False if it waits, since that cannot be done now."""
        sending, id = self._sending, self._request.id
        while batch := sending.batch():
            try:
                message = self._writing.items(id, batch, sending.headers(batch))
                listens = self._stream.say(message.headers, message.body)
            except SerializationError as error:  # of a codec that encodes items alone, and not together
                listens = True
                self.close(error)
            except RpcError as error:
                logger.warning("items of %s wait: %s", shown(id), error)
                return False
            sending.taken(batch)
            if not listens:
                self.close()
        return True

    def _over(self, end: Callable[[int], None]) -> None:
        """Send what is left, and say how it ended; later, if that cannot be sent now and somebody waits."""
        with self._lock:
            if self._is_over:
                return
            self._is_ending = True
            waits = not (self._is_flushed() or self._is_closing)
            if waits and self._stream.streams.later(AGAIN, partial(self._over, end)):
                return
            self._is_over = True
        self._stream.end()
        end(self._sending.made)
        self._has_ended.set()

    @property
    def _reason(self) -> BaseException:
        """Why it is closed."""
        return self._closing or Cancelled("its caller has left")

    def _ended(self, value: Any) -> None:
        self._over(partial(self._work.stream_ended, self._request, value))

    def _failed(self, error: BaseException) -> None:
        self._over(partial(self._work.stream_failed, self._request, error))


class PlainProduction(Production):
    """Of a plain generator: advanced by whichever thread is free."""

    def __init__(
        self, stream: Talk, work: Work, request: Request, generator: Generator[Any, Any, Any]
    ) -> None:
        super().__init__(stream, work, request)
        self._generator, self._context = generator, copy_context()
        self._context.run(current_request.set, request)
        self._is_running = False

    def begin(self) -> None:
        self._leave_with_caller()
        self.wake()

    def wake(self) -> None:
        with self._lock:
            is_wanted = self._is_closing or self._sending.has_room
            if self._is_running or self._is_over or not is_wanted:
                return
            self._is_running = True
        self._stream.streams.submit(self._advance)

    def _advance(self) -> None:
        """Take items out of the generator, until there is no more credit, or an end, or others have waited
        long enough."""
        until = time.monotonic() + TURN
        while step := self._next_step():
            try:
                item = self._context.run(self._work.in_context, step)
                if self._is_closing:
                    continue
                self._collect(item)
            except StopIteration as end:
                self._ended(end.value)
            except SerializationError as error:
                self.close(error)
            except BaseException as error:  # a generator may raise anything, and its caller must be told
                self._failed(error)
            if time.monotonic() > until and not self._is_over:
                self._stream.streams.submit(self._advance)
                return

    def _next_step(self) -> Callable[[], Any] | None:
        with self._lock:
            if self._is_over or self._is_ending:
                return None
            if self._is_closing:
                return self._close_generator
            if not self._sending.has_room:
                self._is_running = False
                return None
            value, error = self._resumption()
        if error:
            return partial(self._generator.throw, error)
        return partial(self._generator.send, value)

    def _close_generator(self) -> None:
        self._generator.close()
        self._failed(self._reason)


class AsyncProduction(Production):
    """Of an async generator: advanced in an event loop."""

    def __init__(
        self, stream: Talk, work: Work, request: Request, generator: AsyncGenerator[Any, Any]
    ) -> None:
        super().__init__(stream, work, request)
        self._generator = generator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._is_finishing = False

    def begin(self) -> None:
        coroutine = self._drive()
        try:
            self._stream.streams.spawn(coroutine, self._stream.delivery)
        except RpcError:  # there can be no thread for the event loop
            coroutine.close()
            raise

    def wake(self) -> None:
        if self._loop:
            with suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        if self._is_closing and self._task and not self._is_finishing:
            self._task.cancel()
        self._woken.set()

    async def _drive(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        current_request.set(self._request)
        self._leave_with_caller()
        try:
            await contained(self._produce(), self._work.context)
        except asyncio.CancelledError:  # before its first line
            self._failed(self._reason)
        except BaseException as error:  # a generator may raise anything, and its caller must be told
            self._failed(error)
        else:
            self._ended(None)

    async def _produce(self) -> None:
        """Send its items. Raises what it raises, or why it is closed."""
        until = time.monotonic() + TURN
        try:
            while not self._is_closing:
                if self._sending.has_room:
                    self._collect(await self._advance())
                    if time.monotonic() > until:
                        await asyncio.sleep(0)
                        until = time.monotonic() + TURN
                else:
                    self._woken.clear()
                    if not (self._sending.has_room or self._is_closing):
                        await self._woken.wait()
        except StopAsyncIteration:
            return
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # raised again below, once its `finally` has run
            self._closing = error
        finally:
            self._is_finishing = True  # what its `finally`, or the context, awaits is not to be cancelled
        await self._generator.aclose()
        raise self._reason

    async def _advance(self) -> Any:
        value, error = self._resumption()
        if error:
            return await self._generator.athrow(error)
        return await self._generator.asend(value)
