"""The receiver's end of streams: which are open, what their callers say, and which callers are gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from ..core.codecs import Accepted, Codec
from ..core.handling import Spawn
from ..core.jobs import AsyncRequest, Request
from ..core.streams import ALIVE, CREDIT, IDLE, INBOX, OPEN, PING, SEQ, UPLOAD, number_in
from ..core.work import Work
from ..errors import Cancelled, QueueFull, RpcError, SerializationError, shown
from ..threads import DaemonThreads
from ..transport import STREAM, Delivery, Message
from .generators import AsyncProduction, Later, PlainProduction, Production
from .limit import StreamLimit, client_of
from .uploads import AsyncUploads, Uploads

logger = logging.getLogger(__name__)

ADVANCING = 4
"""Threads that advance plain generators, at most. They hold none while they wait for their callers."""


class OpenStreams:
    """The streams of one receiver, by the ids of their requests."""

    def __init__(
        self,
        inbox: str,
        *,
        idle: float,
        detaches: bool,
        threads: int,
        limit: StreamLimit,
        spawn: Spawn,
        later: Later,
        accept: Accepted,
    ) -> None:
        """What is sent to `inbox` is to be given to `hear`, and is read as `accept` says. A stream whose
        caller is not heard of for `idle` seconds is ended. A handler may return before its stream has ended,
        if it `detaches`. Plain generators are advanced in that many `threads`, but in few, and `spawn` has
        something done in an event loop."""
        self.inbox, self.idle, self.detaches = inbox, idle, detaches
        self.spawn, self.later, self.accept, self.limit = spawn, later, accept, limit
        self._pool = DaemonThreads(min(threads, ADVANCING), "rpc-generators")
        self._open: dict[str, OpenStream] = {}
        self._is_watching = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def submit(self, action: Callable[[], None]) -> None:
        """Have it done in a thread, or in this one if there can be no other."""
        try:
            self._pool.run(action)
        except RuntimeError:
            action()

    def open(self, delivery: Delivery, request: Request, codec: Codec) -> OpenStream:
        """Begin the conversation that a request asks for. Raises SerializationError, and QueueFull if its
        client has as many as it may."""
        stream = OpenStream(self, delivery, codec)
        if self._open.setdefault(request.id, stream) is not stream:
            raise SerializationError("there is a stream of this id already")
        try:
            if (client := client_of(delivery)) is not None:
                self.limit.begin(client)
        except QueueFull:
            self.ended(request.id)
            raise
        stream.client = client
        if UPLOAD in request.headers:
            kind = AsyncUploads if isinstance(request, AsyncRequest) else Uploads
            stream.uploads = request._uploads = kind(self.accept, stream.say)
        try:
            stream.begin()
        except RpcError:
            stream.end()
            raise
        self._watch()
        return stream

    def ended(self, id: str) -> None:
        """There is nothing more to be said in this one."""
        stream = self._open.pop(id, None)
        if stream and stream.client is not None:
            self.limit.end(stream.client)

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
        self.streams, self.delivery, self._codec = streams, delivery, codec
        self.accept = streams.accept
        self.heard = time.monotonic()
        self.client: str | None = None
        """Whose it is, if it is counted."""
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

    def say(self, headers: Mapping[str, str], body: bytes = b"") -> bool:
        """Send a reply before the last one; False if nobody listens. Raises BackendUnavailable."""
        about = {"id": self.delivery.message.id, "content-type": self._codec.content_type}
        with self._saying:
            return self.delivery.reply(Message(body, {**about, **headers}))

    def hear(self, message: Message) -> None:
        """What the caller says. Raises SerializationError if that is nothing that can be said."""
        self.heard = time.monotonic()
        if PING in message.headers:
            self._answer(message)
        if self.uploads and UPLOAD in message.headers:
            self.uploads.put(message)
        elif self._production and CREDIT in message.headers:
            self._production.take(message)

    def _answer(self, ping: Message) -> None:
        """Give a sign of life, with which both find out whether something was lost."""
        if self.uploads and SEQ in ping.headers:
            self.uploads.expect(number_in(ping, SEQ))
        sent = self._production.sent if self._production else 0
        more = self.uploads.credit() if self.uploads else {}
        with suppress(RpcError):  # it asks again
            self.say({STREAM: ALIVE, SEQ: str(sent), **more})

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
