"""What a worker says of itself to whoever asks all of them."""

from __future__ import annotations

import inspect
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .core.codecs import ACCEPTED
from .core.jobs import Jobs
from .core.protocol import decode_reply
from .errors import RpcError, shown
from .events import Listener
from .timers import Ticking
from .transport import LOST, Message, topic

logger = logging.getLogger(__name__)

DESCRIBE = "rpc.describe"
ALL_WORKERS = topic("rpc")

logger = logging.getLogger(__name__)


class ListenerInfo(msgspec.Struct, frozen=True):
    """A function that hears events."""

    event: str
    """What it listens to: a name, or a pattern."""
    name: str
    group: str | None = None
    durable: bool = False
    failures: int = 0
    """How often it raised since the worker was started."""


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
) -> WorkerInfo:
    """What there is to say of this process."""
    return WorkerInfo(
        id,
        socket.gethostname(),
        os.getpid(),
        tuple(queues),
        concurrency,
        {name: _signature(job.handler) for name, job in sorted(jobs.items())},
        tuple(
            ListenerInfo(of.pattern, each.name, of.group, of.durable, each.failures)
            for each in listeners
            for of in [each.subscription]
        ),
        {each.name: str(each.timer) for each in ticking},
        coroutines,
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

    @property
    def workers(self) -> list[WorkerInfo]:
        return sorted(self._by_id.values(), key=lambda worker: (worker.host, worker.pid, worker.id))


def names(workers: Iterable[WorkerInfo]) -> Mapping[str, str]:
    """The jobs of all of them, with their signatures."""
    return {name: signature for worker in workers for name, signature in worker.jobs.items()}
