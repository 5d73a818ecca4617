"""The receiver's end of a conversation: a delivery in, its last reply out. Never raises.

Whatever arrives (any bytes), and whatever the handler does (raise anything, return anything, answer twice
or never), a caller that waits gets exactly one terminal reply.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..errors import (
    Cancelled,
    Interrupted,
    InvalidParams,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    Unauthorized,
)
from ..message import ATTEMPT, FAILED, IDEMPOTENCY_KEY, NAME, Delivery, Message
from .codecs import JSON, Accepted, Codec
from .jobs import DeliveryMode, Job, Request, current_request, find
from .protocol import decode_call, encode_error, encode_result, printable, remote_error

logger = logging.getLogger(__name__)

_TOLD_AS_THEY_ARE = (InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled, RemoteError)
"""Errors that a handler may raise to say just that. Others of ours, such as the MethodNotFound of a call that
it made itself, would mislead its caller."""

_FINAL = (InvalidParams, SerializationError, Unauthorized, Cancelled)
"""Errors that another attempt would not mend."""

Await = Callable[[Coroutine[Any, Any, Any], Delivery], Any]
"""Runs a coroutine to its end, cancelling it when the delivery is cancelled; returns its result."""


class Dispatcher:
    """A `rpc.backends.Handler` over a table of jobs."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        *,
        accept: Accepted | None = None,
        max_message: int | None = None,
        delivery: DeliveryMode = "at-least-once",
        send_tracebacks: bool = False,
        await_: Await | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_message` is in bytes, for requests and replies alike."""
        self._jobs, self._accept, self._max_message = jobs, accept or Accepted(), max_message
        self._delivery, self._send_tracebacks = delivery, send_tracebacks
        self._await, self.clock = await_, clock

    def __call__(self, delivery: Delivery) -> Message | None:
        message, codec = delivery.message, JSON
        try:
            codec = self._accept.codec(message.headers.get("content-type"))
            if self._max_message is not None and len(message.body) > self._max_message:
                raise SerializationError(
                    f"the request has {len(message.body)} bytes: more than {self._max_message}"
                )
            call = decode_call(message.body, codec)
            job = find(self._jobs, call.method)
            deadline = self._deadline(message.ttl)
            work = _Work(self, delivery, codec)
            request = Request(delivery, {} if call.params is None else call.params, deadline, work.respond)
            handler = job.bound(call, request)
            if delivery.cancelled:
                raise Cancelled("the caller left before a worker came to it")
            if (job.options.delivery or self._delivery) == "at-most-once":
                delivery.forbid_redelivery()
        except RpcError as error:
            name = message.headers.get(NAME, "")[:128]
            logger.warning("refused %r (%s): %s: %s", name, message.id, type(error).__name__, error)
            return self.failure(message, error, codec)
        return work.run(job, handler, request)

    def _deadline(self, ttl: float | None) -> float | None:
        if ttl is None:
            return None
        if ttl <= 0:
            raise RpcTimeout("it expired before a worker came to it")
        return self.clock() + ttl

    def result(self, message: Message, value: Any, codec: Codec) -> Message:
        """The reply that carries a value; SerializationError if it cannot be encoded or is too large."""
        try:
            body = encode_result(message.id, value, codec)
        except SerializationError as error:
            raise SerializationError(f"the result cannot be encoded: {error}") from error
        if self._max_message is not None and len(body) > self._max_message:
            raise SerializationError(f"the result has {len(body)} bytes: more than {self._max_message}")
        return Message(body, _reply_headers(message, codec))

    def failure(self, message: Message, error: RpcError, codec: Codec) -> Message:
        """The reply that carries an error."""
        kind = printable(str(error.type) if isinstance(error, RemoteError) else type(error).__name__)
        body = encode_error(message.id, error, codec)
        if self._max_message is not None and len(body) > self._max_message:
            text = str(error)[:1000]
            shorter = RemoteError(kind[:128], text) if isinstance(error, RemoteError) else type(error)(text)
            body = encode_error(message.id, shorter, codec)
        return Message(body, {**_reply_headers(message, codec), FAILED: kind[:128]})

    def remote(self, error: BaseException) -> RpcError:
        """What the caller is told of what the handler raised."""
        if isinstance(error, Interrupted):
            return RpcTimeout(str(error))
        if isinstance(error, _TOLD_AS_THEY_ARE):
            return error
        trace = "".join(traceback.format_exception(error)) if self._send_tracebacks else None
        return remote_error(error, trace)

    def awaited(self, coroutine: Coroutine[Any, Any, Any], delivery: Delivery) -> Any:
        if self._await is None:
            coroutine.close()
            raise SerializationError("this receiver runs no coroutines")
        return self._await(coroutine, delivery)


def _reply_headers(message: Message, codec: Codec) -> dict[str, str]:
    # A longer id is not one of ours, and might not leave room for the other headers.
    return {"id": printable(message.id[:128]), "content-type": codec.content_type}


class _Work:
    """One request on its way through its handler: remembers whether it was answered."""

    def __init__(self, dispatcher: Dispatcher, delivery: Delivery, codec: Codec) -> None:
        self._dispatcher, self._delivery, self._codec = dispatcher, delivery, codec
        self._message = delivery.message
        self._answered = False
        self._last: Message | None = None
        """The response, if it is for others, too: it leaves again with the acknowledgement."""

    def respond(self, request: Request, data: Any) -> bool:
        for_others = IDEMPOTENCY_KEY in request.headers
        if self._answered or (request.response_key is None and not for_others):
            return False
        reply = self._dispatcher.result(self._message, data, self._codec)
        self._answered = True
        self._last = reply if for_others else None
        return self._delivery.reply(reply)

    def run(self, job: Job, handler: Callable[[], Any], request: Request) -> Message | None:
        try:
            value = self._value(job, handler, request)
            if self._answered or (request.response_key is None and IDEMPOTENCY_KEY not in request.headers):
                return self._last
            reply = self._dispatcher.result(self._message, value, self._codec)
            self._answered = True  # nobody may respond later, from another thread
            return reply
        except BaseException as error:  # a handler may raise anything, and its caller must be told
            return self._failed(job, request, error)

    def _failed(self, job: Job, request: Request, error: BaseException) -> Message | None:
        logger.exception("job %r (%s) failed", job.name, request.id)
        if self._answered:
            return self._last
        self._answered = True
        remote, options = self._dispatcher.remote(error), job.options
        failure = self._dispatcher.failure(self._message, remote, self._codec)
        if not options.retries or not isinstance(error, options.retry_on) or isinstance(error, _FINAL):
            return failure
        now, pause = self._dispatcher.clock(), options.pause(request.attempt, random.random())
        in_time = request.deadline is None or now + pause < request.deadline
        try:
            if request.attempt <= options.retries and in_time and not self._delivery.cancelled:
                logger.info("job %r (%s) is tried again in %.3g s", job.name, request.id, pause)
                again = {"deliveries": None, ATTEMPT: request.attempt + 1}
                self._delivery.postpone(pause, self._message.but(**again))
            else:
                self._delivery.bury(printable(str(remote))[:500], failure)
        except RpcError as trouble:
            logger.warning("job %r (%s) cannot be tried again: %s", job.name, request.id, trouble)
            return failure
        return None

    def _value(self, job: Job, handler: Callable[[], Any], request: Request) -> Any:
        if job.is_coroutine:
            return self._dispatcher.awaited(_in_context(handler, request), self._delivery)
        token = current_request.set(request)
        try:
            return handler()
        finally:
            current_request.reset(token)


async def _in_context(handler: Callable[[], Any], request: Request) -> Any:
    current_request.set(request)
    try:
        return await handler()
    except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and all that runs in it
        raise remote_error(error) from error
