"""What a worker says of itself to whoever asks all of them."""

from __future__ import annotations

import inspect
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import msgspec

from .contract.documents import Document, checked
from .contract.openrpc import differing, merged, methods_of, selected
from .core.codecs import ACCEPTED
from .core.jobs import Jobs
from .core.protocol import decode_reply
from .core.registry import Wanted
from .errors import NoReceivers, RpcError, RpcTimeout, shown
from .events import Listener
from .identity import NAMELESS, Identity, Order, ordered
from .timers import Ticking
from .transport import LOST, Address, AsyncBackend, Backend, Message, topic

logger = logging.getLogger(__name__)

DESCRIBE = "rpc.describe"
DISCOVER = "rpc.discover"
"""The name that OpenRPC reserves for it (https://spec.open-rpc.org/#service-discovery-method)."""
HEALTH_CHECK = "health_check"
"""The job by which a service is asked whether it is well. Each may have one of its own: nobody needs to agree
on it."""
ONLY = "only"
"""Header of a question to all workers: the id of the one that is asked. The others do not answer."""
ALL_WORKERS = topic("rpc")
ANSWERS_ALL = frozenset({"topics", "describes"})
"""Features: with one of them, workers can be asked all together."""


class ListenerInfo(msgspec.Struct, frozen=True):
    """A function that hears events."""

    event: str
    """What it listens to: a name, or a pattern."""
    name: str
    group: str | None = None
    durable: bool = False
    failures: int = 0
    """How often it raised since the worker was started."""
    headers: dict[str, str | int | float | bool | None] = {}
    """Those that an event must have; None stands for any value."""
    match: str = "all"


class WorkerInfo(msgspec.Struct, frozen=True):
    """One that runs now."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    """What it serves, in order of priority."""
    concurrency: int
    """How many plain functions it runs at a time."""
    jobs: dict[str, str]
    """Names of jobs and of exposed methods, with their signatures."""
    listeners: tuple[ListenerInfo, ...] = ()
    timers: dict[str, str] = {}
    """Names of functions that tick, and when."""
    coroutines: int = 0
    """How many coroutines it runs at a time."""
    service: str = ""
    """The domain, type and id of the service that it is; "" if it is none."""
    version: str = ""
    """The version of that service."""
    running: int = 0
    """How many jobs it runs just now."""
    schema: str = ""
    """The SHA-256 of its OpenRPC document: those with the same one offer the same."""

    @property
    def services(self) -> dict[str, dict[str, str]]:
        """The exposed methods of each service, with their signatures."""
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, signature in self.jobs.items():
            service, _, method = name.rpartition(".")
            if service:
                found[service][method] = signature
        return dict(found)


def worker_info(
    id: str,
    jobs: Jobs,
    queues: Sequence[str],
    concurrency: int,
    coroutines: int,
    listeners: Iterable[Listener],
    ticking: Iterable[Ticking],
    identity: Identity,
    running: int,
    schema: str,
) -> WorkerInfo:
    """What there is to say of this process."""
    service = (str(identity), identity.version) if identity.type else ("", "")
    return WorkerInfo(
        id,
        socket.gethostname(),
        os.getpid(),
        tuple(queues),
        concurrency,
        {name: _signature(job.handler) for name, job in sorted(jobs.items())},
        tuple(
            ListenerInfo(
                of.pattern,
                each.name,
                of.group,
                of.durable,
                each.failures,
                dict(of.filter.headers),
                of.filter.match,
            )
            for each in listeners
            for of in [each.subscription]
        ),
        {each.name: str(each.timer) for each in ticking},
        coroutines,
        *service,
        running,
        schema,
    )


def offered(worker: WorkerInfo) -> str:
    """What a worker does, for its log."""
    parts = {
        ", ".join(worker.queues): [*worker.jobs],
        "listeners": sorted(f"{each.name} ({each.event})" for each in worker.listeners),
        "timers": [*worker.timers],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


class _Bare(str):
    """An annotation that is written as a text: it is shown without its quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(handler: Callable[..., Any]) -> str:
    signature = inspect.signature(handler)
    parameters = [each.replace(annotation=_shown(each.annotation)) for each in signature.parameters.values()]
    try:
        return str(
            signature.replace(parameters=parameters, return_annotation=_shown(signature.return_annotation))
        )
    except Exception:  # a default is the user's: its __repr__ may raise anything
        logger.warning("the signature of %r cannot be shown", handler, exc_info=True)
        return "(...)"


def _shown(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


ANY = Wanted()
SHOWN = 10
"""Services that an error names at most."""


def fits(worker: WorkerInfo, wanted: Wanted) -> bool:
    """Whether it is a service that is wanted. Any worker is if nothing is asked for. Raises ValueError if the
    versions that are wanted are none."""
    if wanted == ANY:
        return True
    match worker.service.split("."):
        case [domain, type, id]:
            has = Wanted(domain, type, id, worker.version, worker.id)
            try:
                ordered(worker.version)
            except ValueError:  # what it says of itself is no version
                return False
            return wanted.fits(has)
    return False


def none_of(workers: Iterable[WorkerInfo], wanted: Wanted) -> str:
    """That none of these is wanted, and which services they are."""
    known = sorted({f"{each.service} {each.version}" for each in workers if each.service})
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"no service runs that is {wanted}: there is {', '.join(known[:SHOWN]) or 'none'}{more}"


Quiet = Callable[[], float]
"""Seconds without an answer after which there will be no other one, as it looks after the last one."""


def answers(backend: Backend, asked: tuple[Address, Message], wait: float, quiet: Quiet) -> Iterator[Message]:
    """What all that were asked reply, within `wait` seconds after that, or until none has for as long as
    `quiet` says. Raises BackendUnavailable."""
    with suppress(RpcTimeout, NoReceivers), closing(backend.request(*asked)) as replies:
        end, left = time.monotonic() + wait, wait  # to ask may take long: ZeroMQ first learns who is there
        while not _is_last(reply := replies.receive(left)):
            yield reply
            if (left := min(quiet(), end - time.monotonic())) <= 0:
                return


async def answers_in_loop(
    backend: AsyncBackend, asked: tuple[Address, Message], wait: float, quiet: Quiet
) -> AsyncIterator[Message]:
    """As `answers`."""
    with suppress(RpcTimeout, NoReceivers), closing(await backend.request(*asked)) as replies:
        end, left = time.monotonic() + wait, wait
        while not _is_last(reply := await replies.receive(left)):
            yield reply
            if (left := min(quiet(), end - time.monotonic())) <= 0:
                return


def _is_last(reply: Message) -> bool:
    """Whether it says that the way back is gone, and not that one of those who were asked has failed, whose
    reply would have the id of the request: it would be said again and again."""
    return LOST in reply.headers and not reply.id


class Gathering:
    """The answers of workers, one for each."""

    def __init__(self) -> None:
        self._by_id: dict[str, WorkerInfo] = {}

    def add(self, reply: Message) -> None:
        """One that cannot be read, or is an error, is left out and logged: the others count."""
        if LOST in reply.headers:
            return
        try:
            info = msgspec.convert(decode_reply(*ACCEPTED.opened(reply)), WorkerInfo)
        except (RpcError, msgspec.ValidationError) as error:
            logger.warning("a worker did not say what it is: %s", shown(error))
            return
        self._by_id[info.id] = info

    def __iter__(self) -> Iterator[str]:
        """The ids of those that answered."""
        return iter(self._by_id)

    @property
    def workers(self) -> list[WorkerInfo]:
        return sorted(self._by_id.values(), key=lambda worker: (worker.host, worker.pid, worker.id))


class Discovery:
    """The OpenRPC documents of workers, one for each of those that differ."""

    def __init__(self, workers: Collection[WorkerInfo], wanted: Wanted = ANY) -> None:
        """Of these workers those count that are `wanted`. Raises NoReceivers if there is none."""
        self._workers = sorted((each for each in workers if fits(each, wanted)), key=_rank)
        if not self._workers:
            raise NoReceivers(none_of(workers, wanted) if workers else "no worker said in time that it runs")
        self._documents: dict[str, Document] = {}

    def __iter__(self) -> Iterator[str]:
        """The ids of those that are to be asked; the next one of the same if there was no answer."""
        for each in self._workers:
            if each.schema not in self._documents:
                yield each.id

    def add(self, id: str, reply: Message) -> None:
        """One that cannot be read, or is an error, is left out and logged."""
        try:
            document = checked(decode_reply(*ACCEPTED.opened(reply)))
        except (RpcError, ValueError) as error:
            logger.warning("worker %s did not say what it offers: %s", id, shown(error))
            return
        self._documents |= {each.schema: document for each in self._workers if each.id == id}

    def document(self, service: str | None) -> Document:
        """What all of them offer, or the part that is about one service. Raises RpcTimeout if one has not
        answered, ServiceNotFound."""
        missing = [each for each in self._workers if each.schema not in self._documents]
        if missing:
            raise RpcTimeout(f"{missing[0].host}:{missing[0].pid} did not say in time what it offers")
        documents = {each.schema: self._documents[each.schema] for each in self._workers}
        if service is None:
            together = merged([*documents.values()], self._neutral())
        else:
            having = {key: each for key, each in documents.items() if methods_of(each, service)}
            documents = having or documents
            together = selected(merged([*documents.values()]), service)
        self._warn(documents, {each["name"] for each in together["methods"]} - {HEALTH_CHECK})
        return together

    def _warn(self, documents: Mapping[str, Document], methods: Collection[str]) -> None:
        """Say of which of these methods workers say different things."""
        first = {each.schema: _place(each) for each in reversed(self._workers)}
        odd = [
            f"{name} ({', '.join(first[key] for key in keys)})"
            for name, keys in differing(documents).items()
            if name in methods
        ]
        if odd:
            logger.warning("workers do not agree on %s: the first one is believed", ", ".join(odd))

    def _neutral(self) -> str:
        """The title for services of several types: their domain, if they have one."""
        domains = {each.service.partition(".")[0] for each in self._workers if each.service}
        return domains.pop() if len(domains) == 1 and NAMELESS not in domains else "rpc"


def _rank(worker: WorkerInfo) -> tuple[str, Order, str, str]:
    """Those that are lower are believed first: by name and version. Of those that are equal in this, the
    hashes decide: not who answered first."""
    try:
        order = ordered(worker.version)
    except ValueError:  # of a worker that is no service
        order = ordered("0.0.0")
    return worker.service, order, worker.version, worker.schema


def _place(worker: WorkerInfo) -> str:
    """What finds a worker: its service, if it is one, and its process."""
    process = f"{worker.host}:{worker.pid}"
    return f"{worker.service} {worker.version} at {process}" if worker.service else process


def names(workers: Iterable[WorkerInfo]) -> Mapping[str, str]:
    """The jobs of all of them, with their signatures."""
    return {name: signature for worker in workers for name, signature in worker.jobs.items()}
