"""What runs around handlers: one ordered chain, and hooks, which are a part of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from ..errors import Interrupted, SettingsError
from .jobs import Request

logger = logging.getLogger(__name__)

HOOKS = ("pre_call", "post_success", "post_error", "on_connect", "on_disconnect")


class Middleware(Protocol):
    """A callable that wraps the rest of the chain, at the end of which is the handler. Runs in the handler's
    thread; of a coroutine, too, the rest returns the result."""

    def __call__(self, request: Request, call_next: Callable[[Request], Any]) -> Any:
        """The result of the call; what it raises, the caller gets. `call_next` takes this very request: the
        handler's arguments were checked before, and TypeError is raised for another one."""


def checked(middleware: Iterable[Middleware]) -> list[Middleware]:
    """The same; SettingsError for what cannot be called, and for coroutine functions: nobody would await what
    they return."""
    found = list(middleware)
    for each in found:
        functions: list[Any] = [each, getattr(each, "__call__", None)]  # noqa: B004 - which kind is asked
        if not callable(each) or any(inspect.iscoroutinefunction(function) for function in functions):
            raise SettingsError(f"{each!r} is no middleware: a plain callable that gets (request, call_next)")
    return found


class EitherContext(Protocol):
    """A context manager for `with` and for `async with`, such as `contextlib.nullcontext()`."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


ContextFactory = Callable[[], EitherContext]
"""Makes that in which all code of the user runs: handlers and their middleware, listeners, what ticks, and
hooks. It is entered in the thread that calls, if there is one, and for a coroutine in its event loop."""


class Hooks:
    """Functions by the name of what they are told of:

        pre_call(request)             a handler is about to be called
        post_success(request, result) it has returned, or responded
        post_error(request, error)    it has raised
        on_connect()                  the receiver has a connection to its broker
        on_disconnect()               it has lost it, or has stopped

    One that raises is logged, and changes nothing. `run` runs those that are coroutine functions.
    """

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._run = run
        self._by_name: dict[str, list[Callable[..., Any]]] = {name: [] for name in HOOKS}

    def add(self, name: str, hook: Callable[..., Any]) -> None:
        """Raises SettingsError for a name that is none, and for what cannot be called."""
        if name not in self._by_name or not callable(hook):
            raise SettingsError(f"{hook!r} cannot be the hook {name!r}; hooks are {', '.join(HOOKS)}")
        self._by_name[name].append(hook)

    def add_all(self, hooks: Mapping[str, Callable[..., Any] | Sequence[Callable[..., Any]]]) -> None:
        for name, some in hooks.items():
            for hook in [some] if callable(some) else some:
                self.add(name, hook)

    @property
    def are_for_calls(self) -> bool:
        return any(self._by_name[name] for name in HOOKS[:3])

    def tell(self, name: str, *arguments: Any) -> None:
        for hook in self._by_name[name]:
            try:
                told = hook(*arguments)
                if inspect.iscoroutine(told):
                    self._run(told)
            except Interrupted:  # it is not the hook's, but the handler's whose time is up
                raise
            except BaseException:  # as handlers, hooks may raise anything
                logger.exception("hook %s failed: %r", name, hook)

    async def around(
        self, request: Request, call: Callable[[], Awaitable[Any]], outcome: Callable[[Any], Any]
    ) -> Any:
        """The hooks of calls around a coroutine, in its event loop; `outcome` is what its result came to."""
        await self._tell("pre_call", request)
        try:
            result = await call()
        except BaseException as error:
            await self._tell("post_error", request, error)
            raise
        await self._tell("post_success", request, outcome(result))
        return result

    async def _tell(self, name: str, *arguments: Any) -> None:
        for hook in self._by_name[name]:
            try:
                told = hook(*arguments)
                if inspect.iscoroutine(told):
                    await told
            except Exception:
                logger.exception("hook %s failed: %r", name, hook)

    def middleware(self, request: Request, call_next: Callable[[Request], Any]) -> Any:
        """The hooks of calls, as middleware."""
        self.tell("pre_call", request)
        try:
            result = call_next(request)
        except BaseException as error:
            self.tell("post_error", request, error)
            raise
        self.tell("post_success", request, result)
        return result
