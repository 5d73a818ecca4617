"""A job in the hands of a receiver: its handler is run, and what came of it is said."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
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
    shown,
)
from ..transport import FAILED, IDEMPOTENCY_KEY, NAME, Delivery, Message
from .codecs import Codec
from .jobs import Job, Request, current_request
from .lifecycle import Fate, after_failure, blamed, next_attempt, reason
from .middleware import ContextFactory, Hooks, Middleware
from .protocol import encode_error, encode_result, printable, remote_error

logger = logging.getLogger(__name__)
finished = logging.getLogger("rpc.jobs")
"""Has a line for each attempt at a job that ended."""

_TOLD_AS_THEY_ARE = (InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled, RemoteError)
"""Errors that a handler may raise to say just that. Others of ours, such as the MethodNotFound of a call that
it made itself, would mislead its caller."""
_REFUSALS = InvalidParams, Unauthorized
"""Errors that are the caller's: of no interest to whoever wrote the handler."""

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


class Handling:
    """How a receiver has its jobs handled, and what it says of them."""

    def __init__(
        self,
        *,
        max_message: int | None = None,
        send_tracebacks: bool = False,
        await_: Await | None = None,
        spawn: Spawn | None = None,
        aside: Aside | None = None,
        handed_back: Callable[[Delivery], bool] = lambda delivery: False,
        kept: Kept = lambda delivery, last, seconds, took: last,
        keeps_elsewhere: bool = False,
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
        are to be kept; if it `keeps_elsewhere`, it blocks."""
        self._max_message, self._send_tracebacks, self._await = max_message, send_tracebacks, await_
        self.aside, self.handed_back = aside, handed_back
        self.kept, self.keeps_elsewhere = kept, keeps_elsewhere
        self._spawn, self.detaches = spawn, spawn is not None and not middleware
        self.clock, self.dice = clock, dice
        self.hooks, self.middleware, self.context = hooks, middleware, context
        self._running: dict[Delivery, bool] = {}
        """Whether it holds a thread."""

    def running(self, *, threads: bool) -> int:
        """How many handlers run that hold a thread, or how many that hold none."""
        return sum(held is threads for held in [*self._running.values()])

    def settle(self, delivery: Delivery, fate: Fate, why: str, later: Message, failure: Message) -> None:
        """What was decided for a job that failed."""
        try:
            if fate == "answer":
                delivery.finish(failure)
            elif fate == "bury":
                delivery.bury(why, failure)
            else:
                delivery.postpone(fate, later)
        except RpcError as trouble:
            what = delivery.message.headers.get(NAME, "")[:128], shown(later.id)
            logger.warning("job %r (%s) could be neither postponed nor buried: %s", *what, trouble)
            delivery.finish(failure)

    def ended(self, delivery: Delivery) -> None:
        """Its handler does not run any more."""
        self._running.pop(delivery, None)

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
        try:
            return self._await(_in_context(coroutine, request, self.context), delivery)
        finally:
            coroutine.close()  # it has not begun if there can be no thread for the event loop

    def detach(self, work: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        """Have it done without a thread. Raises RpcError if there can be none for the event loop."""
        self._running[delivery] = False
        if self._spawn:
            self._spawn(work, delivery)


def is_attended(delivery: Delivery) -> bool:
    """Whether it is not a job that nobody waits for."""
    return delivery.message.reply_to is not None or delivery.to.kind != "queue"


def _shown(error: BaseException) -> str:
    return str(remote_error(error))[:500]  # which knows what to do if it has no text


def _reply_headers(message: Message, codec: Codec) -> dict[str, str]:
    # A longer id is not one of ours, and might not leave room for the other headers.
    return {"id": printable(message.id[:128]), "content-type": codec.content_type}


class Work:
    """One request on its way through its handler: remembers whether it was answered."""

    __slots__ = (
        *("_answered", "_began", "_codec", "_delivery", "_for_others", "_handling", "_job", "_keep", "_last"),
        *("_message", "_responded"),
    )

    def __init__(self, handling: Handling, delivery: Delivery, codec: Codec, job: Job, keep: float) -> None:
        """`keep` is the seconds for which the outcome is to be kept."""
        self._handling, self._delivery, self._codec, self._job = handling, delivery, codec, job
        self._message, self._keep = delivery.message, keep
        self._began = handling.clock() if keep or finished.isEnabledFor(logging.INFO) else None
        """None if nobody wants to know."""
        self._for_others = bool(keep) or IDEMPOTENCY_KEY in delivery.message.headers
        """Whether the response is for others, too: it leaves again with the acknowledgement."""
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
        reply = self._handling.result(self._message, data, self._codec)
        self._answered, self._responded = True, [data]
        self._last = reply if self._for_others else None
        return self._delivery.reply(reply)

    def run(self, handler: Callable[[], Any], request: Request) -> None:
        """Call the handler in this thread, and finish the delivery."""
        try:
            value = self._value(handler, request)
            if type(value) is CoroutineType:  # also of a plain function, such as one that decorates another
                if self._handling.detaches and not self._handling.hooks:
                    self.detach(lambda: value, request)
                    return
                value = self._awaited(value, request)
            last = self._succeeded(request, value)
        except BaseException as error:  # a handler may raise anything, and its caller must be told
            self._failed(request, error)
        else:
            self._end(last)

    def detach(self, handler: Callable[[], Any], request: Request) -> None:
        """Have a coroutine done without a thread."""
        coroutine = self.await_(handler, request)
        try:
            self._handling.detach(coroutine, self._delivery)
        except RpcError as error:
            coroutine.close()
            self._failed(request, error)

    async def await_(self, handler: Callable[[], Any], request: Request) -> None:
        """The same for a coroutine function, in an event loop."""
        handling, hooks = self._handling, self._handling.hooks
        current_request.set(request)
        call = partial(hooks.around, request, handler, self._outcome) if hooks else handler
        try:
            last = self._succeeded(request, await contained(call(), handling.context))
        except BaseException as error:
            if type(error).__name__ == "CancelledError":  # of which library, the core does not know
                look = partial(handling.handed_back, self._delivery)
                gone = await handling.aside(look) if handling.aside else look()
                error = HandedBack() if gone else Cancelled("the call was cancelled")
            is_talk = self._job.options.retries or not is_attended(self._delivery) or handling.keeps_elsewhere
            if handling.aside and is_talk:  # it may take a word with the broker
                await handling.aside(partial(self._failed, request, error))
            else:
                self._failed(request, error)
        else:
            if self._keep and handling.aside and handling.keeps_elsewhere:
                await handling.aside(partial(self._end, last))
            else:
                self._end(last)

    def _end(self, last: Message | None, outcome: str = "done") -> None:
        self._handling.ended(self._delivery)
        self._delivery.finish(last if last is None else self._marked(last))
        self._note(outcome)

    def _marked(self, last: Message) -> Message:
        if not self._keep:
            return last
        return self._handling.kept(self._delivery, last, self._keep, self._took())

    def _took(self) -> float:
        return 0.0 if self._began is None else self._handling.clock() - self._began

    def _note(self, outcome: str) -> None:
        if not finished.isEnabledFor(logging.INFO):
            return
        name, id, seconds = self._job.name, shown(self._message.id), self._took()
        fields = {"job": name, "id": id, "seconds": round(seconds, 6), "outcome": outcome}
        finished.info("job %r (%s) took %.3f s: %s", name, id, seconds, outcome, extra=fields)

    def _succeeded(self, request: Request, value: Any) -> Message | None:
        """The last reply; None if there is none, or it was sent."""
        if self._answered or (request.response_key is None and not self._for_others):
            return self._last
        reply = self._handling.result(self._message, value, self._codec)
        self._answered = True  # nobody may respond later, from another thread
        return reply

    def _outcome(self, value: Any) -> Any:
        """What a handler that returned this came to: it may have responded before."""
        return self._responded[0] if self._responded else value

    def _failed(self, request: Request, error: BaseException) -> None:
        if isinstance(error, HandedBack):
            self._end(None, "handed back")
            return
        handling, delivery = self._handling, self._delivery
        delivery.error = error = error.with_traceback(blamed(error.__traceback__))
        remote, outcome = handling.remote(error), f"failed: {type(error).__name__}"
        if isinstance(error, Cancelled):
            outcome = "cancelled"
        if self._answered:
            self._log(error)
            self._end(self._last, outcome)
            return
        self._answered = True
        failure = handling.failure(self._message, remote, self._codec)
        left = None if request.deadline is None else request.deadline - handling.clock()
        fate = after_failure(
            error,
            self._job.options,
            attempt=request.attempt,
            left=left,
            wanted=not delivery.cancelled,
            attended=is_attended(delivery),
            chance=handling.dice(),
        )
        self._log(error, fate if isinstance(fate, float) else None)
        handling.ended(delivery)
        if not isinstance(fate, float):
            failure = self._marked(failure)
        handling.settle(delivery, fate, reason(error, remote), next_attempt(self._message), failure)
        self._note(outcome)

    def _log(self, error: BaseException, again: float | None = None) -> None:
        """Say that it failed: once with a traceback, unless it is tried `again` so many seconds later."""
        what = self._job.name, shown(self._message.id)
        if isinstance(error, Cancelled):
            logger.info("job %r (%s) was cancelled", *what)
        elif again is not None:
            attempt, text = self._message.attempt, _shown(error)
            logger.warning(
                "job %r (%s) failed, attempt %d, and is tried again in %.3g s: %s",
                *what,
                attempt,
                again,
                text,
            )
        elif isinstance(error, _REFUSALS):
            logger.warning("job %r (%s) refused: %s", *what, _shown(error))
        else:
            logger.error("job %r (%s) failed", *what, exc_info=error)

    def _value(self, handler: Callable[[], Any], request: Request) -> Any:
        handling, token = self._handling, current_request.set(request)
        call = handler
        if handling.middleware or handling.hooks:
            call = partial(self._through_middleware, handler, request)
        try:
            if handling.context is nullcontext:  # it would cost as much as a small handler
                return call()
            with handling.context():
                return call()
        finally:
            current_request.reset(token)

    def _through_middleware(self, handler: Callable[[], Any], request: Request) -> Any:
        def innermost(passed: Request) -> Any:
            _must_be_the_same(passed, request)
            return self._outcome(self._awaited(handler(), request))

        call: Callable[[Request], Any] = innermost
        hooks = self._handling.hooks
        for each in reversed([*([hooks.middleware] if hooks else []), *self._handling.middleware]):
            call = _wrapped(each, call, request)
        return call(request)

    def _awaited(self, value: Any, request: Request) -> Any:
        """What a handler that returned this comes to, which this thread waits for."""
        if self._job.is_coroutine or type(value) is CoroutineType:
            return self._handling.awaited(value, request, self._delivery)
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
