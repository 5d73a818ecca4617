"""A job in the hands of a receiver: its handler is run, and what came of it is said."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ..errors import Cancelled, InvalidParams, RpcError, SerializationError, Unauthorized, shown
from ..transport import IDEMPOTENCY_KEY, Delivery, Message
from .bodies import Writing
from .codecs import Codec
from .handling import HandedBack, Handling, Stream, contained, is_attended
from .jobs import Job, Progress, Request, current_request
from .lifecycle import Overran, after_failure, blamed, kind_of, next_attempt, reason
from .middleware import ContextFactory, Middleware
from .protocol import in_short
from .streams import PROGRESS, SEQ

logger = logging.getLogger(__name__)
finished = logging.getLogger("rpc.jobs")
"""Has a line for each attempt at a job that ended."""

GENERATORS = GeneratorType, AsyncGeneratorType

_REFUSALS = InvalidParams, Unauthorized
"""Errors that are the caller's: of no interest to whoever wrote the handler."""


class Work:
    """One request on its way through its handler: remembers whether it was answered."""

    __slots__ = (
        *("_answered", "_began", "_codec", "_delivery", "_for_others", "_handling", "_job", "_keep", "_last"),
        *("_message", "_responded", "_sent", "_stream"),
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
        self._stream: Stream | None = None
        self._sent: int | None = None
        """How many items were sent before the end, if it is that of a generator."""

    def open(self, request: Request) -> None:
        """Begin the conversation that it asks for. Raises RpcError."""
        if self._handling.streams is not None:
            self._stream = self._handling.streams.open(self._delivery, request, self._codec)

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

    def tell(self, progress: Progress) -> None:
        """How far it is: to whoever wants to know."""
        message = self._handling.progress(self._message, progress, self._codec)
        if PROGRESS in self._message.headers and not self._stream:
            self._delivery.reply(message)
        self._handling.noted(self._delivery, message)

    def confined(self, handler: Callable[[], Any], request: Request) -> Callable[[], Any]:
        """The handler within its time limit, and in another process, if the job has it so."""
        handling, options = self._handling, self._job.options
        seconds = options.time_limit or handling.time_limit
        seconds = None if seconds == math.inf else seconds
        if options.fork and handling.fork:
            is_looked_at = bool(handling.middleware or handling.hooks)
            return partial(handling.fork, self._delivery, request, self._codec, seconds, is_looked_at)
        if seconds is None or handling.limits is None:
            return handler
        if self._job.is_coroutine:
            return partial(handling.limits.awaited, handler, seconds)
        return partial(handling.limits.called, handler, seconds, partial(self._overran, request))

    def _overran(self, request: Request, error: Overran) -> None:
        """Finish the delivery of a function that goes on."""
        request._overran = True
        if self._delivery.on_cancel:
            self._delivery.on_cancel()
        self._failed(request, error)

    def run(self, handler: Callable[[], Any], request: Request) -> None:
        """Call the handler in this thread, and finish the delivery."""
        try:
            value = self._value(handler, request)
            if type(value) in GENERATORS:
                self._produce(value, request)
                return
            if type(value) is CoroutineType:  # also of a plain function, such as one that decorates another
                if self._handling.detaches and not self._handling.hooks:
                    self.detach(lambda: value, request)
                    return
                value = self._awaited(value, request)
            last = self._succeeded(request, value)
        except BaseException as error:  # a handler may raise anything, and its caller must be told
            if not request._overran:  # else that was told at its limit
                self._failed(request, error)
        else:
            self._end(last)

    def _produce(self, generator: Any, request: Request) -> None:
        if self._stream is None:
            raise InvalidParams(f"job {self._job.name!r} gives a stream: call it with `stream`")
        self._stream.produce(self, request, generator)

    def waits(self, *, thread: bool) -> None:
        """Its generator waits for its caller, and holds a thread or none."""
        self._handling.began(self._delivery, thread=thread)

    @property
    def context(self) -> ContextFactory:
        """What code of the user runs in."""
        return self._handling.context

    def in_context(self, step: Callable[[], Any]) -> Any:
        """What a step of a generator comes to."""
        with self._handling.context():
            return step()

    def writing(self) -> Writing:
        """How what is said to its caller is written."""
        return self._handling.writing(self._message, self._codec)

    def stream_ended(self, request: Request, value: Any, sent: int) -> None:
        """A generator has returned this, after so many items."""
        self._sent = sent
        try:
            last = self._succeeded(request, value)
        except SerializationError as error:
            self._failed(request, error)
        else:
            self._end(last)

    def stream_failed(self, request: Request, error: BaseException, sent: int) -> None:
        """It has raised that."""
        self._sent = sent
        self._failed(request, error)

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
        self._over()
        self._delivery.finish(last if last is None else self._marked(last))
        self._note(outcome)

    def _over(self) -> None:
        self._handling.ended(self._delivery)
        if self._stream:
            self._stream.end()

    def _marked(self, last: Message) -> Message:
        if not self._keep:
            return last
        return self._handling.kept(self._delivery, last, self._keep, self._took())

    def _numbered(self, last: Message) -> Message:
        """The same with the number of items before it, if there may be some."""
        return last if self._sent is None else last.replace(**{SEQ: self._sent})

    def _took(self) -> float:
        return 0.0 if self._began is None else self._handling.clock() - self._began

    def _note(self, outcome: str) -> None:
        # What clients ask of workers themselves is no job of the user's.
        level = logging.DEBUG if self._job.name.startswith("rpc.") else logging.INFO
        if not finished.isEnabledFor(level):
            return
        name, id, seconds = self._job.name, shown(self._message.id), self._took()
        fields = {"job": name, "id": id, "seconds": round(seconds, 6), "outcome": outcome}
        finished.log(level, "job %r (%s) took %.3f s: %s", name, id, seconds, outcome, extra=fields)

    def _succeeded(self, request: Request, value: Any) -> Message | None:
        """The last reply; None if there is none, or it was sent."""
        if self._answered or (request.response_key is None and not self._for_others):
            return self._last
        reply = self._numbered(self._handling.result(self._message, value, self._codec))
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
        remote = handling.remote(error)
        outcome = "cancelled" if isinstance(error, Cancelled) else f"failed: {shown(kind_of(remote))}"
        if self._answered:
            self._log(request, error)
            self._end(self._last, outcome)
            return
        self._answered = True
        failure = self._numbered(handling.failure(self._message, remote, self._codec))
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
        if self._stream:  # another attempt would begin it again
            fate = "answer"
        self._log(request, error, fate if isinstance(fate, float) else None)
        self._over()
        if not isinstance(fate, float):
            failure = self._marked(failure)
        why, later = partial(reason, error, remote), partial(next_attempt, self._message, left)
        handling.settle(delivery, fate, failure, why=why, later=later)
        self._note(outcome)

    def _log(self, request: Request, error: BaseException, again: float | None = None) -> None:
        """Say that it failed, as a part of the request: once with a traceback, unless it is tried `again` so
        many seconds later."""
        token = current_request.set(request)
        try:
            self._say(error, again)
        finally:
            current_request.reset(token)

    def _say(self, error: BaseException, again: float | None) -> None:
        what = self._job.name, shown(self._message.id)
        if isinstance(error, Cancelled):
            logger.info("job %r (%s) was cancelled", *what)
        elif again is not None:
            attempt, text = self._message.attempt, in_short(error)
            logger.warning(
                "job %r (%s) failed, attempt %d, and is tried again in %.3g s: %s",
                *what,
                attempt,
                again,
                text,
            )
        elif isinstance(error, _REFUSALS):
            logger.warning("job %r (%s) refused: %s", *what, in_short(error))
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
