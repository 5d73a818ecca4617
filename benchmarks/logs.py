"""The case of `concurrency` that is about log records."""

from __future__ import annotations

import logging
import logging.handlers
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

import redis

from rpc.backends.redis.keys import Names
from rpc.core.codecs import ACCEPTED
from rpc.core.events import decode_event
from rpc.core.log_batches import LOGS, Heard
from rpc.logs import RpcLogHandler
from rpc.testing import RedisServer, start_redis
from rpc.transport import unpacked

from .concurrency import Amounts, Row
from .results import Bound

AWAY = 5
"""Times as long as a handler blocks, is the broker away."""
NONE, THREE = Bound(0), Bound(3)


def logged(url: str, amounts: Amounts) -> Iterator[Row]:
    """What a record costs whoever logs it, beside the handler of the standard library that puts it into a
    queue of this process, where it stays."""
    number, seconds = amounts.records, AWAY * amounts.seconds
    queued, sent, away = list[float](), list[float](), list[float]()
    lost = dropped = 0
    with start_redis() as server:
        for _ in range(amounts.rounds):
            queued.append(_cost(logging.handlers.QueueHandler(SimpleQueue()), number))
            with closing(RpcLogHandler(server.url, capacity=2 * number, close_timeout=60)) as handler:
                sent.append(_cost(handler, number))
                assert handler.flush(60)
                server.stop()
                end = time.monotonic() + seconds
                away.append(_cost(handler, number))
                time.sleep(max(0.0, end - time.monotonic()))
                server.restart()
                assert handler.flush(60)
            came, missing = _came(server)
            lost, dropped = lost + number - came, dropped + missing
    what = f"{number:,} log records"
    yield Row(f"{what}: of one, who logs has with a QueueHandler", 1e6 * statistics.median(queued), "µs", 1)
    yield Row(f"{what}: of one, who logs has with an RpcLogHandler", 1e6 * statistics.median(sent), "µs", 1)
    yield Row(f"{what}: of a QueueHandler's", _ratio(sent, queued), digits=2, bound=THREE)
    while_away = f"{what} while the broker is away for {seconds:g} s"
    yield Row(f"{while_away}: of those while it is there", _ratio(away, sent), digits=2, bound=Bound(1.1))
    yield Row(f"{while_away}: lost", lost, bound=NONE, must=True)
    yield Row(f"{while_away}: dropped", dropped, bound=NONE, must=True)


def _cost(handler: logging.Handler, number: int) -> float:
    """Seconds of a record, from the call to its return."""
    log = logging.getLogger("benchmarks.logged")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.handlers[:] = [handler]
    begun = time.perf_counter()
    for each in range(number):
        log.info("order %d of %s", each, "Ann")
    return (time.perf_counter() - begun) / number


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def _came(server: RedisServer) -> tuple[int, int]:
    """How many records are in the topic, and how many were missing; the server is new, and had none."""
    heard, records, missing = Heard(), 0, 0
    with redis.Redis.from_url(server.url) as client:
        for _, fields in client.xrange(Names().channel(LOGS)):
            for entry in heard.entries(decode_event(unpacked(fields[b"m"]), ACCEPTED)):
                lack = entry.extra.get("missing", 0)
                records, missing = records + (not lack), missing + lack
    return records, missing
