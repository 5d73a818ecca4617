"""The caller's end of a conversation: one request out, its reply in."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from os import register_at_fork, urandom
from types import MappingProxyType
from typing import Any

import msgspec

from ..errors import RpcTimeout, SerializationError, WorkerLost
from ..message import LOST, NAME, Message
from .codecs import Accepted, Codec
from .jobs import JOB_NAME
from .protocol import Call, decode_reply, encode_call


class Response(msgspec.Struct, frozen=True):
    """What a caller gets."""

    data: Any
    """What the handler responded with."""
    id: str
    """The request's id: the one that the handler saw."""
    response_key: str
    """The request's `response_key`."""


def call_message(
    name: str,
    data: Any,
    codec: Codec,
    *,
    ttl: float | None,
    replies: bool,
    max_message: int | None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Message:
    """The message that asks for a job. `ttl` is in seconds, `max_message` in bytes, `headers` are added.

    Raises SerializationError if `data` cannot be encoded or is too large, ValueError for a bad name.
    """
    if not JOB_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no job name: a letter, then letters, digits, '_', '.' or '-'")
    id = _ids.new()
    body = encode_call(Call(name, data), id, codec)
    if max_message is not None and len(body) > max_message:
        raise SerializationError(f"the request has {len(body)} bytes: more than {max_message}")
    all_headers = {"id": id, "content-type": codec.content_type, NAME: name, **headers}
    if ttl is not None:
        all_headers["ttl"] = f"{ttl:.3f}"
    if replies:
        all_headers["reply-to"] = id
    return Message(body, all_headers)


_ACCEPTED = Accepted()


class _Ids:
    """Ids of 32 hexadecimal digits: half of them are this process' own, at random, half of them count. Made
    without asking the kernel, which would let other threads run first."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._own, self._count = urandom(8).hex(), count()

    def new(self) -> str:
        return f"{self._own}{next(self._count):016x}"


_ids = _Ids()
register_at_fork(after_in_child=_ids.begin)


class Conversation:
    """A request and the wait for its reply. Times are seconds on a monotonic clock, given as arguments."""

    def __init__(self, request: Message, name: str, timeout: float | None, now: float) -> None:
        self.request = request
        self._name, self._timeout = name, timeout
        self._deadline = None if timeout is None else now + timeout

    def remaining(self, now: float) -> float | None:
        """Seconds left to wait, None without end. Raises RpcTimeout when there are none."""
        if self._deadline is None:
            return None
        if self._deadline <= now:
            raise self.timed_out()
        return self._deadline - now

    def timed_out(self, hint: str = "") -> RpcTimeout:
        """The error that says so; `hint` is what the backend knows of the reason."""
        return RpcTimeout(f"{self._name!r} was not answered within {self._timeout:g} s{hint and ': ' + hint}")

    def feed(self, reply: Message) -> Response:
        """The response in a reply; raises the error that it carries."""
        if LOST in reply.headers:
            raise WorkerLost(f"{self._name!r}: {reply.headers[LOST]}")
        codec = _ACCEPTED.codec(reply.headers.get("content-type"))
        data = decode_reply(reply.body, codec)
        return Response(data, self.request.id, self.request.reply_to or "")
