"""Calls that come over HTTP from others than our clients: put to the same server, in the same process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from ..backends.features import FEATURES
from ..backends.http.deliveries import Back, HttpDelivery, Way
from ..backends.http.server import HttpServer, Refused
from ..backends.http.wire import FULL, ONCE
from ..errors import BackendUnavailable, NoReceivers, QueueFull, RpcError, RpcTimeout, Unsupported
from ..transport import STREAM, Address, Message


class Call:
    """One message, in this worker's hands."""

    def __init__(self, server: HttpServer, to: Address, message: Message) -> None:
        """Raises QueueFull, NoReceivers, BackendUnavailable."""
        self._server, self._way = server, Way()
        try:
            self.delivery: HttpDelivery = server.take(to, message, self._way, caller=None)
        except Refused as refused:
            raise refusal(to, refused.why) from None

    async def receive(self, timeout: float | None) -> Message:
        """The next reply. Raises RpcTimeout after so many seconds, and BackendUnavailable if there is none
        any more."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise RpcTimeout
            try:
                what = await asyncio.wait_for(self._way.take(), left)
            except asyncio.TimeoutError:
                raise RpcTimeout from None
            if isinstance(what, Message):
                if ONCE in what.headers:
                    continue
                if STREAM not in what.headers:
                    self._way.is_open = False
                return what
            self._way.is_open = False
            raise BackendUnavailable(
                "the worker is being stopped" if isinstance(what, Back) else "there is no reply"
            )

    def close(self) -> None:
        """Nobody waits any more."""
        if self._way.is_open:
            self._way.is_open = False
            self._server.left(self.delivery, self._way, for_good=True)


def refusal(to: Address, why: str | None) -> RpcError:
    """The error of what a server does not take."""
    if why is None:
        return NoReceivers(f"{to} is not served here")
    if why == FULL:
        return QueueFull(f"{to} has no room")
    return BackendUnavailable(f"the worker does not take it: {why}")


class Local:
    """A backend for callers in the event loop of a server: no more than their own worker is called."""

    features = FEATURES["http"]
    max_message: int | None = None

    def __init__(self, server: HttpServer, headers: Mapping[str, str]) -> None:
        """`headers` are added to each request."""
        self._server, self._headers = server, headers

    def asynchronous(self) -> Local:
        return self

    async def send(self, to: Address, message: Message) -> None:
        try:
            self._server.take(to, message, None)
        except Refused as refused:
            raise refusal(to, refused.why) from None

    async def request(self, to: Address, message: Message) -> Call:
        return Call(self._server, to, Message(message.body, {**message.headers, **self._headers}))

    def server(self, *_: Any, **__: Any) -> Any:
        """Nobody serves it."""
        raise Unsupported("this is for callers")

    def close(self) -> Any:
        """Nothing to give back."""


def message_of(
    body: bytes, name: str, id: str, ttl: float | None, *, replies: bool, headers: dict[str, str]
) -> Message:
    """The message of a call in JSON; `headers` are added."""
    more = {"id": id, "name": name[:128], "content-type": "application/json", **headers}
    if ttl is not None:
        more["ttl"] = f"{ttl:.3f}"
    if replies:
        more["reply-to"] = id
    return Message(body, more)


def new_id() -> str:
    """Of a request that comes from elsewhere: whatever id it has there, it is another one here."""
    return uuid4().hex
