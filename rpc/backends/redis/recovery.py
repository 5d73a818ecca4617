"""What becomes of what a worker had that died, or gives it back: it is put into its queue, or given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...errors import shown
from ...transport import Message, packed
from .._serving import DIED, STOPPED, lost
from . import scripts
from .keys import Keys, QueueNames
from .servers import servers_of
from .topics import run_on_client

logger = logging.getLogger(__name__)

MOST_PAGES = 10_000
"""Of one worker: what says that it has more is not true."""

Ask = Callable[..., list[Any]]
"""The answers to commands."""


def workers_of(ask: Ask, keys: Keys) -> dict[bytes, tuple[int, bool]]:
    """Those that serve a queue: how many pages each has, and whether it gives signs of life."""
    flat = ask(("HGETALL", keys.workers))[0]
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    pages = {name: int(count) if count.isdigit() and int(count) <= MOST_PAGES else 1 for name, count in pairs}
    if not pages:
        return {}
    left = ask(*(("PTTL", keys.alive(text(name))) for name in pages))
    return {name: (pages[name], alive > 0) for name, alive in zip(pages, left, strict=True)}


def text(name: bytes) -> str:
    return name.decode(errors="replace")  # which nobody's name has: whoever put it there is absent


class Held(NamedTuple):
    """What a worker has of a queue."""

    queue: Keys
    worker: bytes
    pages: int


def bring_back(
    ask: Ask,
    held: Held,
    max_deliveries: int,
    *,
    force: bool,
    died: bool,
    forget: bool,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Do so unless it lives, or even then (`force`), and then `forget` that it served the queue. `before` is
    called before each page. Raises redis.RedisError."""
    keys, name, pages = held
    why, worker = DIED if died else STOPPED, text(name)
    arguments = int(force), int(died), max_deliveries, packed(lost(Message(), why)), f"WorkerLost: {why}"
    back = given_up = 0
    for number in reversed(range(max(1, pages))):
        before()
        places = [keys.alive(worker), keys.page(worker, number), keys.queue, keys.wakeup, keys.dead]
        places += [keys.workers] * (forget and number == 0)
        outcome = ask((scripts.RECOVER, len(places), *places, *arguments, name))[0]
        if not outcome:
            return
        back, given_up = back + outcome[0], given_up + outcome[1]
    if back or given_up:
        said = "of what worker %s held in %s, %d are delivered again, %d were given up"
        logger.warning(said, shown(worker), keys.queue, back, given_up)


def recover_dead(client: Any, prefix: str, queues: Sequence[str], worker: str, max_deliveries: int) -> None:
    """The process of this worker is known to be dead: bring back what it had. It is not forgotten yet: Redis
    may go on waiting for a message, and give it one. Raises redis.RedisError."""
    servers, name = servers_of(client), worker.encode()
    for keys in map(QueueNames(prefix).queue, queues):
        ask = partial(run_on_client, servers, keys.queue)
        ask(("DEL", keys.alive(worker)))
        pages, _ = workers_of(ask, keys).get(name, (1, False))
        bring_back(ask, Held(keys, name, pages), max_deliveries, force=True, died=True, forget=False)
