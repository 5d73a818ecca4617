"""Answers to calls, without a broker: what code under test gets when it calls others.

Everything but the broker is as it is otherwise: data and results go through the codec of the client, errors
travel as they do from a worker. Nothing is sent to anybody.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from threading import Thread
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from ..caller import Caller, propagated
from ..codecs import named
from ..core.codecs import Accepted, Codec
from ..core.dispatch import Dispatcher
from ..core.events import decode_event
from ..core.jobs import Jobs, jobs_from
from ..core.protocol import Call, decode_call
from ..errors import RpcError
from ..events import RESERVED
from ..loops import DelayQueue, LoopThread, started
from ..streams.limit import StreamLimit
from ..streams.producing import OpenStreams
from ..transport import DELAY, IDEMPOTENCY_KEY, ORDER_KEY, Address, Delivery, Message
from .standins import PLACES, InHand, Instead

F = TypeVar("F", bound=Callable[..., Any])


class _Call(NamedTuple):
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class PatchedCall(_Call):
    """A call that was answered: `(name, args, kwargs)`, with what else was asked for as attributes. Data that
    is a dict is named arguments, a list is positional ones."""

    queue: str
    """Where it was sent."""
    headers: dict[str, str]
    """The application's own, and those of the trace."""
    delay: float | None
    """Seconds, as `delay=` or `at=` said."""
    keep: float | None
    idempotency_key: str | None
    order_key: str | None

    @classmethod
    def of(cls, call: Call, to: Address, message: Message) -> PatchedCall:
        """The call in a message that was sent there."""
        args = tuple(call.params) if isinstance(call.params, list) else ()
        kwargs = call.params if isinstance(call.params, dict) else call.kwargs
        patched, headers = cls(call.method, args, kwargs or {}), message.headers
        patched.queue, patched.headers = to.name, propagated(headers)
        patched.delay = float(headers[DELAY]) if DELAY in headers else None
        patched.keep = message.keep
        key = headers.get(IDEMPOTENCY_KEY)
        patched.idempotency_key = key and key.removeprefix(f"{call.method}:")
        patched.order_key = headers.get(ORDER_KEY)
        return patched


def patch(answers: Mapping[str, Any]) -> Patch:
    """Answer the calls of every RpcClient and AsyncRpcClient of this process, in a `with` block or, as a
    decorator, in a function or a coroutine function:

        with patch({"example.foo": 5, "example.bad": ValueError("x"), "example.add": lambda a, b: a + b}):

    An answer is the value that the call returns, or a list of the items that it streams; an exception, or a
    class of them, that it fails with (as a RemoteError, but one of `rpc.errors` as itself); or a callable,
    which gets the arguments as a handler does, and returns or raises such, or yields items. A call of another
    name fails with an AssertionError that names it: where it is made and, if nothing else went wrong, at the
    end. What else would ask a broker raises Unsupported. One patch may be within another, and adds to it.
    Raises SettingsError for a name that is none.
    """
    return Patch(answers)


class Patch:
    """What `patch` returns, and the `with` block gets."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        handlers = {name: _handler(answer) for name, answer in answers.items()}
        listed = {
            name: _items(answer) for name, answer in answers.items() if isinstance(answer, list | tuple)
        }
        self._jobs, self._loop, self._later = (
            jobs_from(handlers),
            LoopThread("rpc-patch"),
            DelayQueue("rpc-patch"),
        )
        self._streams = OpenStreams(
            "rpc-patch",
            idle=86400.0,
            detaches=True,
            threads=sys.maxsize,
            limit=StreamLimit(None),
            spawn=self._spawn,
            later=self._later,
            accept=_ACCEPTED,
        )
        self._calls = self._dispatching(self._jobs)
        self._generators = self._dispatching(jobs_from(handlers | listed), streams=self._streams)
        self._stack = ExitStack()
        self._outer: Patch | None = None
        self._undeclared: list[str] = []
        self.calls: list[PatchedCall] = []
        """What was called, in order; of an inner patch, what it answered itself."""
        self.published: list[tuple[str, Any]] = []
        """Events (name, data). Nobody hears them."""

    def _dispatching(self, jobs: Jobs, **options: Any) -> Dispatcher:
        return _Answers(
            jobs,
            accept=_ACCEPTED,
            await_=lambda coroutine, delivery: self._loop.run(coroutine).result(),
            clock=time.monotonic,
            dice=random.random,
            **options,
        )

    def __enter__(self) -> Patch:
        outer = self._outer = _current()
        while outer is not None:
            if outer is self:
                raise RuntimeError("this patch is in force already")
            outer = outer._outer
        noted: tuple[list[Any], ...] = (self.calls, self.published, self._undeclared)
        for each in noted:
            each.clear()
        for owner, name, stand_in in PLACES:
            instead = Instead(self, name, stand_in)
            self._stack.enter_context(mock.patch.object(owner, name, instead, create=True))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        self._later.end()
        self._loop.close()
        if kind is None and self._undeclared:
            raise AssertionError(_undeclared(self._undeclared))

    def __call__(self, function: F) -> F:
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if isinstance(function, type) or generates:  # it would be over before anything runs
            raise TypeError(
                f"{function!r} is neither a function nor a coroutine function: use `with patch(...)`"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def patched_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return patched_coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def patched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return patched  # type: ignore[return-value]

    def answer(self, to: Address, message: Message) -> list[Message]:
        """The replies: what a worker would do with it. AssertionError for a name that was not declared."""
        if to.kind == "inbox":
            self._streams.hear(InHand(to, message, _unheard))
        elif to.kind == "topic":
            if to.name.partition(".")[0] != RESERVED:
                event = decode_event(message, _ACCEPTED)
                self.published.append((event.topic, event.data))
        else:
            replies: list[Message] = []
            self._noted(to, message)._calls(InHand(to, message, replies.append))
            return replies
        return []

    def stream(self, to: Address, message: Message, put: Callable[[Message], object]) -> InHand:
        """Begin a stream, the replies of which are `put`. AssertionError as in `answer`."""
        patched, delivery = self._noted(to, message), InHand(to, message, put)
        # The handler may wait for uploads, which come from the event loop that asks for it.
        started(Thread(target=patched._generators, args=(delivery,), name="rpc-patch", daemon=True))
        return delivery

    def _spawn(self, coroutine: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        self._loop.run(coroutine)

    def _noted(self, to: Address, message: Message) -> Patch:
        """The patch that answers this call: it or an outer one, where it is noted. Raises AssertionError."""
        call = decode_call(*_ACCEPTED.opened(message))
        if call.method in self._jobs:
            self.calls.append(PatchedCall.of(call, to, message))
            return self
        if self._outer is not None:
            return self._outer._noted(to, message)
        self._undeclared.append(call.method)
        raise AssertionError(_undeclared([call.method]))


class _OfThisProcess(Accepted):
    """What clients of this very process may send."""

    def codec(self, content_type: str | None) -> Codec:
        return Accepted(named()).codec(content_type)


_ACCEPTED = _OfThisProcess()


class _Answers(Dispatcher):
    """Here errors of ours are what the call is to come to, not what the handler met with."""

    def remote(self, error: BaseException) -> RpcError:
        return error if isinstance(error, RpcError) else super().remote(error)


def _current() -> Patch | None:
    outer = vars(Caller).get("backend")
    return outer.answers if isinstance(outer, Instead) else None


def _handler(answer: Any) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise answer

    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        return fail
    if callable(answer):
        found: Callable[..., Any] = answer
        return found
    return lambda *_, **__: answer


def _unheard(reply: Message) -> None:
    """What a caller says has no reply."""


def _items(answer: Sequence[Any]) -> Callable[..., Any]:
    """What answers a stream with these items."""

    def items(*_: Any, **__: Any) -> Any:
        yield from answer

    return items


def _undeclared(names: Sequence[str]) -> str:
    return f"calls that the patch does not declare: {', '.join(names)}"
