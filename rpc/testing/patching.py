"""Answers to calls, without a broker: what code under test gets when it calls others.

Everything but the broker is as it is otherwise: data and results go through the codec of the client, errors
travel as they do from a worker. Nothing is sent to anybody.
"""

from __future__ import annotations

import functools
import inspect
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from ..aio import AsyncRpcClient
from ..backends import asynchronous
from ..caller import Caller
from ..codecs import named
from ..core.codecs import Accepted, Codec
from ..core.dispatch import Dispatcher
from ..core.events import decode_event
from ..core.jobs import jobs_from
from ..core.protocol import decode_call
from ..describe import ALL_WORKERS
from ..errors import RpcError, RpcTimeout, Unsupported
from ..loops import LoopThread
from ..submits import Submits
from ..transport import Address, AsyncBackend, Backend, Message, Server

F = TypeVar("F", bound=Callable[..., Any])


class PatchedCall(NamedTuple):
    """A call that was answered. Data that is a dict is named arguments, a list is positional ones."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def patch(answers: Mapping[str, Any]) -> Patch:
    """Answer the calls of every RpcClient and AsyncRpcClient of this process, in a `with` block or, as a
    decorator, in a function or a coroutine function:

        with patch({"example.foo": 5, "example.bad": ValueError("x"), "example.add": lambda a, b: a + b}):

    An answer is the value that the call returns; an exception, or a class of them, that it fails with (as a
    RemoteError, but one of `rpc.errors` as itself); or a callable, which gets the arguments as a handler
    does, and returns or raises such. A call of another name fails with an AssertionError that names it: where
    it is made and, if nothing else went wrong, at the end. One patch may be within another, and adds to it.
    Raises SettingsError for a name that is none.
    """
    return Patch(answers)


class Patch:
    """What `patch` returns, and the `with` block gets."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._jobs = jobs_from({name: _handler(answer) for name, answer in answers.items()})
        self._loop = LoopThread("rpc-patch")
        self._dispatcher = _Answers(
            self._jobs,
            accept=_ACCEPTED,
            await_=lambda coroutine, delivery: self._loop.run(coroutine).result(),
            clock=time.monotonic,
            dice=random.random,
        )
        self._stack = ExitStack()
        self._outer: Patch | None = None
        self._undeclared: list[str] = []
        self.calls: list[PatchedCall] = []
        """What was called, in order; of an inner patch, what it answered itself."""
        self.published: list[tuple[str, Any]] = []
        """Events (name, data). Nobody hears them."""

    def __enter__(self) -> Patch:
        outer = self._outer = _current()
        while outer is not None:
            if outer is self:
                raise RuntimeError("this patch is in force already")
            outer = outer._outer
        noted: tuple[list[Any], ...] = (self.calls, self.published, self._undeclared)
        for each in noted:
            each.clear()
        for owner, name, stand_in in _PLACES:
            self._stack.enter_context(
                mock.patch.object(owner, name, _Instead(self, name, stand_in), create=True)
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
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

    def answer(self, to: Address, message: Message) -> Message | None:
        """The last reply, if there is one: what a worker would do with it. AssertionError for a name that was
        not declared."""
        if to.kind == "topic":
            if to != ALL_WORKERS:
                event = decode_event(message, _ACCEPTED)
                self.published.append((event.topic, event.data))
            return None
        call = decode_call(*_ACCEPTED.opened(message))
        if call.method not in self._jobs:
            if self._outer is not None:
                return self._outer.answer(to, message)
            self._undeclared.append(call.method)
            raise AssertionError(_undeclared([call.method]))
        args = tuple(call.params) if isinstance(call.params, list) else ()
        kwargs = call.params if isinstance(call.params, dict) else call.kwargs
        self.calls.append(PatchedCall(call.method, args, kwargs or {}))
        delivery = _Delivery(to, message)
        self._dispatcher(delivery)
        return delivery.replied


class _OfThisProcess(Accepted):
    """What clients of this very process may send."""

    def codec(self, content_type: str | None) -> Codec:
        return Accepted(named()).codec(content_type)


_ACCEPTED = _OfThisProcess()


class _Answers(Dispatcher):
    """Here errors of ours are what the call is to come to, not what the handler met with."""

    def remote(self, error: BaseException) -> RpcError:
        return error if isinstance(error, RpcError) else super().remote(error)


class _Delivery:
    """A message that is answered where it is sent."""

    caller: str | None = ""
    cancelled = False
    on_cancel: Callable[[], object] | None = None
    error: BaseException | None = None

    def __init__(self, to: Address, message: Message) -> None:
        self.to, self.message = to, message
        self.replied: Message | None = None

    def reply(self, message: Message) -> bool:
        self.replied = message
        return True

    def finish(self, last: Message | None) -> None:
        self.replied = last or self.replied

    def forbid_redelivery(self) -> None:
        """Nothing is delivered again."""

    def postpone(self, seconds: float, message: Message) -> None:
        raise Unsupported("nothing is tried again here")

    def bury(self, why: str, last: Message | None) -> None:
        raise Unsupported("there are no dead letters here")


class _Replies:
    """At most one, which is there already."""

    def __init__(self, reply: Message | None) -> None:
        self._reply = reply

    def receive(self, timeout: float | None) -> Message:
        if self._reply is None:
            raise RpcTimeout
        return self._reply

    def close(self) -> None:
        """Nothing to do."""


class _AsyncReplies(_Replies):
    async def receive(self, timeout: float | None) -> Message:  # type: ignore[override]
        return super().receive(timeout)


class _StandIn:
    """A backend that carries no messages."""

    def __init__(self, patched: Patch, real: Backend) -> None:
        self._patched, self._real = patched, real

    def send(self, to: Address, message: Message) -> None:
        self._patched.answer(to, message)

    def request(self, to: Address, message: Message) -> _Replies:
        return _Replies(self._patched.answer(to, message))

    def asynchronous(self) -> AsyncBackend:
        return asynchronous(self._real)

    def server(self, *addresses: Any, **options: Any) -> Server:
        raise Unsupported("nobody hears events in a patch: subscribe on a backend of memory://")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _AsyncStandIn:
    def __init__(self, patched: Patch, real: AsyncBackend) -> None:
        self._patched, self._real = patched, real

    async def send(self, to: Address, message: Message) -> None:
        self._patched.answer(to, message)

    async def request(self, to: Address, message: Message) -> _AsyncReplies:
        return _AsyncReplies(self._patched.answer(to, message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


_PLACES = (
    (Caller, "backend", _StandIn),
    (AsyncRpcClient, "_async", _AsyncStandIn),
    (Submits, "backend", _AsyncStandIn),
)
"""Where clients have their backends."""


class _Instead:
    """An attribute of a class: what its objects have under this name is kept, but a stand-in is read."""

    def __init__(self, patched: Patch, name: str, stand_in: Callable[[Patch, Any], Any]) -> None:
        self.patched, self._name, self._stand_in = patched, name, stand_in

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else self._stand_in(self.patched, vars(instance)[self._name])

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


def _current() -> Patch | None:
    outer = vars(Caller).get("backend")
    return outer.patched if isinstance(outer, _Instead) else None


def _handler(answer: Any) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise answer

    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        return fail
    if callable(answer):
        found: Callable[..., Any] = answer
        return found
    return lambda *_, **__: answer


def _undeclared(names: Sequence[str]) -> str:
    return f"calls that the patch does not declare: {', '.join(names)}"
