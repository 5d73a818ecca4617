"""Events: what is published reaches every listener, or one of each group.

An event's topic is the first part of its name, up to the first dot: `order` of `order.created`. Whoever
listens hears the whole topic, and picks what its patterns match.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from .core.codecs import Accepted
from .core.jobs import FINAL, JobOptions, marking
from .core.lifecycle import blamed, next_attempt
from .core.middleware import ContextFactory
from .core.parameters import conversions, is_annotated
from .core.patterns import matcher
from .core.protocol import decode_call, in_short
from .durations import Duration
from .errors import RpcError, SettingsError, Unsupported, shown
from .transport import ADDRESS_NAME as NAME
from .transport import OWN, Address, Delivery, Message, topic

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_NAME = r"[A-Za-z_][\w\-]*"
EVENT = re.compile(rf"{_NAME}(\.[\w\-]+)*", re.ASCII)
PATTERN = re.compile(rf"{_NAME}(\.[\w\-*]+)*", re.ASCII)
RESERVED = "rpc"
"""The topic at which all workers are asked what they are."""
ANY = "__any__"
"""Stands for `*` in the name of a group's address."""
BETWEEN = ".."
"""Is there between the group and the pattern, which has nothing like it."""


class Event(msgspec.Struct, frozen=True):
    """What a listener gets that asks for it."""

    topic: str
    """The event's name."""
    data: Any
    """What was published: a dict or a list; {} if nothing was."""
    headers: Mapping[str, str]
    """The headers that were published with it."""
    id: str
    """The same for all listeners, and if it is delivered again; but on rq a durable group has its own."""


class Subscription(NamedTuple):
    """Times are in seconds."""

    pattern: str
    group: str | None
    durable: bool
    options: JobOptions

    @property
    def address(self) -> Address:
        name = self.pattern.partition(".")[0]
        if self.group is None:
            return topic(name, durable=self.durable)
        group = f"{self.group}{BETWEEN}{self.pattern.replace('*', ANY)}"
        return topic(name, group, durable=self.durable)

    @staticmethod
    def of(address: Address) -> tuple[str, str]:
        """The pattern and the group of such an address."""
        group, _, pattern = (address.group or "").rpartition(BETWEEN)
        return pattern.replace(ANY, "*"), group


def on(
    event: str,
    *,
    group: str | None = None,
    durable: bool = False,
    retries: int = 0,
    backoff: Duration = 1.0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
) -> Callable[[F], F]:
    """Have a function, or a method of a service, called with each event of this name. May be repeated.

    `event` may have wildcards after its first dot: `order.*` is all that begins with `order.`. Every worker
    process hears it; of those that listen to the same `event` with one `group`, only one does. A `durable`
    group hears what was published while none of its workers ran, too, and again if one dies; for others, what
    nobody hears is gone. `retries`, `backoff` (seconds) and `retry_on` are as in `job`. The function gets the
    data, converted to its annotation; or the Event, if its parameter is named `event` or is annotated so.
    Raises ValueError.
    """
    if not PATTERN.fullmatch(event) or event.partition(".")[0] == RESERVED:
        raise ValueError(
            f"{event!r} is no event: a name, and after its first dot more of them, or '*': as in 'order.*'; "
            f"{RESERVED!r} is reserved"
        )
    if group is not None and not NAME.fullmatch(group):
        raise ValueError(f"{group!r} is no group: letters, digits, '_', '.', '-', at most 128")
    options = JobOptions.checked(None, retries, backoff, retry_on)
    subscription = Subscription(event, group, durable, options)
    address = subscription.address  # ValueError if there cannot be one
    if durable:
        _ = address.subscription_queue

    return marking("__rpc_on__", subscription, several=True)


def event_address(name: str) -> Address:
    """Where an event is published; ValueError if that is no event's name."""
    if not EVENT.fullmatch(name) or name.partition(".")[0] == RESERVED:
        raise ValueError(
            f"{name!r} is no event: letters, digits, '_' and '-', in parts with dots between them, "
            f"the first of which is not {RESERVED!r}"
        )
    return topic(name.partition(".")[0])


class Listener:
    """A function that hears events."""

    def __init__(self, name: str, handler: Callable[..., Any], subscription: Subscription) -> None:
        self.name, self.subscription, self.address = name, subscription, subscription.address
        self._handler = handler
        self.matches = matcher(subscription.pattern)
        parameters = [
            each
            for each in inspect.signature(handler).parameters.values()
            if each.default is each.empty and each.kind is not each.VAR_KEYWORD
        ]
        if len(parameters) != 1 or parameters[0].kind is parameters[0].KEYWORD_ONLY:
            raise SettingsError(f"listener {name}: it gets one argument, the data or the `event`")
        self._parameter = parameters[0].name
        self._wants_event = self._parameter == "event" or is_annotated(handler, self._parameter, Event)
        try:
            self._convert = None if self._wants_event else conversions(handler).get(self._parameter)
        except TypeError as error:
            raise SettingsError(f"listener {name}: {error}") from error
        self.failures = 0
        """How often it raised."""

    def argument(self, event: Event) -> Any:
        """What it is called with; InvalidParams if the data is not what it wants."""
        if self._wants_event:
            return event
        return event.data if self._convert is None else self._convert(event.data, self._parameter)

    def call(self, event: Event) -> Any:
        return self._handler(self.argument(event))


def listeners_in(members: Sequence[tuple[str, Callable[..., Any]]]) -> list[Listener]:
    """Those among these functions that are marked with `on`; SettingsError if they cannot be."""
    found = [
        Listener(name, each, subscription)
        for name, each in members
        for subscription in getattr(each, "__rpc_on__", ())
    ]
    durable = [each.address for each in found if each.subscription.durable]
    for address in durable:
        if durable.count(address) > 1:
            raise SettingsError(f"{address} is durable, and has two listeners: give each a group of its own")
    return found


class Events:
    """A `rpc.backends.Handler` over listeners. What one raises is logged and counted, and the others hear the
    event all the same. `run` runs coroutines; `later` calls something after some seconds, or returns False;
    each listener runs in a `context`."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        accept: Accepted,
        run: Callable[[Any], Any],
        later: Callable[[float, Callable[[], None]], bool],
        context: ContextFactory = nullcontext,
    ) -> None:
        self.listeners, self._accept, self._run, self._later = listeners, accept, run, later
        self._context = context
        self.addresses = list(dict.fromkeys(each.address for each in listeners))

    def check(self, features: frozenset[str]) -> None:
        """Raises Unsupported if a backend with these features cannot carry what they listen to."""
        durable = [each.subscription for each in self.listeners if each.subscription.durable]
        for what, feature, needed in (
            ("listeners", "topics", self.addresses),
            ("listeners", "groups", [each for each in self.addresses if each.group]),
            ("listeners", "subscriptions", durable),
            ("retries", "delay", [each for each in durable if each.options.retries]),
        ):
            if needed and feature not in features:
                raise Unsupported(f"{what} need {feature}, which this backend does not have")

    def __call__(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            event = self._event(message)
        except RpcError as error:
            logger.warning(
                "refused an event (%s): %s: %s", shown(message.id), type(error).__name__, shown(error)
            )
        else:
            for listener in self.listeners:
                if listener.address == delivery.to and listener.matches(event.topic):
                    self._hear(listener, event, message.attempt, delivery)
        delivery.finish(None)

    def _event(self, message: Message) -> Event:
        call = decode_call(*self._accept.opened(message))
        headers = {
            key.removeprefix(OWN): text for key, text in message.headers.items() if key.startswith(OWN)
        }
        return Event(call.method, {} if call.params is None else call.params, headers, message.id)

    def _hear(self, listener: Listener, event: Event, attempt: int, delivery: Delivery) -> None:
        try:
            copy_context().run(self._call, listener, event)
        except BaseException as error:  # as handlers, listeners may raise anything
            listener.failures += 1
            self._failed(listener, event, attempt, delivery, error)

    def _call(self, listener: Listener, event: Event) -> None:
        with self._context():
            result = listener.call(event)
            if inspect.iscoroutine(result):
                self._run(result)

    def _failed(
        self, listener: Listener, event: Event, attempt: int, delivery: Delivery, error: BaseException
    ) -> None:
        options, what = listener.subscription.options, (listener.name, event.topic, event.id)
        is_retried = options.retries > 0 and isinstance(error, options.retry_on)
        again = is_retried and attempt <= options.retries and not isinstance(error, FINAL)
        pause = options.pause(attempt, random.random())
        if again:
            text = "listener %s failed: event %r (%s), attempt %d, and is tried again in %.3g s: %s"
            logger.warning(text, *what, attempt, pause, in_short(error))
        else:
            logger.error(
                "listener %s failed: event %r (%s)",
                *what,
                exc_info=error.with_traceback(blamed(error.__traceback__)),
            )
        if not is_retried:
            return
        if not listener.subscription.durable:
            hear = partial(copy_context().run, self._hear, listener, event, attempt + 1, delivery)
            if again and not self._later(pause, hear):
                logger.warning("event %r (%s) is not tried again: too many are", event.topic, shown(event.id))
            return
        try:
            if again:
                delivery.postpone(pause, next_attempt(delivery.message, delivery.message.ttl))
            else:
                delivery.bury(in_short(error), None)
        except RpcError as trouble:
            logger.warning(
                "event %r (%s) could be neither postponed nor buried: %s",
                event.topic,
                shown(event.id),
                trouble,
            )
