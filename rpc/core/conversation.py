"""The caller's end of a conversation: one request out, its reply in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from ..errors import InvalidParams, RpcTimeout, SerializationError, WorkerLost
from ..transport import ACCEPTS, LOST, NAME, Message
from .bodies import Writing
from .codecs import ACCEPTED, Accepted
from .jobs import JOB_NAME, Progress, Request, Response
from .protocol import call_of, decode_reply, encode_call
from .values import Conversion


def call_message(
    id: str,
    name: str,
    data: Any,
    writing: Writing,
    *,
    ttl: float | None,
    replies: bool,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Message:
    """The message that asks for a job, with an `id` of its own. `ttl` is in seconds, `headers` are added.

    Raises SerializationError if `data` cannot be encoded or is too large, ValueError for a bad name.
    """
    body = encode_call(call_of(_checked(name), data), id, writing.codec)
    all_headers = {"id": id, NAME: name, **headers}
    if ttl is not None:
        all_headers["ttl"] = f"{ttl:.3f}"
    if replies:
        all_headers["reply-to"] = id
    if writing.compression:
        all_headers[ACCEPTS] = writing.compression.accepts
    return writing.sealed(body, all_headers, "request")


@lru_cache(1024)
def _checked(name: str) -> str:
    if not (isinstance(name, str) and JOB_NAME.fullmatch(name)):
        raise ValueError(f"{name!r:.200} is no job name: a letter, then letters, digits, '_', '.' or '-'")
    return name


def decode_progress(reply: Message, accepted: Accepted = ACCEPTED) -> Progress:
    """How far a job is, as a reply tells that can be read. Raises SerializationError."""
    told = decode_reply(*accepted.opened(reply))
    try:
        return msgspec.convert(told, Progress)
    except msgspec.ValidationError as error:
        raise SerializationError(f"it does not say how far the job is: {error}") from error


EARLY = 0.1
"""What ends with so much of its time left, as a share of it, did not end because that was up: the only reply
that can come has come, and was refused."""


class Conversation:
    """A request and the wait for its reply. Times are seconds on a monotonic clock, given as arguments."""

    __slots__ = ("_deadline", "_returns", "_timeout", "accepted", "name", "request")

    def __init__(
        self,
        request: Message,
        name: str,
        timeout: float | None,
        now: float,
        accepted: Accepted = ACCEPTED,
        returns: Conversion | None = None,
    ) -> None:
        """`accepted` is what can be read of the reply, `returns` what its result is to become."""
        self.request, self.accepted, self._returns = request, accepted, returns
        self.name, self._timeout = name, timeout
        self._deadline = None if timeout is None else now + timeout

    def remaining(self, now: float) -> float | None:
        """Seconds left to wait, None without end. Raises RpcTimeout when there are none:
        `timed_out` has the words."""
        if self._deadline is None:
            return None
        if self._deadline <= now:
            raise RpcTimeout
        return self._deadline - now

    def timed_out(
        self, now: float, hint: str = "", during: Request | None = None, queue: str = ""
    ) -> RpcTimeout:
        """The error that says so, or that it was over before, `now`; `hint` is what the backend knows of the
        reason, `during` the request that is being handled here, `queue` where this one went."""
        hint = "; ".join(filter(None, (hint, during.why_late(self.name, queue) if during else "")))
        within = ""
        if self._timeout is not None and self._deadline is not None:
            is_late = now >= self._deadline - EARLY * self._timeout
            within = f" within {self._timeout:g} s" if is_late else ""
        return RpcTimeout(f"{self.name!r} was not answered{within}{hint and ': ' + hint}")

    def feed(self, reply: Message) -> Response:
        """The response in a reply; raises the error that it carries."""
        if LOST in reply.headers:
            raise WorkerLost(f"{self.name!r}: {reply.headers[LOST]}")
        data = decode_reply(*self.accepted.opened(reply))
        if self._returns:
            data = self._converted(data, self._returns, "the result")
        return Response(data, self.request.id, self.request.reply_to or "")

    def _converted(self, data: Any, returns: Conversion, what: str) -> Any:
        try:
            return returns(data, f"{what} of {self.name!r}")
        except InvalidParams as error:  # that is said of parameters
            raise SerializationError(f"{error}: it is not what `returns` says") from None
