"""How a receiver has its jobs handled: what it is given to do so, and what it says of what came of them."""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from ..errors import (
    Cancelled,
    Interrupted,
    InvalidParams,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    TimeLimitExceeded,
    Unauthorized,
    WorkerLost,
    shown,
)
from ..transport import ACCEPTS, FAILED, NAME, STREAM, Delivery, Message
from .bodies import Writing
from .codecs import JSON, Codec
from .compression import THRESHOLD, Compression, first_of
from .jobs import Progress, Request, current_request
from .lifecycle import Fate, Overran, ProcessLost, RaisedInChild, kind_of
from .middleware import ContextFactory, Hooks, Middleware
from .protocol import encode_error, encode_result, printable, remote_error
from .streams import PROGRESSED

logger = logging.getLogger(__name__)

_TOLD_AS_THEY_ARE = (InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled, RemoteError)
"""Errors that a handler may raise to say just that. Others of ours, such as the MethodNotFound of a call that
it made itself, would mislead its caller."""
_OF_THIS_JOB = ((Interrupted, RpcTimeout), (Overran, TimeLimitExceeded), (ProcessLost, WorkerLost))
"""What is raised in place of what a handler returns or raises, and what its caller is told."""

Await = Callable[[Coroutine[Any, Any, Any], Delivery], Any]
"""Runs a coroutine to its end, cancelling it when the delivery is cancelled; returns its result."""

Spawn = Callable[[Coroutine[Any, Any, None], Delivery], None]
"""The same, but it does not wait for the end."""

Kept = Callable[[Delivery, Message, float, float], Message]
"""Marks the last reply to a delivery, to be kept for so many seconds, whose handler took so many; may also
store it, and wait for that."""

Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what blocks, for a coroutine that waits for it; its result."""


Fork = Callable[[Delivery, Request, Codec, float | None, bool], Any]
"""Runs a handler in another process, for so many seconds at most (None: any time); its result, encoded for
this codec, or, if the last argument is true, as it is decoded."""


class Limits(Protocol):
    """Keeps handlers within a time, in seconds. Raises Overran."""

    def awaited(
        self, call: Callable[[], Coroutine[Any, Any, Any]], seconds: float
    ) -> Coroutine[Any, Any, Any]:
        """The coroutine that `call` makes; it is interrupted then."""

    def called(self, call: Callable[[], Any], seconds: float, late: Callable[[Overran], object]) -> Any:
        """What `call` returns, in this thread. It goes on then, but `late` is called, in another thread."""


class Stream(Protocol):
    """The conversation with the caller of one request."""

    def produce(self, work: Any, request: Request, generator: Any) -> None:
        """Send the items of a generator, and finish the delivery."""

    def end(self) -> None:
        """There is nothing more to be said."""


class Streams(Protocol):
    """The conversations of a receiver."""

    def open(self, delivery: Delivery, request: Request, codec: Codec) -> Stream:
        """Begin the one that a request asks for. Raises RpcError."""


class HandedBack(BaseException):
    """A coroutine ended before its time, and its message is for others."""


class Handling:
    """How a receiver has its jobs handled, and what it says of them."""

    def __init__(
        self,
        *,
        max_message: int | None = None,
        max_sent: int | None = None,
        compress_from: int = THRESHOLD,
        send_tracebacks: bool = False,
        await_: Await | None = None,
        spawn: Spawn | None = None,
        aside: Aside | None = None,
        handed_back: Callable[[Delivery], bool] = lambda delivery: False,
        kept: Kept = lambda delivery, last, seconds, took: last,
        keeps_elsewhere: bool = False,
        noted: Callable[[Delivery, Message], object] = lambda delivery, progress: None,
        limits: Limits | None = None,
        time_limit: float | None = None,
        fork: Fork | None = None,
        streams: Streams | None = None,
        hooks: Hooks | None = None,
        middleware: Sequence[Middleware] = (),
        context: ContextFactory = nullcontext,
        clock: Callable[[], float],
        dice: Callable[[], float],
    ) -> None:
        """`clock` gives seconds that only grow, `dice` a number from 0 to 1. `max_message` is in bytes, for
        what requests and replies have before they are compressed, `max_sent` for what replies have then, and
        `compress_from` for those that are, where the caller accepts that; `middleware` is from the outside
        in, `hooks` are outside of it, and `context` is outside of them. With `spawn` and `aside`, which go
        together, a coroutine holds no thread, unless there is middleware, which does. `handed_back` is asked
        of a coroutine that was cancelled: whether its message is somebody else's by now; it may block. `kept`
        sees the outcomes that are to be kept; if it `keeps_elsewhere`, it blocks. `noted` sees how far jobs
        are, and does not block. `time_limit` is that of jobs that have none, in seconds; without `limits`
        there is none, without `fork` handlers run here, and without `streams` nobody can ask for one."""
        self.limits, self.time_limit, self.fork = limits, time_limit, fork
        self._max_message, self._max_sent, self._compress_from = max_message, max_sent, compress_from
        self._most_of_errors = min(max_message or sys.maxsize, max_sent or sys.maxsize)
        self._plain: dict[str, Writing] = {}
        """How replies are written to callers that accept no compression, by content type."""
        self._send_tracebacks, self._await = send_tracebacks, await_
        self.aside, self.handed_back = aside, handed_back
        self.kept, self.keeps_elsewhere, self.noted = kept, keeps_elsewhere, noted
        self._spawn, self.detaches = spawn, spawn is not None and not middleware
        self.streams = streams
        self.clock, self.dice = clock, dice
        self.hooks, self.middleware, self.context = hooks, middleware, context
        self._running: dict[Delivery, bool] = {}
        """Whether it holds a thread."""

    def running(self, *, threads: bool) -> int:
        """How many handlers run that hold a thread, or how many that hold none."""
        return sum(held is threads for held in [*self._running.values()])

    def settle(
        self,
        delivery: Delivery,
        fate: Fate,
        failure: Message,
        *,
        why: Callable[[], str],
        later: Callable[[], Message],
    ) -> None:
        """What was decided for a job that failed. `why` says it if it is given up, `later` is what is
        delivered if it is tried again."""
        try:
            if fate == "answer":
                delivery.finish(failure)
            elif fate == "bury":
                delivery.bury(why(), failure)
            else:
                self._postpone(delivery, fate, later(), failure, why)
        except RpcError as trouble:
            what = delivery.message.headers.get(NAME, "")[:128], shown(delivery.message.id)
            logger.warning("job %r (%s) could be neither postponed nor buried: %s", *what, trouble)
            delivery.finish(failure)

    def _postpone(
        self, delivery: Delivery, seconds: float, later: Message, failure: Message, why: Callable[[], str]
    ) -> None:
        try:
            delivery.postpone(seconds, later)
        except Cancelled:  # it was, just then: nobody wants another attempt
            delivery.bury(why(), failure)

    def progress(self, message: Message, progress: Progress, codec: Codec) -> Message:
        """The reply that tells how far a job is. Raises SerializationError."""
        body = encode_result(message.id, progress, codec)
        headers = {**_reply_headers(message), STREAM: PROGRESSED}
        return self.writing(message, codec).sealed(body, headers, "progress")

    def began(self, delivery: Delivery, *, thread: bool) -> None:
        """Its handler runs, and holds a thread or none."""
        self._running[delivery] = thread

    def ended(self, delivery: Delivery) -> None:
        """Its handler does not run any more."""
        self._running.pop(delivery, None)

    def result(self, message: Message, value: Any, codec: Codec) -> Message:
        """The reply that carries a value; SerializationError if it cannot be encoded or is too large."""
        try:
            body = encode_result(message.id, value, codec)
        except SerializationError as error:
            raise SerializationError(f"the result cannot be encoded: {error}") from error
        return self.writing(message, codec).sealed(body, _reply_headers(message), "result")

    def failure(self, message: Message, error: RpcError, codec: Codec) -> Message:
        """The reply that carries an error."""
        kind = printable(kind_of(error))
        try:
            body = encode_error(message.id, error, codec)
            if len(body) > self._most_of_errors:
                body = encode_error(message.id, _shortened(error, kind), codec)
        except SerializationError:  # the codec is the user's, and encodes no error
            codec, body = JSON, encode_error(message.id, _shortened(error, kind), JSON)
        writing = self.writing(message, codec)._replace(most=None, most_sent=None)
        return writing.sealed(body, {**_reply_headers(message), FAILED: kind[:128]}, "error")

    def writing(self, message: Message, codec: Codec) -> Writing:
        """How the replies to a message are written."""
        if accepts := message.headers.get(ACCEPTS):
            encoding = first_of(accepts)
            compression = Compression(encoding, self._compress_from) if encoding else None
            return Writing(codec, self._max_message, self._max_sent, compression)
        known = self._plain.get(codec.content_type)
        if known is None:
            known = self._plain[codec.content_type] = Writing(codec, self._max_message, self._max_sent)
        return known

    def remote(self, error: BaseException) -> RpcError:
        """What the caller is told of what the handler raised."""
        for kind, what in _OF_THIS_JOB:
            if isinstance(error, kind):
                return what(str(error))
        if isinstance(error, RaisedInChild) and self._send_tracebacks:
            return RemoteError(error.type, error.message, error.data, error.traceback or error.trace)
        return told(error, trace=self._send_tracebacks)

    def awaited(self, coroutine: Coroutine[Any, Any, Any], request: Request, delivery: Delivery) -> Any:
        """Its result, which this thread waits for."""
        if self._await is None:
            coroutine.close()
            raise SerializationError("this receiver runs no coroutines")
        try:
            return self._await(_in_context(coroutine, request, self.context), delivery)
        except RpcError:  # perhaps there can be no thread for the event loop
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
            raise

    def detach(self, work: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        """Have it done without a thread, where the backend can. Raises RpcError if there can be none for the
        event loop."""
        self.began(delivery, thread=False)
        if self._spawn:
            self._spawn(work, delivery)


def told(error: BaseException, *, trace: bool = False) -> RpcError:
    """What the caller is told of an exception that a handler raised; with its traceback, if `trace`."""
    if isinstance(error, _TOLD_AS_THEY_ARE):
        return error
    return remote_error(error, "".join(traceback.format_exception(error)) if trace else None)


def is_attended(delivery: Delivery) -> bool:
    """Whether it is not a job that nobody waits for."""
    return delivery.message.reply_to is not None or delivery.to.kind != "queue"


def _shortened(error: RpcError, kind: str) -> RpcError:
    text = str(error)[:1000]
    return RemoteError(kind[:128], text) if isinstance(error, RemoteError) else type(error)(text)


def _reply_headers(message: Message) -> dict[str, str]:
    # A longer id is not one of ours, and might not leave room for the other headers.
    return {"id": printable(message.id[:128])}


async def _in_context(coroutine: Coroutine[Any, Any, Any], request: Request, context: ContextFactory) -> Any:
    current_request.set(request)
    return await contained(coroutine, context)


async def contained(coroutine: Coroutine[Any, Any, Any], context: ContextFactory = nullcontext) -> Any:
    """Its result; for a loop that others run in, too."""
    try:
        async with context():
            return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and all that runs in it
        raise remote_error(error) from error
    finally:
        coroutine.close()  # it has not begun if its context failed
