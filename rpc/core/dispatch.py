"""The receiver's end of a conversation: a delivery in, which is finished with its last reply. Never raises.

Whatever arrives (any bytes), and whatever the handler does (raise anything, return anything, answer twice
or never), a caller that waits gets exactly one terminal reply.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from ..errors import (
    Cancelled,
    Interrupted,
    InvalidParams,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    Unauthorized,
)
from ..transport import FAILED, IDEMPOTENCY_KEY, NAME, Delivery, Message
from .codecs import JSON, Accepted, Codec
from .jobs import AsyncRequest, Calls, DeliveryMode, Job, Jobs, Request, current_request
from .lifecycle import after_failure, next_attempt
from .middleware import ContextFactory, Hooks, Middleware
from .protocol import decode_call, encode_error, encode_result, printable, remote_error

logger = logging.getLogger(__name__)

_TOLD_AS_THEY_ARE = (InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled, RemoteError)
"""Errors that a handler may raise to say just that. Others of ours, such as the MethodNotFound of a call that
it made itself, would mislead its caller."""

Await = Callable[[Coroutine[Any, Any, Any], Delivery], Any]
"""Runs a coroutine to its end, cancelling it when the delivery is cancelled; returns its result."""

Spawn = Callable[[Coroutine[Any, Any, None], Delivery], None]
"""The same, but it does not wait for the end."""

Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what blocks, for a coroutine that waits for it; its result."""


class HandedBack(BaseException):
    """A coroutine ended before its time, and its message is for others."""


class Dispatcher:
    """A `rpc.backends.Handler` over a table of jobs."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        accept: Accepted | None = None,
        max_message: int | None = None,
        delivery: DeliveryMode = "at-least-once",
        send_tracebacks: bool = False,
        await_: Await | None = None,
        spawn: Spawn | None = None,
        aside: Aside | None = None,
        handed_back: Callable[[Delivery], bool] = lambda delivery: False,
        calls: Calls | None = None,
        hooks: Hooks | None = None,
        middleware: Sequence[Middleware] = (),
        context: ContextFactory = nullcontext,
        clock: Callable[[], float],
        dice: Callable[[], float],
    ) -> None:
        """`clock` gives seconds that only grow, `dice` a number from 0 to 1. `max_message` is in bytes, for
        requests and replies alike; `middleware` is from the outside in, `hooks` are outside of it, and
        `context` is outside of them. With `spawn` and `aside`, which go together, a coroutine holds no
        thread, unless there is middleware, which does. `handed_back` is asked of a coroutine that was
        cancelled: whether its message is somebody else's by now; it may block."""
        self._jobs, self._accept, self._max_message = jobs, accept or Accepted(), max_message
        self._delivery, self._send_tracebacks = delivery, send_tracebacks
        self._await, self._calls, self.aside, self.handed_back = await_, calls, aside, handed_back
        self._spawn = None if middleware else spawn
        self.clock, self.dice = clock, dice
        self.hooks, self.middleware, self.context = hooks, middleware, context
        self._running: dict[Delivery, bool] = {}
        """Whether it holds a thread."""

    def running(self, *, threads: bool) -> int:
        """How many handlers run that hold a thread, or how many that hold none."""
        return sum(held is threads for held in [*self._running.values()])

    def __call__(self, delivery: Delivery) -> None:
        message, codec = delivery.message, JSON
        try:
            codec = self._accept.codec(message.headers.get("content-type"))
            if self._max_message is not None and len(message.body) > self._max_message:
                raise SerializationError(
                    f"the request has {len(message.body)} bytes: more than {self._max_message}"
                )
            call = decode_call(message.body, codec)
            job = self._jobs.find(call.method)
            deadline = self._deadline(message.ttl)
            work = _Work(self, delivery, codec)
            kind = AsyncRequest if job.is_coroutine else Request
            request = kind(delivery, call, deadline, work.respond, self._calls)
            handler = job.bound(call, request)
            if delivery.cancelled:
                raise Cancelled("the caller left before a worker came to it")
            if (job.options.delivery or self._delivery) == "at-most-once":
                delivery.forbid_redelivery()
        except RpcError as error:
            name = message.headers.get(NAME, "")[:128]
            logger.warning("refused %r (%s): %s: %s", name, message.id, type(error).__name__, error)
            delivery.finish(self.failure(message, error, codec))
            return
        is_detached = job.is_coroutine and self._spawn is not None
        self._running[delivery] = not is_detached
        if is_detached and self._spawn:
            self._spawn(work.await_(job, handler, request), delivery)
        else:
            work.run(job, handler, request)

    def ended(self, delivery: Delivery) -> None:
        """Its handler does not run any more."""
        self._running.pop(delivery, None)

    def _deadline(self, ttl: float | None) -> float | None:
        if ttl is None:
            return None
        if ttl <= 0:
            raise RpcTimeout("it expired before a worker came to it")
        return self.clock() + ttl

    def result(self, message: Message, value: Any, codec: Codec) -> Message:
        """The reply that carries a value; SerializationError if it cannot be encoded or is too large."""
        try:
            body = encode_result(message.id, value, codec)
        except SerializationError as error:
            raise SerializationError(f"the result cannot be encoded: {error}") from error
        if self._max_message is not None and len(body) > self._max_message:
            raise SerializationError(f"the result has {len(body)} bytes: more than {self._max_message}")
        return Message(body, _reply_headers(message, codec))

    def failure(self, message: Message, error: RpcError, codec: Codec) -> Message:
        """The reply that carries an error."""
        kind = printable(str(error.type) if isinstance(error, RemoteError) else type(error).__name__)
        body = encode_error(message.id, error, codec)
        if self._max_message is not None and len(body) > self._max_message:
            text = str(error)[:1000]
            shorter = RemoteError(kind[:128], text) if isinstance(error, RemoteError) else type(error)(text)
            body = encode_error(message.id, shorter, codec)
        return Message(body, {**_reply_headers(message, codec), FAILED: kind[:128]})

    def remote(self, error: BaseException) -> RpcError:
        """What the caller is told of what the handler raised."""
        if isinstance(error, Interrupted):
            return RpcTimeout(str(error))
        if isinstance(error, _TOLD_AS_THEY_ARE):
            return error
        trace = "".join(traceback.format_exception(error)) if self._send_tracebacks else None
        return remote_error(error, trace)

    def awaited(self, coroutine: Coroutine[Any, Any, Any], delivery: Delivery) -> Any:
        if self._await is None:
            coroutine.close()
            raise SerializationError("this receiver runs no coroutines")
        return self._await(coroutine, delivery)


def _reply_headers(message: Message, codec: Codec) -> dict[str, str]:
    # A longer id is not one of ours, and might not leave room for the other headers.
    return {"id": printable(message.id[:128]), "content-type": codec.content_type}


class _Work:
    """One request on its way through its handler: remembers whether it was answered."""

    __slots__ = ("_answered", "_codec", "_delivery", "_dispatcher", "_last", "_message", "_responded")

    def __init__(self, dispatcher: Dispatcher, delivery: Delivery, codec: Codec) -> None:
        self._dispatcher, self._delivery, self._codec = dispatcher, delivery, codec
        self._message = delivery.message
        self._answered = False
        self._responded: list[Any] = []
        """What the handler responded with first, whether somebody waits for that or not."""
        self._last: Message | None = None
        """The response, if it is for others, too: it leaves again with the acknowledgement."""

    def respond(self, request: Request, data: Any) -> bool:
        for_others = IDEMPOTENCY_KEY in request.headers
        if request.response_key is None and not for_others:
            self._responded = self._responded or [data]
            return False
        if self._answered:
            return False
        reply = self._dispatcher.result(self._message, data, self._codec)
        self._answered, self._responded = True, [data]
        self._last = reply if for_others else None
        return self._delivery.reply(reply)

    def run(self, job: Job, handler: Callable[[], Any], request: Request) -> None:
        """Call the handler in this thread, and finish the delivery."""
        try:
            last = self._succeeded(request, self._value(job, handler, request))
        except BaseException as error:  # a handler may raise anything, and its caller must be told
            self._failed(job, request, error)
        else:
            self._end(last)

    async def await_(self, job: Job, handler: Callable[[], Any], request: Request) -> None:
        """The same for a coroutine function, in an event loop."""
        dispatcher, hooks = self._dispatcher, self._dispatcher.hooks
        current_request.set(request)
        call = partial(hooks.around, request, handler, self._outcome) if hooks else handler
        try:
            last = self._succeeded(request, await contained(call(), dispatcher.context))
        except BaseException as error:
            if type(error).__name__ == "CancelledError":  # of which library, the core does not know
                look = partial(dispatcher.handed_back, self._delivery)
                gone = await dispatcher.aside(look) if dispatcher.aside else look()
                error = HandedBack() if gone else Cancelled("the call was cancelled")
            if dispatcher.aside and job.options.retries:  # it may take a word with the broker
                await dispatcher.aside(partial(self._failed, job, request, error))
            else:
                self._failed(job, request, error)
        else:
            self._end(last)

    def _end(self, last: Message | None) -> None:
        self._dispatcher.ended(self._delivery)
        self._delivery.finish(last)

    def _succeeded(self, request: Request, value: Any) -> Message | None:
        """The last reply; None if there is none, or it was sent."""
        if self._answered or (request.response_key is None and IDEMPOTENCY_KEY not in request.headers):
            return self._last
        reply = self._dispatcher.result(self._message, value, self._codec)
        self._answered = True  # nobody may respond later, from another thread
        return reply

    def _outcome(self, value: Any) -> Any:
        """What a handler that returned this came to: it may have responded before."""
        return self._responded[0] if self._responded else value

    def _failed(self, job: Job, request: Request, error: BaseException) -> None:
        if isinstance(error, HandedBack):
            self._end(None)
            return
        if isinstance(error, Cancelled) and self._delivery.cancelled:
            logger.info("job %r (%s) was cancelled", job.name, request.id)
        else:
            logger.error("job %r (%s) failed", job.name, request.id, exc_info=error)
        if self._answered:
            self._end(self._last)
            return
        self._answered = True
        dispatcher, delivery = self._dispatcher, self._delivery
        remote = dispatcher.remote(error)
        failure = dispatcher.failure(self._message, remote, self._codec)
        left = None if request.deadline is None else request.deadline - dispatcher.clock()
        wanted, chance = not delivery.cancelled, dispatcher.dice()
        fate = after_failure(
            error, job.options, attempt=request.attempt, left=left, wanted=wanted, chance=chance
        )
        if fate == "answer":
            self._end(failure)
            return
        dispatcher.ended(delivery)
        try:
            if fate == "bury":
                delivery.bury(printable(str(remote))[:500], failure)
            else:
                logger.info("job %r (%s) is tried again in %.3g s", job.name, request.id, fate)
                delivery.postpone(fate, next_attempt(self._message, left))
        except RpcError as trouble:
            logger.warning(
                "job %r (%s) could be neither postponed nor buried: %s", job.name, request.id, trouble
            )
            delivery.finish(failure)

    def _value(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        dispatcher, token = self._dispatcher, current_request.set(request)
        way = self._through_middleware if dispatcher.middleware or dispatcher.hooks else self._returned
        try:
            if dispatcher.context is nullcontext:  # it would cost as much as a small handler
                return way(job, handler, request)
            with dispatcher.context():
                return way(job, handler, request)
        finally:
            current_request.reset(token)

    def _through_middleware(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        def innermost(passed: Request) -> Any:
            _must_be_the_same(passed, request)
            return self._outcome(self._returned(job, handler, request))

        call: Callable[[Request], Any] = innermost
        hooks = self._dispatcher.hooks
        for each in reversed([*([hooks.middleware] if hooks else []), *self._dispatcher.middleware]):
            call = _wrapped(each, call, request)
        return call(request)

    def _returned(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        if job.is_coroutine:
            coroutine = _in_context(handler, request, self._dispatcher.context)
            return self._dispatcher.awaited(coroutine, self._delivery)
        return handler()


def _wrapped(
    middleware: Middleware, rest: Callable[[Request], Any], request: Request
) -> Callable[[Request], Any]:
    def call(passed: Request) -> Any:
        _must_be_the_same(passed, request)
        return middleware(request, rest)

    return call


def _must_be_the_same(passed: Request, request: Request) -> None:
    """The handler is bound to its arguments by then: another request would be ignored."""
    if passed is not request:
        raise TypeError(f"call_next takes the request that the middleware was given, not {passed!r:.100}")


async def _in_context(handler: Callable[[], Any], request: Request, context: ContextFactory) -> Any:
    current_request.set(request)
    return await contained(handler(), context)


async def contained(coroutine: Coroutine[Any, Any, Any], context: ContextFactory = nullcontext) -> Any:
    """Its result; for a loop that others run in, too."""
    try:
        async with context():
            return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and all that runs in it
        raise remote_error(error) from error
    finally:
        coroutine.close()  # it has not begun if its context failed
