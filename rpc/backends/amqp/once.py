"""At most once: jobs that are never begun twice, though RabbitMQ may have several copies of their message.

There is another copy when a caller or a sender published a message again, since its connection broke before
it knew that the first one arrived; when a worker gave a message back, and was lost before it acknowledged
the first one; and when RabbitMQ delivers again what a lost worker had.

Whoever begins such a job claims it: it makes a queue that is named after the message, with a maximal length
at random. RabbitMQ makes a queue only once, in a transaction; who asks for it with other arguments is refused
(406). So one declaration tests and sets at the same time, and what it has set outlives connections, workers
and RabbitMQ. Nothing is ever in that queue.

A claim ends with the acknowledgement: thousands of queues would be a burden. Copies that come later must be
refused, too:

- What was published again says when that was first done (RESENT). It is begun only if that is less than SURE
  seconds ago and this worker's session is older: then RabbitMQ has not been started anew since, and whoever
  has done the job left a note, a queue that says so, for longer than that.
- What was published or delivered again keeps its claim when it is done, for as long as a copy may come: for
  its `ttl`, or a day.
- Of what a worker gave back, the note stays for longer than RabbitMQ may take that worker to be alive.

Order counts: the note, the acknowledgement and the end of the claim leave on one channel. Whoever finds no
claim looks for the note after that.
"""

from __future__ import annotations

import time
from random import getrandbits
from typing import Any

from ...errors import WorkerLost
from .._serving import BEGUN
from .deliveries import QueueDelivery, was_redelivered
from .messages import PUT_BACK, first_sent
from .session import Session
from .wire import Queue

SURE = 10.0
"""Seconds since its first sending for which a message that was sent again may be begun."""
KEEP_NOTE, KEEP_LONGER = 30.0, 600.0
"""Seconds for which a note stays: longer than SURE, by as much as clocks may differ; and, of what was given
back, longer than heartbeats may be missed."""
UNKNOWN = "it was sent again, since its connection broke: it may have been begun, and may not be done twice"
"""Why a message is given up."""


def claim(session: Session, delivery: QueueDelivery, keep: float) -> None:
    """Have the right to begin a job; for `keep` seconds if nobody says that it ended. Raises Broken, and
    WorkerLost if it may have been begun before."""
    headers = delivery.arrival.properties.headers or {}
    since = first_sent(headers)
    is_again = since is not None or was_redelivered(delivery.arrival) or delivery.message.deliveries > 1
    if is_again and not delivery.message.id:
        _give_up(session, delivery, BEGUN)
    known = min(SURE, time.monotonic() - session.attentive)
    if since is not None and not 0 <= time.time() - since < known:
        _give_up(session, delivery, UNKNOWN)
    if not session.makes(_own(session, delivery.once, keep)) or session.is_marked(delivery.note):
        raise WorkerLost(BEGUN)  # whoever has, or had, the other copy sees to its end
    if not is_again:
        delivery.marks.append(delivery.once)
        note = session.queue(delivery.note, KEEP_LONGER if PUT_BACK in headers else KEEP_NOTE)
        note.nowait = True
        delivery.leaves.append(note)


def _give_up(session: Session, delivery: QueueDelivery, why: str) -> None:
    if delivery.way is None:
        session.bury(delivery, why)
    raise WorkerLost(why)


def _own(session: Session, name: str, seconds: float) -> Any:
    """The declaration of a queue that is refused if somebody else has made it."""
    queue: Queue.Declare = session.queue(name, seconds)
    queue.arguments = {**(queue.arguments or {}), "x-max-length": getrandbits(62)}
    return queue
