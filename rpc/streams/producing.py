"""The receiver's end of streams: generators are advanced as far as their callers take items.

A generator waits for credit without a thread. A plain one is advanced by a pool, by one thread at a time, and
in one context from its first line to its last; an async one by a coroutine of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from ..core.codecs import Codec
from ..core.handling import Spawn
from ..core.jobs import AsyncRequest, Request, current_request
from ..core.streams import (
    ALIVE,
    CREDIT,
    IDLE,
    INBOX,
    OPEN,
    PING,
    SEND,
    THROW,
    UPLOAD,
    Sending,
    credit_in,
    to_throw,
)
from ..core.work import Work
from ..errors import Cancelled, RpcError, SerializationError, shown
from ..transport import STREAM, Delivery, Message
from .uploads import AsyncUploads, Uploads

logger = logging.getLogger(__name__)

COLLECT = 0.005
"""Seconds that an item waits for more to travel with, at most."""
AGAIN = 0.5
"""Seconds between two attempts to send what could not be sent."""

Later = Callable[[float, Callable[[], None]], bool]
"""Does something after so many seconds; False if it will not."""


class OpenStreams:
    """The streams of one receiver, by the ids of their requests."""

    def __init__(
        self,
        inbox: str,
        *,
        idle: float,
        detaches: bool,
        submit: Callable[[Callable[[], None]], object],
        spawn: Spawn,
        later: Later,
    ) -> None:
        """What is sent to `inbox` is to be given to `hear`. A stream whose caller is not heard of for `idle`
        seconds is ended. A handler may return before its stream has ended, if it `detaches`. `submit` has
        something done in a thread, `spawn` in an event loop."""
        self.inbox, self.idle, self.detaches = inbox, idle, detaches
        self.submit, self.spawn, self.later = submit, spawn, later
        self._open: dict[str, OpenStream] = {}
        self._is_watching = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, delivery: Delivery, request: Request, codec: Codec) -> OpenStream:
        """Begin the conversation that a request asks for. Raises SerializationError."""
        stream = self._open[request.id] = OpenStream(self, delivery, codec)
        if UPLOAD in request.headers:
            kind = AsyncUploads if isinstance(request, AsyncRequest) else Uploads
            stream.uploads = request._uploads = kind(codec, stream.say)
        try:
            stream.begin()
        except RpcError:
            stream.end()
            raise
        self._watch()
        return stream

    def ended(self, id: str) -> None:
        """There is nothing more to be said in this one."""
        self._open.pop(id, None)

    def hear(self, delivery: Delivery) -> None:
        """A `Handler`: what came to the inbox."""
        delivery.finish(None)
        message = delivery.message
        if stream := self._open.get(message.id):
            try:
                stream.hear(message)
            except SerializationError as error:  # anybody may have put it there
                logger.warning("a message to stream %s makes no sense: %s", shown(message.id), shown(error))

    def _watch(self) -> None:
        with self._lock:
            if not self._is_watching:
                self._is_watching = self.later(self.idle / 4, self._look)

    def _look(self) -> None:
        late = time.monotonic() - self.idle
        for stream in [each for each in list(self._open.values()) if each.heard < late]:
            stream.abandon(f"its caller was not heard of for {self.idle:g} s")
        with self._lock:
            self._is_watching = bool(self._open) and self.later(self.idle / 4, self._look)


class OpenStream:
    """One conversation: a request in the hands of a handler, and what its caller says meanwhile."""

    def __init__(self, streams: OpenStreams, delivery: Delivery, codec: Codec) -> None:
        self.streams, self.delivery, self.codec = streams, delivery, codec
        self.heard = time.monotonic()
        self.uploads: Uploads | AsyncUploads | None = None
        self._production: Production | None = None
        self._saying = threading.Lock()
        """Held to reply: a delivery numbers its replies."""

    def begin(self) -> None:
        """Tell the caller that it is begun, and where it is heard. Raises BackendUnavailable."""
        if self.uploads:
            self.delivery.on_cancel = partial(self.abandon, "its caller has left")
        more = self.uploads.credit() if self.uploads else {}
        self.say({STREAM: OPEN, INBOX: self.streams.inbox, IDLE: f"{self.streams.idle:g}", **more})

    def say(self, headers: dict[str, str], body: bytes = b"") -> bool:
        """Send a reply before the last one; False if nobody listens. Raises BackendUnavailable."""
        about = {"id": self.delivery.message.id, "content-type": self.codec.content_type}
        with self._saying:
            return self.delivery.reply(Message(body, {**about, **headers}))

    def hear(self, message: Message) -> None:
        """What the caller says. Raises SerializationError if that is nothing that can be said."""
        self.heard = time.monotonic()
        if PING in message.headers:
            with suppress(RpcError):  # it asks again
                self.say({STREAM: ALIVE})
        if self.uploads and UPLOAD in message.headers:
            self.uploads.put(message)
        elif self._production and CREDIT in message.headers:
            self._production.take(message)

    def abandon(self, why: str) -> None:
        """The caller is gone."""
        if self.uploads:
            self.uploads.fail(Cancelled(why))
        if self._production:
            self._production.close(Cancelled(why))

    def produce(self, work: Work, request: Request, generator: Any) -> None:
        """Send the items of a generator. Returns before its end, if the backend can."""
        kind = AsyncProduction if isinstance(generator, AsyncGeneratorType) else PlainProduction
        self._production = kind(self, work, request, generator)
        work.waits(thread=not self.streams.detaches)
        self._production.begin()
        if not self.streams.detaches:
            self._production.wait()

    def end(self) -> None:
        """There is nothing more to be said."""
        self.streams.ended(self.delivery.message.id)
        if self.uploads:
            self.uploads.fail(Cancelled("the handler has ended"))


class Production:
    """A generator in the hands of a receiver, and the items that wait to be sent. Any thread."""

    def __init__(self, stream: OpenStream, work: Work, request: Request) -> None:
        self._stream, self._work, self._request = stream, work, request
        self._sending = Sending(*credit_in(stream.delivery.message))
        self._value: Any = None
        """What `yield` returns."""
        self._error: BaseException | None = None
        """What it raises instead."""
        self._closing: BaseException | None = None
        """Why there is to be an end."""
        self._is_closing = self._is_over = self._is_waiting = False
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
                value = self._stream.codec.decode(message.body)
            elif kind == THROW:
                error = to_throw(message.body, self._stream.codec)
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

    def _resumption(self) -> tuple[Any, BaseException | None]:
        value, error = self._value, self._error
        self._value = self._error = None
        return value, error

    def _collect(self, item: Any) -> None:
        """Send it, now or a little later. Raises SerializationError."""
        encoded = self._work.encoded_item(item)
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
            if not self._is_over:
                self._flush()

    def _flush(self) -> None:
        sending = self._sending
        if not sending.unsent:
            return
        try:
            listens = self._stream.say(sending.headers(), self._work.items_body(sending.unsent))
        except RpcError as error:
            logger.warning("items of %s wait: %s", shown(self._request.id), error)
            self._flush_later(AGAIN)
            return
        sending.taken()
        if not listens:
            self.close()

    def _over(self, end: Callable[[int], None]) -> None:
        """Send what is left, and say how it ended."""
        with self._lock:
            self._flush()
            self._is_over = True
        self._stream.end()
        end(self._sending.sent)
        self._has_ended.set()

    def _ended(self, value: Any) -> None:
        self._over(partial(self._work.stream_ended, self._request, value))

    def _failed(self, error: BaseException) -> None:
        self._over(partial(self._work.stream_failed, self._request, error))


class PlainProduction(Production):
    """Of a plain generator: advanced by whichever thread is free."""

    def __init__(
        self, stream: OpenStream, work: Work, request: Request, generator: Generator[Any, Any, Any]
    ) -> None:
        super().__init__(stream, work, request)
        self._generator, self._context = generator, copy_context()
        self._context.run(current_request.set, request)
        self._is_running = False

    def begin(self) -> None:
        delivery = self._stream.delivery
        delivery.on_cancel = self.close
        if delivery.cancelled:
            self.close()
        self.wake()

    def wake(self) -> None:
        with self._lock:
            is_wanted = self._is_closing or self._sending.has_room
            if self._is_running or self._is_over or not is_wanted:
                return
            self._is_running = True
        self._stream.streams.submit(self._advance)

    def _advance(self) -> None:
        """Take items out of the generator, until there is no more credit, or an end."""
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

    def _next_step(self) -> Callable[[], Any] | None:
        with self._lock:
            if self._is_over:
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
        self._failed(self._closing or Cancelled("its caller has left"))


class AsyncProduction(Production):
    """Of an async generator: advanced in an event loop."""

    def __init__(
        self, stream: OpenStream, work: Work, request: Request, generator: AsyncGenerator[Any, Any]
    ) -> None:
        super().__init__(stream, work, request)
        self._generator = generator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def begin(self) -> None:
        coroutine = self._drive()
        try:
            self._stream.streams.spawn(coroutine, self._stream.delivery)
        except RpcError:  # there can be no thread for the event loop
            coroutine.close()
            raise

    def wake(self) -> None:
        if self._is_closing and (cancel := self._stream.delivery.on_cancel):
            cancel()
        elif self._loop:
            with suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._woken.set)

    async def _drive(self) -> None:
        self._loop = asyncio.get_running_loop()
        current_request.set(self._request)
        try:
            while not self._is_closing:
                if self._sending.has_room:
                    self._collect(await self._advance())
                else:
                    self._woken.clear()
                    if not (self._sending.has_room or self._is_closing):
                        await self._woken.wait()
        except StopAsyncIteration:
            self._ended(None)
            return
        except asyncio.CancelledError:
            self._closing = self._closing or Cancelled("its caller has left")
        except BaseException as error:  # a generator may raise anything, and its caller must be told
            self._closing = error
        await self._end()

    async def _advance(self) -> Any:
        value, error = self._resumption()
        if error:
            return await self._generator.athrow(error)
        return await self._generator.asend(value)

    async def _end(self) -> None:
        error = self._closing or Cancelled("its caller has left")
        try:
            await self._generator.aclose()
        except BaseException as other:  # what its `finally` raised
            error = other
        self._failed(error)
