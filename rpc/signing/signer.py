"""The keys of a side, and what it signs and verifies with them."""

from __future__ import annotations

import logging
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..core.signing import (
    Binding,
    Key,
    Keys,
    SecretKey,
    check_message,
    check_reply,
    ed25519,
    signed_message,
    signed_reply,
)
from ..errors import RpcError, SettingsError, Unauthorized, shown
from ..transport import (
    NAME,
    Address,
    Message,
)

logger = logging.getLogger("rpc.signing")


class Signing(NamedTuple):
    """How messages are signed and verified."""

    keys: Keys
    required: bool = True
    """Whether what is not signed is refused."""
    window: float = 300.0
    """Seconds by which the clocks of two sides may differ."""
    clock: Callable[[], float] = time.time


def keys_of(given: Mapping[str, str] | str, where: str = "RPC_SIGNING_KEYS") -> Keys:
    """The keys of a mapping from ids to them, or of a text of `id=key`, with commas between: a secret of 32
    characters or more, `ed25519:` or `ed25519-public:` and 32 bytes in base64, or the path of a file that
    ends in `.pem`. The first one signs, and those whose id begins with a `+`. SettingsError, without the key,
    if one makes no sense; Unsupported if the package for it is not installed."""
    if isinstance(given, str):
        pairs = [each.strip().partition("=") for each in given.split(",") if each.strip()]
        given = {id: text for id, _, text in pairs}
    found: dict[str, Key] = {}
    try:
        for id, text in given.items():
            found[id.removeprefix("+")] = _key(text)
        first = next(iter(found), None)
        return Keys(found, [id.removeprefix("+") for id in given if id.startswith("+") or id == first])
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def _key(text: str) -> Key:
    kind, _, rest = text.partition(":")
    if kind == "ed25519":
        return ed25519(private=_half(rest))
    if kind == "ed25519-public":
        return ed25519(public=_half(rest))
    if text.endswith(".pem"):
        try:
            return ed25519(pem=Path(text).read_bytes())
        except OSError as error:
            raise SettingsError(f"{text}: {error.strerror}") from None
    return SecretKey(text.encode())


def _half(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise SettingsError("that is no key of Ed25519: each half is 32 bytes in base64") from None


class Signer:
    """Signs and verifies, and counts what it refuses."""

    def __init__(self, signing: Signing) -> None:
        self._signing = signing
        self._counting = threading.Lock()
        self.refused: Counter[str] = Counter()
        """How much was refused, by what it was: "job", "event", "message", "reply", "result", "replay"."""

    def signed(self, to: Address, message: Message) -> Message:
        """The message with its signature. Raises SerializationError for a time to live that is none."""
        return signed_message(self._signing.keys, to, message, self._signing.clock())

    def answer(self, bindings: Iterable[Binding], reply: Message) -> Message:
        """A reply with its signature."""
        return signed_reply(self._signing.keys, bindings, reply)

    def check(self, to: Address, message: Message) -> None:
        """Raises Unauthorized for what is not signed, if it must be."""
        if self._signing.required:
            check_message(self._signing.keys, to, message, self._signing.clock(), self._signing.window)

    def is_reply(self, what: str, reply: Message, binding: Binding) -> bool:
        """Whether it is signed and bound so, if it must be; else it is logged and counted."""
        if not self._signing.required:
            return True
        try:
            check_reply(self._signing.keys, binding, reply)
        except Unauthorized as why:
            self.note(what, reply, why)
            return False
        return True

    def note(self, what: str, message: Message, why: RpcError) -> None:
        """It is refused."""
        with self._counting:
            self.refused[what] += 1
        name = shown(message.headers.get(NAME, ""), 128)
        article = "an" if what.startswith("e") else "a"
        logger.warning("refused %s %s: %r (%s): %s", article, what, name, shown(message.id, 128), why)
