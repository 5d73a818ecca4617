"""A backend whose messages are signed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from ..backends import asynchronous
from ..core.signing import (
    binding_of,
    job,
    revived,
    signed_reply,
)
from ..errors import RpcError, Unauthorized
from ..inspection import DeadLetter, DeadLetters, Results
from ..settings import Settings
from ..transport import (
    Address,
    AsyncBackend,
    AsyncReplies,
    Backend,
    Handler,
    Message,
    Replay,
    Replies,
    Server,
    packed,
    queue,
    unpacked,
)
from .receiving import SignedAsyncReplies, SignedReplies
from .serving import SignedServer, Verified
from .signer import Signer, Signing, keys_of

logger = logging.getLogger("rpc.signing")


def signing(settings: Settings, backend: Any) -> Any:
    """The backend, whose messages are signed if there are keys in these settings. Raises SettingsError, and
    Unsupported if the package for a key is not installed."""
    if not settings.signing_keys or backend is None or isinstance(backend, SignedBackend):
        return backend
    keys = keys_of(settings.signing_keys, f"{settings.module}: RPC_SIGNING_KEYS")
    return SignedBackend(backend, Signing(keys, settings.signing_required, settings.signing_window))


class SignedBackend(Signer):
    """What a backend carries, signed. It can do all that the backend can."""

    def __init__(self, backend: Backend, signing: Signing) -> None:
        super().__init__(signing)
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_backend" not in vars(self):  # a copy that is being made
            raise AttributeError(name)
        return getattr(self._backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_backend", "_signing", "_counting", "refused"):
            super().__setattr__(name, value)
        else:
            setattr(self._backend, name, value)  # as that of HTTP, which is told what to offer to others

    @property
    def features(self) -> frozenset[str]:
        return self._backend.features

    @property
    def max_message(self) -> int | None:
        return self._backend.max_message

    def send(self, to: Address, message: Message) -> None:
        """As the backend's, signed."""
        self._backend.send(to, self.signed(to, message))

    def request(self, to: Address, message: Message) -> Replies:
        """As the backend's, signed: of its replies, only those that are signed and bound to it arrive."""
        message = self.signed(to, message)
        return SignedReplies(self, self._backend.request(to, message), binding_of(to, message))

    def server(
        self,
        addresses: Sequence[Address],
        handler: Handler,
        *,
        threads: int = 1,
        coroutines: int = 1,
        on_change: Callable[[bool], object] = lambda connected: None,
    ) -> Server:
        """As the backend's: the handler gets what is signed, once."""
        verified = Verified(self, self.features, handler)
        server = self._backend.server(
            addresses, verified, threads=threads, coroutines=coroutines, on_change=on_change
        )
        return cast("Server", SignedServer(server, verified.recent))

    def asynchronous(self) -> AsyncBackend:
        """As the backend's, signed."""
        return SignedAsyncBackend(self, asynchronous(self._backend))

    def close(self) -> None:
        self._backend.close()

    def keep(self, queue: str, id: str, last: Message, seconds: float) -> None:
        """As `Results.keep`, signed."""
        kept = signed_reply(self._signing.keys, [job(queue, id)], last)
        cast("Results", self._backend).keep(queue, id, kept, seconds)

    def result(self, queue: str, id: str) -> Message | None:
        """As `Results.result`; None if it is not signed."""
        last = cast("Results", self._backend).result(queue, id)
        return last if last is None or self.is_reply("result", last, job(queue, id)) else None

    def replay(self, to: Address, seconds: float | None) -> Iterator[Message]:
        """As `Replay.replay`, without what is not signed."""
        for message in cast("Replay", self._backend).replay(to, seconds):
            try:
                self.check(to, message)
            except Unauthorized as why:
                self.note("event", message, why)
            else:
                yield message

    def revive(self, letter: DeadLetter) -> bool:
        """As `DeadLetters.revive`. It is signed anew: its time may be over, and nobody waits for it now."""
        with suppress(RpcError):  # if it cannot be read, or was not signed, it will be refused
            message, now = unpacked(letter.frame), self._signing.clock()
            again = revived(self._signing.keys, queue(letter.queue), message, now)
            letter = replace(letter, frame=packed(again))
        return cast("DeadLetters", self._backend).revive(letter)


class SignedAsyncBackend:
    """A SignedBackend for callers in event loops."""

    def __init__(self, signed: SignedBackend, backend: AsyncBackend) -> None:
        self._signed, self._backend = signed, backend
        self.features, self.max_message = backend.features, backend.max_message

    async def send(self, to: Address, message: Message) -> None:
        await self._backend.send(to, self._signed.signed(to, message))

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        message = self._signed.signed(to, message)
        replies = await self._backend.request(to, message)
        return SignedAsyncReplies(self._signed, replies, binding_of(to, message))

    async def close(self) -> None:
        await self._backend.close()
