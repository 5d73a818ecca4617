"""What comes back, verified."""

from __future__ import annotations

import logging
import time
from typing import Any

from ..core.signing import (
    Binding,
)
from ..errors import RpcTimeout, shown
from ..transport import (
    LOST,
    Message,
)
from .signer import Signer

logger = logging.getLogger("rpc.signing")


class _Receiving:
    """What is the same for those who wait and those who await."""

    def __init__(self, backend: Signer, replies: Any, binding: Binding) -> None:
        self._backend, self._replies, self._binding = backend, replies, binding
        self._refused = 0

    def _opened(self, reply: Message) -> Message | None:
        """The reply; None if nobody is to see it."""
        if LOST in reply.headers:
            # Brokers, and workers in place of others, have no key. It carries no data, and who can write it
            # can take the request away as well.
            why = f"{shown(reply.headers[LOST], 200)} (so the broker says; that is not signed)"
            return Message(headers={"id": reply.id[:128], LOST: why})
        if self._backend.is_reply("reply", reply, self._binding):
            return reply
        self._refused += 1
        return None

    def _late(self, late: RpcTimeout) -> RpcTimeout:
        if not self._refused:
            return late
        refused = "1 reply was" if self._refused == 1 else f"{self._refused} replies were"
        return RpcTimeout(f"{refused} refused: not signed with a key that is known here")

    def close(self) -> None:
        self._replies.close()


class SignedReplies(_Receiving):
    """Of the replies to one request, those that are signed. A forged one is as if it had not come."""

    def receive(self, timeout: float | None) -> Message:
        """As `Replies.receive`."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while (reply := self._opened(self._replies.receive(timeout))) is None:
                if end is not None:
                    timeout = max(0.0, end - time.monotonic())
        except RpcTimeout as late:
            raise self._late(late) from None
        return reply


class SignedAsyncReplies(_Receiving):
    """The same, awaited."""

    async def receive(self, timeout: float | None) -> Message:
        """As `AsyncReplies.receive`."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while (reply := self._opened(await self._replies.receive(timeout))) is None:
                if end is not None:
                    timeout = max(0.0, end - time.monotonic())
        except RpcTimeout as late:
            raise self._late(late) from None
        return reply
