"""The receiver's end of a conversation: a delivery in, which is finished with its last reply. Never raises.

Whatever arrives (any bytes), and whatever the handler does (raise anything, return anything, answer twice
or never), a caller that waits gets exactly one terminal reply.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from types import CoroutineType
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
from .jobs import Calls, DeliveryMode, Job, Jobs, Request, current_request
from .lifecycle import UNKNOWN_FOR, Fate, after_failure, after_refusal, next_attempt, passed_on, reason
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

Kept = Callable[[Delivery, Message, float, float], Message]
"""Marks the last reply to a delivery, to be kept for so many seconds, whose handler took so many; may also
store it, and wait for that."""

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
        kept: Kept = lambda delivery, last, seconds, took: last,
        keeps_elsewhere: bool = False,
        keep_results: float = 0.0,
        unknown_for: float = UNKNOWN_FOR,
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
        cancelled: whether its message is somebody else's by now; it may block. `kept` sees the outcomes that
        are to be kept; if it `keeps_elsewhere`, it blocks; `keep_results` is the seconds for jobs that nobody
        waits for, `unknown_for` those for which an unknown one of them is passed on."""
        self._jobs, self._accept, self._max_message = jobs, accept or Accepted(), max_message
        self._delivery, self._send_tracebacks = delivery, send_tracebacks
        self._await, self._calls, self.aside, self.handed_back = await_, calls, aside, handed_back
        self.kept, self._keep_results, self._unknown_for = kept, keep_results, unknown_for
        self.keeps_elsewhere = keeps_elsewhere
        self._spawn, self.detaches = spawn, spawn is not None and not middleware
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
            work = _Work(self, delivery, codec, self._keep(delivery, job))
            request = job.request_type(delivery, call, deadline, work.respond, self._calls)
            handler = job.bound(call, request)
            if delivery.cancelled:
                raise Cancelled("the caller left before a worker came to it")
            if (job.options.delivery or self._delivery) == "at-most-once":
                delivery.forbid_redelivery()
        except RpcError as error:
            self._refuse(delivery, error, codec)
            return
        if job.is_coroutine and self.detaches:
            self.detach(work.await_(job, handler, request), delivery)
        else:
            self._running[delivery] = True
            work.run(job, handler, request)

    def _refuse(self, delivery: Delivery, error: RpcError, codec: Codec) -> None:
        message, failure = delivery.message, self.failure(delivery.message, error, codec)
        name = message.headers.get(NAME, "")[:128]
        logger.warning("refused %r (%s): %s: %s", name, message.id, type(error).__name__, error)
        if is_attended(delivery):
            delivery.finish(failure)
            return
        fate = after_refusal(error, message, unknown_for=self._unknown_for, chance=self.dice())
        later = passed_on(message, fate) if isinstance(fate, float) else message
        with suppress(SerializationError):  # that header may be what it was refused for
            if keep := message.keep:
                failure = self.kept(delivery, failure, keep, 0.0)
        self.settle(delivery, fate, reason(error.with_traceback(None), error), later, failure)

    def settle(self, delivery: Delivery, fate: Fate, why: str, later: Message, failure: Message) -> None:
        """What was decided for a job that failed."""
        name = delivery.message.headers.get(NAME, "")[:128]
        try:
            if fate == "answer":
                delivery.finish(failure)
            elif fate == "bury":
                delivery.bury(why, failure)
            else:
                logger.info("job %r (%s) is tried again in %.3g s", name, later.id, fate)
                delivery.postpone(fate, later)
        except RpcError as trouble:
            logger.warning("job %r (%s) could be neither postponed nor buried: %s", name, later.id, trouble)
            delivery.finish(failure)

    def _keep(self, delivery: Delivery, job: Job) -> float:
        """Seconds for which the outcome is to be kept."""
        keep = delivery.message.keep
        if keep is None:
            return 0.0 if is_attended(delivery) else job.options.keep or self._keep_results
        return keep

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

    def awaited(self, coroutine: Coroutine[Any, Any, Any], request: Request, delivery: Delivery) -> Any:
        """Its result, which this thread waits for."""
        if self._await is None:
            coroutine.close()
            raise SerializationError("this receiver runs no coroutines")
        return self._await(_in_context(coroutine, request, self.context), delivery)

    def detach(self, work: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        """Have it done without a thread."""
        self._running[delivery] = False
        if self._spawn:
            self._spawn(work, delivery)


def is_attended(delivery: Delivery) -> bool:
    """Whether it is not a job that nobody waits for."""
    return delivery.message.reply_to is not None or delivery.to.kind != "queue"


def _reply_headers(message: Message, codec: Codec) -> dict[str, str]:
    # A longer id is not one of ours, and might not leave room for the other headers.
    return {"id": printable(message.id[:128]), "content-type": codec.content_type}


class _Work:
    """One request on its way through its handler: remembers whether it was answered."""

    __slots__ = (
        *("_answered", "_began", "_codec", "_delivery", "_dispatcher", "_for_others", "_keep", "_last"),
        *("_message", "_responded"),
    )

    def __init__(self, dispatcher: Dispatcher, delivery: Delivery, codec: Codec, keep: float) -> None:
        self._dispatcher, self._delivery, self._codec = dispatcher, delivery, codec
        self._keep, self._began = keep, dispatcher.clock() if keep else 0.0
        self._for_others = bool(keep) or IDEMPOTENCY_KEY in delivery.message.headers
        """Whether the response is for others, too: it leaves again with the acknowledgement."""
        self._message = delivery.message
        self._answered = False
        self._responded: list[Any] = []
        """What the handler responded with first, whether somebody waits for that or not."""
        self._last: Message | None = None
        """The response, if it is for others, too."""

    def respond(self, request: Request, data: Any) -> bool:
        if request.response_key is None and not self._for_others:
            self._responded = self._responded or [data]
            return False
        if self._answered:
            return False
        reply = self._dispatcher.result(self._message, data, self._codec)
        self._answered, self._responded = True, [data]
        self._last = reply if self._for_others else None
        return self._delivery.reply(reply)

    def run(self, job: Job, handler: Callable[[], Any], request: Request) -> None:
        """Call the handler in this thread, and finish the delivery."""
        try:
            value = self._value(job, handler, request)
            if type(value) is CoroutineType:  # also of a plain function, such as one that decorates another
                if self._dispatcher.detaches and not self._dispatcher.hooks:
                    self._dispatcher.detach(self.await_(job, lambda: value, request), self._delivery)
                    return
                value = self._awaited(job, value, request)
            last = self._succeeded(request, value)
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
            is_talk = job.options.retries or not is_attended(self._delivery) or dispatcher.keeps_elsewhere
            if dispatcher.aside and is_talk:  # it may take a word with the broker
                await dispatcher.aside(partial(self._failed, job, request, error))
            else:
                self._failed(job, request, error)
        else:
            if self._keep and dispatcher.aside and dispatcher.keeps_elsewhere:
                await dispatcher.aside(partial(self._end, last))
            else:
                self._end(last)

    def _end(self, last: Message | None) -> None:
        self._dispatcher.ended(self._delivery)
        self._delivery.finish(last if last is None else self._marked(last))

    def _marked(self, last: Message) -> Message:
        if not self._keep:
            return last
        took = self._dispatcher.clock() - self._began
        return self._dispatcher.kept(self._delivery, last, self._keep, took)

    def _succeeded(self, request: Request, value: Any) -> Message | None:
        """The last reply; None if there is none, or it was sent."""
        if self._answered or (request.response_key is None and not self._for_others):
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
        fate = after_failure(
            error,
            job.options,
            attempt=request.attempt,
            left=left,
            wanted=not delivery.cancelled,
            attended=is_attended(delivery),
            chance=dispatcher.dice(),
        )
        dispatcher.ended(delivery)
        if not isinstance(fate, float):
            failure = self._marked(failure)
        dispatcher.settle(delivery, fate, reason(error, remote), next_attempt(self._message), failure)

    def _value(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        dispatcher, token = self._dispatcher, current_request.set(request)
        call = handler
        if dispatcher.middleware or dispatcher.hooks:
            call = partial(self._through_middleware, job, handler, request)
        try:
            if dispatcher.context is nullcontext:  # it would cost as much as a small handler
                return call()
            with dispatcher.context():
                return call()
        finally:
            current_request.reset(token)

    def _through_middleware(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        def innermost(passed: Request) -> Any:
            _must_be_the_same(passed, request)
            return self._outcome(self._awaited(job, handler(), request))

        call: Callable[[Request], Any] = innermost
        hooks = self._dispatcher.hooks
        for each in reversed([*([hooks.middleware] if hooks else []), *self._dispatcher.middleware]):
            call = _wrapped(each, call, request)
        return call(request)

    def _awaited(self, job: Job, value: Any, request: Request) -> Any:
        """What a handler that returned this comes to, which this thread waits for."""
        if job.is_coroutine or type(value) is CoroutineType:
            return self._dispatcher.awaited(value, request, self._delivery)
        return value


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
