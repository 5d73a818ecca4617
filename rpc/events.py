"""Events: what is published reaches every listener, or one of each group.

An event's topic is the first part of its name, up to the first dot: `order` of `order.created`. Whoever
listens hears the whole topic, and picks what its patterns match.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from .backends.features import unsupported
from .core.codecs import Accepted
from .core.events import Event, decode_event, needs
from .core.filters import Filter, Match, Scalar
from .core.handling import HandedBack
from .core.jobs import FINAL, JobOptions, marking
from .core.lifecycle import blamed, next_attempt
from .core.middleware import ContextFactory
from .core.parameters import conversions, hints, is_annotated
from .core.patterns import matcher
from .core.protocol import in_short
from .durations import Duration
from .errors import RpcError, SettingsError, shown
from .identity import NAMELESS
from .transport import ADDRESS_NAME as NAME
from .transport import Address, Delivery, Message, topic

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
FILTERED = re.compile(r"\.__([0-9a-f]{12})__$")
"""Follows the pattern of a group with a filter: its digest. Groups with different filters are different
ones, so that none gets what is for the other."""


ONCE = JobOptions()
"""What is not tried again."""


class Subscription(NamedTuple):
    """Times are in seconds."""

    pattern: str
    group: str | None = None
    durable: bool = False
    options: JobOptions = ONCE
    filter: Filter = Filter()

    def address(self, domain: str = NAMELESS) -> Address:
        """Where it is heard in a domain. Raises ValueError if there cannot be such an address."""
        name = in_domain(self.pattern.partition(".")[0], domain)
        needed = needs(self.filter)
        if self.group is None:
            return replace(topic(name, durable=self.durable), needs=needed)
        group = f"{self.group}{BETWEEN}{self.pattern.replace('*', ANY)}"
        if digest := self.filter.digest:
            group += f".__{digest}__"
        return replace(topic(name, group, durable=self.durable), needs=needed)

    @staticmethod
    def of(address: Address) -> tuple[str, str, str]:
        """The pattern and the group of such an address, and the digest of its filter ("": it has none)."""
        group, _, pattern = (address.group or "").rpartition(BETWEEN)
        pattern, *digest = FILTERED.split(pattern)[:2]
        return pattern.replace(ANY, "*"), group, "".join(digest)


def on(
    event: str,
    *,
    headers: Mapping[str, Scalar | None] | None = None,
    match: Match = "all",
    group: str | None = None,
    durable: bool = False,
    retries: int = 0,
    backoff: Duration = 1.0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
) -> Callable[[F], F]:
    """Have a function, or a method of a service, called with each event of this name. May be repeated.

    `event` may have wildcards after its first dot: `order.*` is all that begins with `order.`. With
    `headers`, those that match are heard: all of them, or `match="any"`; None stands for any value (see
    `rpc.core.filters.matches`). Every worker process hears it; of those that listen to the same `event`, with
    the same headers, in one `group`, only one does. A `durable` group hears what was published while none of
    its workers ran, too, and again if one dies; for others, what nobody hears is gone. `retries`, `backoff`
    (seconds) and `retry_on` are as in `job`. The function gets the data, converted to its annotation; or the
    Event, if its parameter is named `event` or is annotated so. Raises ValueError.
    """
    options = JobOptions.checked(None, retries, backoff, retry_on)
    subscription = subscribed(event, headers, match, group, durable, options)
    return marking("__rpc_on__", subscription, several=True)


def subscribed(
    event: str,
    headers: Mapping[str, Scalar | None] | None = None,
    match: Match = "all",
    group: str | None = None,
    durable: bool = False,
    options: JobOptions = ONCE,
) -> Subscription:
    """What is subscribed to with these arguments of `on`. Raises ValueError."""
    if not isinstance(event, str) or not PATTERN.fullmatch(event) or event.partition(".")[0] == RESERVED:
        raise ValueError(
            f"{event!r:.200} is no event: a name, and after its first dot more of them, or '*': as in "
            f"'order.*'; {RESERVED!r} is reserved"
        )
    if durable and group is None:
        raise ValueError("durable needs group=: what is published is kept for one")
    if group is not None and not NAME.fullmatch(group):
        raise ValueError(f"{group!r} is no group: letters, digits, '_', '.', '-', at most 128")
    subscription = Subscription(event, group, durable, options, Filter.of(headers, match))
    address = subscription.address()  # ValueError if there cannot be one
    if durable:
        _ = address.subscription_queue
    return subscription


def in_domain(topic: str, domain: str) -> str:
    """The name of the address of a topic in a domain: events have no dots in theirs."""
    return topic if domain == NAMELESS else f"{domain}.{topic}"


def event_address(name: str, domain: str = NAMELESS) -> Address:
    """Where an event is published in a domain; ValueError if that is no event's name."""
    if not (isinstance(name, str) and EVENT.fullmatch(name)) or name.partition(".")[0] == RESERVED:
        raise ValueError(
            f"{name!r:.200} is no event: letters, digits, '_' and '-', in parts with dots between them, "
            f"the first of which is not {RESERVED!r}"
        )
    return topic(in_domain(name.partition(".")[0], domain))


class Listener:
    """A function that hears events."""

    def __init__(
        self, name: str, handler: Callable[..., Any], subscription: Subscription, domain: str = NAMELESS
    ) -> None:
        self.name, self.subscription = name, subscription
        try:
            self.address = subscription.address(domain)
        except ValueError as error:
            raise SettingsError(f"listener {name}: {error}") from error
        self.handler = handler
        self._matches = matcher(subscription.pattern)
        self._parameter = _only_parameter(name, handler)
        self._wants_event = self._parameter == "event" or is_annotated(handler, self._parameter, Event)
        takes_any = self._wants_event or not self._parameter
        try:
            self._convert = None if takes_any else conversions(handler).get(self._parameter)
        except TypeError as error:
            raise SettingsError(f"listener {name}: {error}") from error
        self.failures = 0
        """How often it raised."""

    def wants(self, event: Event) -> bool:
        """Whether it is to hear this event, which came to its address."""
        return bool(self._matches(event.topic)) and self.subscription.filter(event.headers)

    @property
    def payload(self) -> Any:
        """The annotation of the data that it wants; Any if it says nothing of them."""
        return Any if self._wants_event else hints(self.handler)[0].get(self._parameter, Any)

    def argument(self, event: Event) -> Any:
        """What it is called with; InvalidParams if the data is not what it wants."""
        if self._wants_event:
            return event
        return event.data if self._convert is None else self._convert(event.data, self._parameter)

    def call(self, event: Event) -> Any:
        return self.handler(self.argument(event))


def _only_parameter(name: str, handler: Callable[..., Any]) -> str:
    """The name of the parameter that a listener has; "" if it cannot be known."""
    try:
        found = inspect.signature(handler).parameters.values()
    except (
        ValueError
    ):  # functions written in C need not have a signature: `print` has one from Python 3.11 on
        return ""
    required = [each for each in found if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if len(required) != 1 or required[0].kind is required[0].KEYWORD_ONLY:
        raise SettingsError(f"listener {name}: it gets one argument, the data or the `event`")
    return required[0].name


def listeners_in(members: Sequence[tuple[str, Callable[..., Any]]], domain: str = NAMELESS) -> list[Listener]:
    """Those among these functions that are marked with `on`; SettingsError if they cannot be."""
    found = [
        Listener(name, each, subscription, domain)
        for name, each in members
        for subscription in getattr(each, "__rpc_on__", ())
    ]
    durable = [each.address for each in found if each.subscription.durable]
    for address in durable:
        if durable.count(address) > 1:
            raise SettingsError(f"{address} is durable, and has two listeners: give each a group of its own")
    check_groups(found)
    return found


def check_groups(listeners: Iterable[Listener]) -> None:
    """Raises SettingsError if members of one group want different headers."""
    filters: dict[tuple[str, str], Listener] = {}
    for each in listeners:
        pattern, group, wanted = each.subscription.pattern, each.subscription.group, each.subscription.filter
        first = filters.setdefault((pattern, group), each) if group else each
        if first.subscription.filter.digest != wanted.digest:
            raise SettingsError(
                f"the members of group {group!r} of {pattern!r} want different headers ({first.name}, "
                f"{each.name}): give each a group of its own"
            )


def _addresses(listeners: Iterable[Listener]) -> list[Address]:
    """Each once, with what all of its listeners need."""
    found: dict[Address, Address] = {}
    for to in (each.address for each in listeners):
        known = found.setdefault(to, to).needs
        found[to] = replace(to, needs=None if known is None or to.needs is None else known + to.needs)
    return [*found.values()]


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
        self.addresses = _addresses(listeners)

    def check(self, features: frozenset[str]) -> None:
        """Raises Unsupported if a backend with these features cannot carry what they listen to."""
        durable = [each for each in self.listeners if each.subscription.durable]
        for what, feature, needed in (
            ("listens to events", "topics", self.listeners),
            ("has group=", "groups", [each for each in self.listeners if each.subscription.group]),
            ("has durable=True", "subscriptions", durable),
            ("has retries=", "delay", [each for each in durable if each.subscription.options.retries]),
        ):
            if needed and feature not in features:
                raise unsupported(feature, f"{needed[0].name} {what}, but this backend")

    def __call__(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            event = self.event(message)
        except RpcError as error:
            logger.warning(
                "refused an event (%s): %s: %s", shown(message.id), type(error).__name__, shown(error)
            )
        else:
            for listener in self.listeners:
                if listener.address == delivery.to and listener.wants(event):
                    self.hear(listener, event, message.attempt, delivery)
        delivery.finish(None)

    def event(self, message: Message) -> Event:
        """The event in a message; RpcError if there is none that can be read."""
        return decode_event(message, self._accept)

    def hear(
        self, listener: Listener, event: Event, attempt: int = 1, delivery: Delivery | None = None
    ) -> None:
        """Have a listener hear an event. Only one that is durable needs the delivery."""
        try:
            copy_context().run(self._call, listener, event)
        except HandedBack:
            if delivery and listener.subscription.durable:
                self._safely(
                    event, partial(delivery.postpone, 0.0, delivery.message.replace(deliveries=None))
                )
        except BaseException as error:  # as handlers, listeners may raise anything
            listener.failures += 1
            self._failed(listener, event, attempt, delivery, error)

    def _call(self, listener: Listener, event: Event) -> None:
        with self._context():
            result = listener.call(event)
            if inspect.iscoroutine(result):
                self._run(result)

    def _failed(
        self, listener: Listener, event: Event, attempt: int, delivery: Delivery | None, error: BaseException
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
        if delivery is None or not listener.subscription.durable:
            hear = partial(copy_context().run, self.hear, listener, event, attempt + 1, delivery)
            if again and not self._later(pause, hear):
                logger.warning("event %r (%s) is not tried again: too many are", event.topic, shown(event.id))
        elif again:
            following = next_attempt(delivery.message, delivery.message.ttl)
            self._safely(event, partial(delivery.postpone, pause, following))
        else:
            self._safely(event, partial(delivery.bury, in_short(error), None))

    def _safely(self, event: Event, action: Callable[[], None]) -> None:
        try:
            action()
        except RpcError as trouble:
            logger.warning(
                "event %r (%s) could be neither postponed nor buried: %s",
                event.topic,
                shown(event.id),
                trouble,
            )
