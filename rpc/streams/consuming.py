"""The caller's end of streams: one coroutine for each, which reads what comes, and says what is to be said.

It lives in an event loop, that of an AsyncRpcClient's user, or the one in which an RpcClient has what it
submits. What is taken out of a stream is taken by the user's own thread, or task: see `iterators`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ..caller import GRACE
from ..core.protocol import decode_items
from ..core.streams import (
    ALIVE,
    CREDIT,
    GRANT,
    IDLE,
    INBOX,
    ITEMS,
    OPEN,
    PING,
    SEQ,
    SIZE,
    UPLOAD,
    Receiving,
    Sending,
    credit_in,
    number_in,
)
from ..deadlines import within_async
from ..durations import seconds
from ..errors import (
    BackendUnavailable,
    Cancelled,
    QueueFull,
    RpcError,
    RpcTimeout,
    SerializationError,
    StreamBroken,
    WorkerLost,
)
from ..pending import PendingStream
from ..transport import STREAM, Address, AsyncBackend, AsyncReplies, Message, inbox

logger = logging.getLogger(__name__)

NOTHING = Message(b"", {})
COLLECT = 0.005
"""Seconds that an item waits for more to travel with, at most."""
SOON = 0.1
"""Seconds after which a broker that is away is tried again."""


class Items(NamedTuple):
    """Some have arrived."""

    items: list[Any]
    size: int
    """Bytes."""


class Ended(NamedTuple):
    """Nothing more will come."""

    value: Any
    error: Exception | None


class MayUpload(NamedTuple):
    """There is credit for more uploads."""


Arrival = Items | Ended | MayUpload


class Consumer:
    """One stream. It belongs to the event loop, but for what says that any thread may call it."""

    def __init__(
        self,
        backend: AsyncBackend,
        to: Address,
        pending: PendingStream,
        receiving: Receiving,
        put: Callable[[Arrival], None],
    ) -> None:
        """`put` is given what arrives, in the event loop."""
        self._backend, self._to, self._pending = backend, to, pending
        self.receiving, self.uploading, self._put = (
            receiving,
            Sending(most=pending.writing.most_of_items),
            put,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._sends: set[asyncio.Task[None]] = set()
        self._inbox: Address | None = None
        self._idle = 30.0
        self._control = GRANT, NOTHING
        """What was said last beside credit."""
        self._said = self._heard = 0.0
        self._uploaded = 0
        """How many items the broker has."""
        self._is_left = False
        self._lock, self._flushing = threading.Lock(), asyncio.Lock()

    async def run(self) -> None:
        """Ask for it, and read until its end."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_left:
            self._put(_left())
            return
        try:
            replies = await self._requested()
            try:
                await self._read(replies)
            finally:
                replies.close()
        except asyncio.CancelledError:
            self._put(_left())
            raise
        except Exception as error:  # it is raised where somebody waits
            self._put(Ended(None, error))
        finally:
            self._task = None
            for each in self._sends:  # after the client's end it would connect once more
                each.cancel()

    def close(self) -> None:
        """Leave it. Any thread; does not wait."""
        self._is_left = True
        self.call(self._leave)

    def call(self, action: Callable[..., object], *arguments: Any) -> None:
        """Have it done in the event loop, while that runs. Any thread."""
        if self._loop:
            with suppress(RuntimeError):  # it was closed, and this has ended with it
                self._loop.call_soon_threadsafe(action, *arguments)

    def say(self, kind: str, beside: Message) -> None:
        """Give credit, with this beside it."""
        self._control = kind, beside
        self._say(kind, beside)

    def upload(self, item: bytes) -> bool:
        """Collect an encoded item. Any thread. True if `flush` must be called, and waited for."""
        with self._lock:
            self.uploading.add(item)
            is_first, is_due = len(self.uploading.unsent) == 1, self.uploading.is_due
        if is_first and not is_due:
            self.call(self._flush_later)
        return is_due

    async def flush(self, *, end: bool = False) -> None:
        """Send what was collected, and perhaps that it was all. Raises RpcError."""
        async with self._flushing:
            while items := self._taken():
                await self._upload(items)
                self._uploaded = self.uploading.sent
            if end:
                await self._upload(Message(b"", {SEQ: str(self.uploading.sent)}))

    def _taken(self) -> Message | None:
        """What is collected, as much as one message carries."""
        with self._lock:
            batch = self.uploading.batch()
            headers = self.uploading.headers(batch)
            self.uploading.taken(batch)
        return self._pending.writing.items(self._pending.request.id, batch, headers) if batch else None

    def _flush_later(self) -> None:
        asyncio.get_running_loop().call_later(COLLECT, lambda: self._soon(self._flush_or_end))

    async def _flush_or_end(self) -> None:
        try:
            await self.flush()
        except RpcError as error:
            self._put(Ended(None, error))
            self._leave()

    async def _upload(self, message: Message) -> None:
        if self._inbox is None:
            raise StreamBroken("there is no credit for uploads before it has begun")
        await self._backend.send(self._inbox, self._message(message, {UPLOAD: "1"}))
        self._said = time.monotonic()

    def _leave(self) -> None:
        if self._task:
            self._task.cancel()

    async def _requested(self) -> AsyncReplies:
        attempt = 0
        while True:
            try:
                ask = partial(self._backend.request, self._to, self._pending.request)
                return await within_async(self._pending.remaining(time.monotonic()), ask)
            except RpcTimeout as late:
                await self._nothing_came(late)
            except QueueFull as full:
                await asyncio.sleep(self._pending.pause(attempt, full))
            attempt += 1

    async def _read(self, replies: AsyncReplies) -> None:
        while not self._is_left:  # before Python 3.12, what is cancelled as a reply comes may go on
            try:
                reply = await replies.receive(self._patience())
            except (RpcTimeout, BackendUnavailable) as late:
                await self._nothing_came(late)
            else:
                self._heard = time.monotonic()
                if self._hear(reply):
                    return
            if self._inbox and time.monotonic() - self._said > self._idle / 3:
                self._say(*self._control, ping=True)
        self._put(_left())

    def _patience(self) -> float | None:
        """Seconds to wait for the next reply."""
        return self._idle / 3 if self._inbox else self._pending.remaining(time.monotonic())

    async def _nothing_came(self, late: RpcError) -> None:
        """Raises what ends the stream. While the broker is away, it goes on for as long as without a sign of
        the worker."""
        is_over = not self._inbox or time.monotonic() - self._heard > self._idle
        if isinstance(late, BackendUnavailable):
            if is_over:
                raise late
            await asyncio.sleep(SOON)  # some fail at once
        elif not self._inbox:
            ended = time.monotonic()
            hint = str(late) or await heard(self._pending.caller.reason(self._to))
            raise self._pending.timed_out(ended, hint, queue=self._to.name) from None
        elif is_over:
            raise WorkerLost(f"{self._pending.name!r}: nothing was heard of its worker for {self._idle:g} s")

    def _hear(self, reply: Message) -> bool:
        """Whether it was the last one. Raises what ends the stream."""
        kind = reply.headers.get(STREAM)
        if kind is None:
            self._end(reply)
            return True
        if kind == OPEN:
            self._open(reply)
        elif kind == ITEMS:
            items = decode_items(*self._pending.accepted.opened(reply))
            again, size = self.receiving.feed(number_in(reply, SEQ), len(items), number_in(reply, SIZE))
            if new := items[again:]:
                self._put(Items(new, size))
        elif kind == ALIVE:
            self.receiving.expect(number_in(reply, SEQ, 0))
        if CREDIT in reply.headers and self.uploading.grant(*credit_in(reply)):
            self._put(MayUpload())
        return False

    def _open(self, reply: Message) -> None:
        try:
            self._inbox = inbox(reply.headers.get(INBOX, ""))
            self._idle = seconds(float(reply.headers.get(IDLE, "")), "its idle limit", above=True)
        except ValueError as error:
            raise SerializationError(f"the reply that opens a stream makes no sense: {error}") from None
        self._said = time.monotonic()

    def _end(self, reply: Message) -> None:
        value: Any = None
        error: RpcError | None = None
        try:
            value = self._pending.feed(reply).data
        except RpcError as raised:
            error = raised
        if SEQ in reply.headers:  # of a generator
            try:
                self.receiving.end(number_in(reply, SEQ))
            except StreamBroken as broken:
                error = broken
        self._put(Ended(value, error))

    def _say(self, kind: str, beside: Message, *, ping: bool = False) -> None:
        if not self._inbox:
            return  # the request has said it
        self._said = time.monotonic()
        asking = {PING: "1", SEQ: str(self._uploaded)} if ping else {}
        headers = {STREAM: kind, **self.receiving.credit(), **asking}
        self._soon(partial(self._backend.send, self._inbox, self._message(beside, headers)))

    def _message(self, message: Message, headers: dict[str, str]) -> Message:
        request = self._pending.request
        about = {"id": request.id, "content-type": request.headers.get("content-type", "")}
        return Message(message.body, {**about, **message.headers, **headers})

    def _soon(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._task is None:  # it is over
            return
        task = asyncio.get_running_loop().create_task(self._sent(send))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _sent(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await send()
        except RpcError as error:  # credit is given again; that uploads are missing, the worker sees
            logger.warning("what stream %r says could not be sent: %s", self._pending.name, error)
            self._said = 0.0


def _left() -> Ended:
    return Ended(None, Cancelled("the stream, or the client, was closed"))


async def heard(reason: Future[str]) -> str:
    """Why nobody answers; "" if that is not known soon."""
    await asyncio.wait([asyncio.wrap_future(reason)], timeout=GRACE)
    return reason.result() if reason.done() else ""
