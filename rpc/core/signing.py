"""Signatures of messages: what is signed, by whom, and what a signature is bound to.

What is signed is the pre-authentication encoding of DSSE
(https://github.com/secure-systems-lab/dsse/blob/master/protocol.md) of a list of fields, each behind its
length: so no two messages have the same bytes, and nothing is parsed before it is verified. The fields are
what the message is bound to, its headers by name, and its body.

A request is bound to the address that it is sent to, so that it cannot be moved to another queue; a reply to
its request, so that it cannot be moved to another call. Headers that change on the way are left out: see
`UNSIGNED`. Several signatures stand in one header, with a space between them, as those of Standard Webhooks
(https://www.standardwebhooks.com) do: one that is good suffices.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode
from binascii import Error as NoBase64
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Protocol

from ..errors import SettingsError, Unauthorized, not_installed, shown
from ..transport import (
    ATTEMPT,
    DELAY,
    EXPIRES,
    HANDED_BACK,
    IDEMPOTENCY_KEY,
    KEEP,
    SIGNATURE,
    UNKNOWN,
    Address,
    Message,
)

UNSIGNED = frozenset({SIGNATURE, "ttl", "deliveries", DELAY, KEEP, ATTEMPT, HANDED_BACK, UNKNOWN})
"""Headers that backends and receivers change, or act on alone: they say when, how often and for how long."""
MESSAGE, REPLY = b"application/vnd.jobrpc.message", b"application/vnd.jobrpc.reply"
"""The payload types, in DSSE's words."""
EVENT_ID = "event-id"
"""Header: the id of what is sent to a topic, where `id` may become another one for each group."""
_WITHOUT_ID = UNSIGNED | {"id"}
"""Of replies: theirs is that of the request, to which they are bound, or of the first one with its key."""
KEY_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
SHORTEST_SECRET = 32
"""Bytes that a secret has at least: those of the hash (RFC 2104, section 3)."""
MOST_SIGNERS = 2
"""Keys that sign: the new one, and the one before it."""
MOST_SIGNATURES = 4
"""How many in one message are looked at: a reply may be bound to two things."""
LONGEST = 1024
"""Characters of a header with signatures."""

_BLOCK = 64
"""Bytes that SHA-256 takes at a time."""
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
"""What makes the two keys of HMAC of one."""
_URL_SAFE = bytes.maketrans(b"+/", b"-_")

Binding = tuple[str, str, str]
"""What a message is bound to: of what kind that is, and two names of it."""


def encoded(kind: bytes, body: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a payload of this type."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def fields(binding: Binding, message: Message, unsigned: frozenset[str] = UNSIGNED) -> bytes:
    """What is signed of a message: each field behind its length, in bytes of UTF-8, with spaces between."""
    kind, one, other = binding
    signed = sorted([each for each in message.headers.items() if each[0] not in unsigned])
    pairs = "".join([f"{len(name)} {name} {len(value)} {value} " for name, value in signed])
    text = f"{len(kind)} {kind} {len(one)} {one} {len(other)} {other} {pairs}"
    if text.isascii():
        return b"%s%d %s" % (text.encode(), len(message.body), message.body)
    texts = [*binding, *(text for header in signed for text in header)]
    parts = [each.encode("utf-8", "surrogatepass") for each in texts]
    return b" ".join(b"%d %s" % (len(each), each) for each in (*parts, message.body))


class Key(Protocol):
    """What messages are signed with, or verified."""

    can_sign: bool

    def sign(self, data: bytes) -> bytes: ...

    def verifies(self, data: bytes, signature: str) -> bool:
        """Whether it is that, in base64."""


class SecretKey:
    """HMAC-SHA-256 (RFC 2104): whoever can verify can sign, too. What is hashed first is the same each time,
    and is hashed once: that takes half the time of `hmac`, which looks the hash up besides."""

    can_sign = True

    def __init__(self, secret: bytes) -> None:
        """SettingsError if the secret is too short."""
        if len(secret) < SHORTEST_SECRET:
            raise SettingsError(
                f"a secret has at least {SHORTEST_SECRET} bytes, not {len(secret)}: `rpc keygen` makes one"
            )
        block = (secret if len(secret) <= _BLOCK else sha256(secret).digest()).ljust(_BLOCK, b"\0")
        self._inner, self._outer = sha256(block.translate(_INNER)), sha256(block.translate(_OUTER))

    def sign(self, data: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()

    def verifies(self, data: bytes, signature: str) -> bool:
        return signature.isascii() and hmac.compare_digest(_text(self.sign(data)), signature)


class Ed25519Key:
    """Ed25519 (RFC 8032): who has the public half alone can verify, and not sign."""

    def __init__(self, private: Any, public: Any) -> None:
        """Keys of the package `cryptography`; `private` is None for who only verifies."""
        self._private, self._public = private, public
        self.can_sign = private is not None

    @property
    def public(self) -> bytes:
        """The 32 bytes of its public half."""
        half: bytes = self._public.public_bytes_raw()
        return half

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._private.sign(data)
        return signature

    def verifies(self, data: bytes, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature

        given = _bytes(signature)
        if given is None:
            return False
        try:
            self._public.verify(given, data)
        except InvalidSignature:
            return False
        return True


def ed25519(
    *, private: bytes | None = None, public: bytes | None = None, pem: bytes | None = None
) -> Ed25519Key:
    """The key in the 32 bytes of its private or public half, or in a PEM file (PKCS #8, or a public key).
    SettingsError if it is none, Unsupported if the package for it is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError:
        raise not_installed("Ed25519", "ed25519") from None
    try:
        if public is not None:
            return Ed25519Key(None, Ed25519PublicKey.from_public_bytes(public))
        if private is not None:
            found: Any = Ed25519PrivateKey.from_private_bytes(private)
        elif pem is not None and b"PRIVATE KEY" in pem:
            found = serialization.load_pem_private_key(pem, None)
        else:
            found = serialization.load_pem_public_key(pem or b"")
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise SettingsError(f"that is no key of Ed25519: {type(error).__name__}") from None
    if isinstance(found, Ed25519PublicKey):
        return Ed25519Key(None, found)
    if isinstance(found, Ed25519PrivateKey):
        return Ed25519Key(found, found.public_key())
    raise SettingsError("that is a key, but not of Ed25519")


class Keys:
    """Keys by their ids: some sign, all verify."""

    def __init__(self, keys: Mapping[str, Key], signers: Iterable[str] | None = None) -> None:
        """`signers` are the ids of those that sign; None: the first one. SettingsError if one cannot, or an
        id is none."""
        for id in keys:
            if not KEY_ID.fullmatch(id):
                raise SettingsError(
                    f"{id!r:.80} is no id of a key: letters, digits, '_', '.', '-', at most 64"
                )
        if not keys:
            raise SettingsError("there is no key")
        self._keys = dict(keys)
        ids = [next(iter(keys))] if signers is None else [*signers]
        if len(ids) > MOST_SIGNERS:
            raise SettingsError(f"at most {MOST_SIGNERS} keys sign")
        for id in ids:
            if not self._keys[id].can_sign:
                raise SettingsError(f"key {id!r} is a public one, and cannot sign: put one first that can")
        self._signers = [(id, self._keys[id]) for id in ids]

    def __repr__(self) -> str:
        return f"<Keys {', '.join(self._keys)}>"  # secrets stay out of logs

    def signature(self, kind: bytes, *signed: bytes) -> str:
        """The header: a signature of each of these, with each key that signs."""
        each_of = [(encoded(kind, each), id, key) for each in signed for id, key in self._signers]
        return " ".join([f"{id}={_text(key.sign(data))}" for data, id, key in each_of])

    def check(self, kind: bytes, signed: bytes, signature: str) -> None:
        """Raises Unauthorized, which says why for a log, unless one of the signatures is good."""
        if not signature or len(signature) > LONGEST:
            raise Unauthorized("it is not signed" if not signature else "its signatures are too long")
        data, known = encoded(kind, signed), False
        for each in signature.split(" ")[:MOST_SIGNATURES]:
            id, _, text = each.partition("=")
            if key := self._keys.get(id):
                known = True
                if key.verifies(data, text):
                    return
        raise Unauthorized(
            "its signature is wrong"
            if known
            else f"it is signed with {shown(id, 64)!r}, which is not known here"
        )


def _text(signature: bytes) -> str:
    return b2a_base64(signature, newline=False).translate(_URL_SAFE, b"=").decode()


def _bytes(text: str) -> bytes | None:
    """None for what `_text` does not make: a signature has one form."""
    try:
        signature = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (NoBase64, ValueError):
        return None
    return signature if _text(signature) == text else None


def signed_message(keys: Keys, to: Address, message: Message, now: float) -> Message:
    """A message with a signature, which is bound to where it is sent. One with a time to live expires; but
    not one with an idempotency key, which others may want for longer than its sender. `now` is in seconds of
    the Unix epoch."""
    headers = {**message.headers}
    headers.pop(EXPIRES, None)
    if IDEMPOTENCY_KEY not in headers and (ttl := message.ttl) is not None:
        headers[EXPIRES] = str(round(now + ttl))
    if to.kind == "topic":
        headers[EVENT_ID] = message.id
    message = Message(message.body, headers)
    headers[SIGNATURE] = keys.signature(MESSAGE, _of_message(to, message))
    return message


def revived(keys: Keys, to: Address, message: Message, now: float) -> Message:
    """A job that was given up, as if it had just been sent, and nobody waited for it. Raises Unauthorized if
    it was not signed before: a forged one does not become a good one."""
    keys.check(MESSAGE, _of_message(to, message), message.headers.get(SIGNATURE, ""))
    again = message.replace(**dict.fromkeys((IDEMPOTENCY_KEY, "reply-to", "ttl")))
    return signed_message(keys, to, again, now)


def check_message(keys: Keys, to: Address, message: Message, now: float, window: float) -> None:
    """Raises Unauthorized, which says why for a log, unless it is signed for this address, and `window`
    seconds ago was not too late for it."""
    headers = message.headers
    keys.check(MESSAGE, _of_message(to, message), headers.get(SIGNATURE, ""))
    if to.kind == "topic" and not to.durable and headers.get(EVENT_ID) != message.id:
        raise Unauthorized("its id was changed")
    if EXPIRES in headers and now > _seconds(headers[EXPIRES]) + window:
        raise Unauthorized(f"it expired {now - _seconds(headers[EXPIRES]):.0f} s ago, by the clocks of both")


def _of_message(to: Address, message: Message) -> bytes:
    unsigned = _WITHOUT_ID if to.kind == "topic" else UNSIGNED
    return fields(("to", to.kind, to.name), message, unsigned)


def message_id(message: Message) -> str:
    """What tells a signed message from all others."""
    return message.headers.get(EVENT_ID) or message.id


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # whoever signed this has another idea of it
        return 0.0


def binding_of(to: Address, request: Message) -> Binding:
    """What the replies to a request are bound to that came to, or goes to, this address."""
    headers = request.headers
    if IDEMPOTENCY_KEY in headers:  # all who have it get one reply
        return "key", to.name, headers[IDEMPOTENCY_KEY]
    if "reply-to" not in headers:
        return job(to.name, request.id)
    return "request", request.id, headers.get(SIGNATURE, "")


def job(queue: str, id: str) -> Binding:
    """What the outcome of a job is bound to, which is kept for whoever knows its id."""
    return "job", queue, id


def signed_reply(keys: Keys, bindings: Iterable[Binding], reply: Message) -> Message:
    """A reply with signatures, one for each of these bindings."""
    signed = [fields(binding, reply, _WITHOUT_ID) for binding in dict.fromkeys(bindings)]
    return Message(reply.body, {**reply.headers, SIGNATURE: keys.signature(REPLY, *signed)})


def check_reply(keys: Keys, binding: Binding, reply: Message) -> None:
    """Raises Unauthorized, which says why for a log, unless the reply is signed, and bound to this."""
    keys.check(REPLY, fields(binding, reply, _WITHOUT_ID), reply.headers.get(SIGNATURE, ""))
