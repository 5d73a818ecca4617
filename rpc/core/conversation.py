"""The caller's end of a conversation: one request out, its reply in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from ..errors import RpcTimeout, SerializationError, WorkerLost
from ..transport import LOST, NAME, Message
from .codecs import Accepted, Codec
from .jobs import JOB_NAME, Progress, Request, Response
from .protocol import call_of, decode_reply, encode_call


def call_message(
    id: str,
    name: str,
    data: Any,
    codec: Codec,
    *,
    ttl: float | None,
    replies: bool,
    max_message: int | None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Message:
    """The message that asks for a job, with an `id` of its own. `ttl` is in seconds, `max_message` in bytes,
    `headers` are added.

    Raises SerializationError if `data` cannot be encoded or is too large, ValueError for a bad name.
    """
    body = encode_call(call_of(_checked(name), data), id, codec)
    if max_message is not None and len(body) > max_message:
        raise SerializationError(f"the request has {len(body)} bytes: more than {max_message}")
    all_headers = {"id": id, "content-type": codec.content_type, NAME: name, **headers}
    if ttl is not None:
        all_headers["ttl"] = f"{ttl:.3f}"
    if replies:
        all_headers["reply-to"] = id
    return Message(body, all_headers)


@lru_cache(1024)
def _checked(name: str) -> str:
    if not JOB_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no job name: a letter, then letters, digits, '_', '.' or '-'")
    return name


_ACCEPTED = Accepted()


def decode_progress(reply: Message) -> Progress:
    """How far a job is, as a reply tells. Raises SerializationError."""
    told = decode_reply(reply.body, _ACCEPTED.codec(reply.headers.get("content-type")))
    try:
        return msgspec.convert(told, Progress)
    except msgspec.ValidationError as error:
        raise SerializationError(f"it does not say how far the job is: {error}") from error


class Conversation:
    """A request and the wait for its reply. Times are seconds on a monotonic clock, given as arguments."""

    __slots__ = ("_deadline", "_timeout", "name", "request")

    def __init__(self, request: Message, name: str, timeout: float | None, now: float) -> None:
        self.request = request
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

    def timed_out(self, hint: str = "", during: Request | None = None, queue: str = "") -> RpcTimeout:
        """The error that says so; `hint` is what the backend knows of the reason, `during` the request that
        is being handled here, `queue` where this one went."""
        hint = "; ".join(filter(None, (hint, during.why_late(self.name, queue) if during else "")))
        return RpcTimeout(f"{self.name!r} was not answered within {self._timeout:g} s{hint and ': ' + hint}")

    def feed(self, reply: Message) -> Response:
        """The response in a reply; raises the error that it carries."""
        if LOST in reply.headers:
            raise WorkerLost(f"{self.name!r}: {reply.headers[LOST]}")
        data = decode_reply(reply.body, self.codec_of(reply))
        return Response(data, self.request.id, self.request.reply_to or "")

    def codec_of(self, reply: Message) -> Codec:
        """What a reply is decoded with; SerializationError for one that is unknown."""
        return _ACCEPTED.codec(reply.headers.get("content-type"))
