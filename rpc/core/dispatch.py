"""The receiver's end of a conversation: a delivery in, which is finished with its last reply. Never raises.

Whatever arrives (any bytes), and whatever the handler does (raise anything, return anything, answer twice
or never), a caller that waits gets exactly one terminal reply.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any

from ..errors import Cancelled, RpcError, RpcTimeout, SerializationError, VersionMismatch, WorkerLost, shown
from ..transport import NAME, TOKEN, VERSION, Delivery
from .codecs import ACCEPTED, Accepted
from .handling import Handling, is_attended
from .jobs import Calls, DeliveryMode, Job, Jobs
from .lifecycle import UNKNOWN_FOR, after_refusal, check_version, passed_on, reason
from .protocol import decode_call
from .streams import is_stream
from .tokens import Tokens
from .work import Work

logger = logging.getLogger(__name__)


class Dispatcher(Handling):
    """A `rpc.backends.Handler` over a table of jobs."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        accept: Accepted | None = None,
        delivery: DeliveryMode = "at-least-once",
        keep_results: float = 0.0,
        unknown_for: float = UNKNOWN_FOR,
        version: str = "",
        calls: Calls | None = None,
        tokens: Tokens | None = None,
        **handling: Any,
    ) -> None:
        """`keep_results` is the seconds for which the outcomes of jobs that nobody waits for are kept,
        `unknown_for` those for which an unknown one of them is passed on, `version` that of the service which
        this is. `tokens` are what callers must have. All else is as in `Handling`."""
        super().__init__(**handling)
        self._jobs, self._accept, self._delivery, self._calls = jobs, accept or ACCEPTED, delivery, calls
        self._keep_results, self._unknown_for, self._version = keep_results, unknown_for, version
        self._tokens = tokens

    def __call__(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            if VERSION in message.headers:
                check_version(message.headers[VERSION], self._version)
            body, codec = self._accept.opened(message)
            call = decode_call(body, codec)
            if self._tokens:  # before it is known whether there is such a job
                self._tokens.check(call.method, message.headers.get(TOKEN), self.clock())
            job = self._jobs.find(call.method)
            deadline = self._deadline(message.ttl)
            work = Work(self, delivery, codec, job, self._keep(delivery, job))
            request = job.request_type(delivery, call, deadline, work.respond, self._calls, work.tell)
            handler = job.bound(call, request)
            if delivery.cancelled:
                raise Cancelled("the caller left before a worker came to it")
            streams = self.streams is not None and is_stream(message.headers)
            if streams or (job.options.delivery or self._delivery) == "at-most-once":
                delivery.forbid_redelivery()
            if job.options.fork or job.options.time_limit or self.time_limit:
                handler = work.confined(handler, request)
            if streams:
                work.open(request)
        except RpcError as error:
            self._refuse(delivery, error)
            return
        if job.is_coroutine and self.detaches:
            work.detach(handler, request)
        else:
            self.began(delivery, thread=True)
            work.run(handler, request)

    def _refuse(self, delivery: Delivery, error: RpcError) -> None:
        message = delivery.message
        failure = self.failure(message, error, self._accept.answering(message))
        name = message.headers.get(NAME, "")[:128]
        is_for_others = isinstance(error, VersionMismatch)
        level = logging.DEBUG if is_for_others else logging.WARNING
        logger.log(
            level, "refused %r (%s): %s: %s", name, shown(message.id), type(error).__name__, shown(error)
        )
        delivery.error = error.with_traceback(None)
        if (is_attended(delivery) and not is_for_others) or isinstance(error, WorkerLost):
            delivery.finish(failure)  # also of one whose worker is lost: the backend knows who has it
            return
        fate = after_refusal(error, message, unknown_for=self._unknown_for, chance=self.dice())
        with suppress(SerializationError):  # that header may be what it was refused for
            if keep := message.keep:
                failure = self.kept(delivery, failure, keep, 0.0)
        seconds = fate if isinstance(fate, float) else 0.0
        why, later = partial(reason, error, error), partial(passed_on, message, seconds)
        self.settle(delivery, fate, failure, why=why, later=later)

    def _keep(self, delivery: Delivery, job: Job) -> float:
        """Seconds for which the outcome is to be kept."""
        keep = delivery.message.keep
        if keep is None:
            return 0.0 if is_attended(delivery) else job.options.keep or self._keep_results
        return keep

    def _deadline(self, ttl: float | None) -> float | None:
        if ttl is None:
            return None
        if ttl <= 0:
            raise RpcTimeout("it expired before a worker came to it")
        return self.clock() + ttl
