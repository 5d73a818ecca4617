"""What is signed, and what a signature is worth."""

from __future__ import annotations

import hmac
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc import SettingsError, Unauthorized
from rpc.core import signing
from rpc.core.signing import (
    Keys,
    SecretKey,
    binding_of,
    check_message,
    check_reply,
    ed25519,
    encoded,
    fields,
    revived,
    signed_message,
    signed_reply,
)
from rpc.transport import EXPIRES, SIGNATURE, Address, Message, inbox, queue, topic

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signing.json").read_text())
NOW, WINDOW = VECTORS["now"], 300.0
ADDRESSES: dict[str, Any] = {"queue": queue, "topic": topic, "inbox": inbox}
TO = queue("default")
REQUEST = Message(b"{}", {"id": "1", "name": "add", "reply-to": "1", "ttl": "30.000", "x-own": "Zoë"})

texts = st.text(max_size=20)
messages = st.builds(Message, st.binary(max_size=50), st.dictionaries(texts, texts, max_size=5))


def keys(*signers: str) -> Keys:
    found: Any = {id: SecretKey(text.encode()) for id, text in VECTORS["keys"].items()}
    return Keys(found, signers or None)


def address(vector: list[str]) -> Address:
    found: Address = ADDRESSES[vector[0]](vector[1])
    return found


SIGNED = signed_message(keys(), TO, REQUEST, NOW)


@pytest.mark.parametrize("vector", VECTORS["dsse"])
def test_dsse(vector: dict[str, str]) -> None:
    body = bytes.fromhex(vector["body"])
    assert encoded(vector["type"].encode(), body).decode() == vector["encoded"]


@pytest.mark.parametrize("vector", VECTORS["hmac_sha256"])
def test_rfc_4231(vector: dict[str, str]) -> None:
    """A key that is shorter than we allow is the same with zeros after it (RFC 2104)."""
    key = SecretKey(bytes.fromhex(vector["key"]).ljust(32, b"\0"))
    data, mac = bytes.fromhex(vector["data"]), bytes.fromhex(vector["mac"])
    assert key.sign(data) == mac
    assert key.verifies(data, signing._text(mac))
    for wrong in signing._text(mac[:-1]), signing._text(mac) + "=", "ä" * 43, "":
        assert not key.verifies(data, wrong)


@pytest.mark.parametrize("vector", VECTORS["ed25519"])
def test_rfc_8032(vector: dict[str, str]) -> None:
    private, public, data, signature = map(
        bytes.fromhex, map(vector.get, ("private", "public", "data", "signature"))
    )  # type: ignore[arg-type]
    assert ed25519(private=private).sign(data) == signature
    for key in ed25519(private=private), ed25519(public=public):
        assert key.verifies(data, signing._text(signature))
        assert not key.verifies(data + b"!", signing._text(signature))
        for wrong in signing._text(signature[:-1]), signing._text(signature) + "=", "ä" * 86, "", "A":
            assert not key.verifies(data, wrong)
    assert not ed25519(public=public).can_sign


@pytest.mark.parametrize("vector", VECTORS["messages"])
def test_a_message_is_signed_as_written(vector: dict[str, Any]) -> None:
    to, message = address(vector["to"]), Message(bytes.fromhex(vector["body"]), vector["headers"])
    signed = signed_message(keys(*vector.get("signers", ())), to, message, NOW)
    assert signed.headers == {**vector["headers"], **vector["added"]}
    assert signing._of_message(to, signed).hex() == vector["signed"]
    check_message(keys(), to, signed, NOW, WINDOW)


@pytest.mark.parametrize("vector", VECTORS["replies"])
def test_a_reply_is_signed_as_written(vector: dict[str, Any]) -> None:
    asked = VECTORS["messages"][vector["to_message"]]
    to = address(asked["to"])
    request = Message(bytes.fromhex(asked["body"]), {**asked["headers"], **asked["added"]})
    binding = binding_of(to, request)
    assert list(binding) == vector["binding"]
    reply = signed_reply(keys(), [binding], Message(bytes.fromhex(vector["body"]), vector["headers"]))
    assert reply.headers[SIGNATURE] == vector["signature"]
    check_reply(keys(), binding, reply)


@given(messages, messages)
def test_two_messages_have_the_same_bytes_only_if_they_are_the_same(one: Message, other: Message) -> None:
    plain = [
        (m.body, {k: v for k, v in m.headers.items() if k not in signing.UNSIGNED}) for m in (one, other)
    ]
    same = fields(("a", "b", "c"), one) == fields(("a", "b", "c"), other)
    assert same == (plain[0] == plain[1])


def test_a_byte_cannot_move_from_one_field_to_another() -> None:
    moved = [
        fields(("a", "b", "c"), Message(b"", {"x": "y"})),
        fields(("a", "b", "cx"), Message(b"", {"": "y"})),
        fields(("a", "b", "c"), Message(b"1 x 1 y 0 ", {})),
        fields(("a", "b", "c"), Message(b"", {"x": "y 0 "})),
        fields(("a", "b", "c"), Message(b"y", {"x": ""})),
        fields(("a", "b", "c"), Message(b"", {"xy": ""})),
        fields(("a", "bc", ""), Message(b"", {"x": "y"})),
        fields(("a", "b", "c"), Message(b"", {"x": "y", "": ""})),
    ]
    assert len(set(moved)) == len(moved)


def test_lone_surrogates_are_signed_too() -> None:
    odd = signed_message(keys(), TO, REQUEST.replace(**{"x-odd": "\ud800"}), NOW)
    check_message(keys(), TO, odd, NOW, WINDOW)
    with pytest.raises(Unauthorized, match="wrong"):
        check_message(keys(), TO, odd.replace(**{"x-odd": "?"}), NOW, WINDOW)


CHANGES: list[Any] = [
    *({name: "other"} for name in REQUEST.headers if name != "ttl"),
    *({name: None} for name in REQUEST.headers if name != "ttl"),
    *({name: "more"} for name in ("x-more", "content-type", "content-encoding", "credit", "upload", "token")),
    *({name: "more"} for name in ("idempotency-key", "stream", "seq", "resume-from", "progress", "inbox")),
    {EXPIRES: "9999999999"}, {EXPIRES: None}, {SIGNATURE: None}, {SIGNATURE: ""}, {SIGNATURE: "x"},
    {SIGNATURE: SIGNED.headers[SIGNATURE].replace("=", "")}, {SIGNATURE: SIGNED.headers[SIGNATURE][:-2]},
    {SIGNATURE: "new" + SIGNED.headers[SIGNATURE][7:]}, {SIGNATURE: "2026-11=ä"}, {SIGNATURE: " " * 99},
    {SIGNATURE: "2026-11="}, {SIGNATURE: "nobody" + SIGNED.headers[SIGNATURE][7:]},
    {SIGNATURE: " ".join(["a=b"] * 4 + [SIGNED.headers[SIGNATURE]])},
    {SIGNATURE: SIGNED.headers[SIGNATURE] + " " * 2000},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_was_changed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        check_message(keys(), TO, SIGNED.replace(**change), NOW, WINDOW)


@given(st.text(max_size=200), messages)
def test_whatever_is_said_to_be_a_signature_is_none(text: str, message: Message) -> None:
    for change in (text, f"2026-11={text}", f"new={text} 2026-11={text}"):
        odd = Message(message.body, {**message.headers, SIGNATURE: change})
        with pytest.raises(Unauthorized):
            check_message(keys(), TO, odd, NOW, WINDOW)
        with pytest.raises(Unauthorized):
            check_reply(keys(), ("job", "default", "1"), odd)


@pytest.mark.parametrize("to", [queue("other"), topic("default"), inbox("default")], ids=str)
def test_what_was_sent_elsewhere_is_refused(to: Address) -> None:
    with pytest.raises(Unauthorized, match="wrong"):
        check_message(keys(), to, SIGNED, NOW, WINDOW)


def test_another_body_is_refused() -> None:
    with pytest.raises(Unauthorized, match="wrong"):
        check_message(keys(), TO, Message(b"[]", SIGNED.headers), NOW, WINDOW)


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": "1.5"},
        {"deliveries": "3"},
        {"attempt": "2"},
        {"handed-back": "1"},
        {"unknown-for": "2"},
        {"delay": None},
    ],
    ids=str,
)
def test_what_brokers_and_receivers_change_may_change(change: dict[str, Any]) -> None:
    check_message(keys(), TO, SIGNED.replace(**change), NOW, WINDOW)


def test_a_message_with_a_time_to_live_expires_after_the_window() -> None:
    check_message(keys(), TO, SIGNED, NOW + 30 + WINDOW - 1, WINDOW)
    check_message(keys(), TO, SIGNED, NOW - 9999, WINDOW)  # a sender whose clock is ahead
    with pytest.raises(Unauthorized, match="expired"):
        check_message(keys(), TO, SIGNED, NOW + 30 + WINDOW + 1, WINDOW)


@pytest.mark.parametrize(
    "headers", [{"ttl": None}, {"idempotency-key": "pay:1"}, {"ttl": None, "delay": "1e6"}]
)
def test_what_waits_for_as_long_as_it_must_does_not_expire(headers: dict[str, Any]) -> None:
    signed = signed_message(keys(), TO, REQUEST.replace(**headers), NOW)
    check_message(keys(), TO, signed, NOW + 365 * 86400, WINDOW)


@pytest.mark.parametrize("expires", ["soon", "-1", "1e-9", ""])
def test_a_time_that_is_none_has_passed(expires: str) -> None:
    headers = {**REQUEST.headers, EXPIRES: expires}
    odd = Message(REQUEST.body, headers)
    headers[SIGNATURE] = keys().signature(signing.MESSAGE, signing._of_message(TO, odd))
    with pytest.raises(Unauthorized, match="expired"):
        check_message(keys(), TO, odd, NOW, WINDOW)


def test_a_reply_cannot_be_moved_to_another_request() -> None:
    reply = signed_reply(keys(), [binding_of(TO, SIGNED)], Message(b"3", {"id": "1"}))
    again = signed_message(keys(), TO, REQUEST.replace(**{"x-own": "another"}), NOW)
    for other in (
        binding_of(TO, again),  # of the same id
        binding_of(TO, SIGNED.replace(reply_to=None)),
        ("request", "2", binding_of(TO, SIGNED)[2]),
    ):
        with pytest.raises(Unauthorized, match="wrong"):
            check_reply(keys(), other, reply)


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    binding = binding_of(TO, SIGNED)
    with pytest.raises(Unauthorized, match="wrong"):
        check_reply(keys(), binding, SIGNED)
    with pytest.raises(Unauthorized, match="wrong"):
        check_message(keys(), TO, signed_reply(keys(), [("to", "queue", "default")], REQUEST), NOW, WINDOW)


def test_keys_are_changed_without_a_pause() -> None:
    old: Any = {"old": SecretKey(b"o" * 32)}
    new: Any = {"new": SecretKey(b"n" * 32)}
    steps = [Keys(old), Keys({**old, **new}), Keys({**new, **old}), Keys(new)]
    for before, after in pairwise(steps):
        for sender, receiver in (before, after), (after, before):
            check_message(receiver, TO, signed_message(sender, TO, REQUEST, NOW), NOW, WINDOW)
    both = signed_message(Keys({**new, **old}, ["new", "old"]), TO, REQUEST, NOW)
    check_message(Keys(old), TO, both, NOW, WINDOW)
    check_message(Keys(new), TO, both, NOW, WINDOW)
    with pytest.raises(Unauthorized, match="'new', which is not known"):
        check_message(Keys(old), TO, signed_message(Keys(new), TO, REQUEST, NOW), NOW, WINDOW)


def test_who_has_the_public_half_verifies_and_cannot_sign() -> None:
    vector = VECTORS["ed25519"][0]
    private = Keys({"k": ed25519(private=bytes.fromhex(vector["private"]))})
    public: Any = {"k": ed25519(public=bytes.fromhex(vector["public"]))}
    own: Any = {"own": SecretKey(b"s" * 32)}
    check_message(Keys({**own, **public}), TO, signed_message(private, TO, REQUEST, NOW), NOW, WINDOW)
    with pytest.raises(SettingsError, match="'k' is a public one, and cannot sign"):
        Keys(public)


def test_a_job_is_revived_as_one_that_nobody_waits_for_and_a_forged_one_is_not() -> None:
    again = revived(keys(), TO, SIGNED.replace(**{"attempt": "3"}), NOW + 86400)
    assert again.reply_to is again.ttl is None
    check_message(keys(), TO, again, NOW + 365 * 86400, WINDOW)
    with pytest.raises(Unauthorized):
        revived(keys(), TO, Message(b"[]", SIGNED.headers), NOW)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "no key"), ({"a b": SecretKey(b"x" * 32)}, "'a b' is no id"), 
        ({"": SecretKey(b"x" * 32)}, "no id"),
        ({"x" * 65: SecretKey(b"x" * 32)}, "no id"),
    ],
)  # fmt: skip
def test_what_are_no_keys_is_said(given: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        Keys(given)


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="at least 32 bytes, not 7") as refused:
        SecretKey(b"hunter2")
    assert "hunter2" not in str(refused.value)
    assert "secret" not in repr(keys())


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_of_ed25519_is_said(pem: bytes) -> None:
    with pytest.raises(SettingsError, match="no key of Ed25519"):
        ed25519(pem=pem)


def test_hmac_is_that_of_the_standard_library() -> None:
    payload = bytes.fromhex(VECTORS["messages"][0]["signed"])
    data = b"DSSEv1 30 application/vnd.jobrpc.message %d %s" % (len(payload), payload)
    mac = hmac.new(VECTORS["keys"]["2026-11"].encode(), data, "sha256").digest()
    assert VECTORS["messages"][0]["added"]["signature"] == "2026-11=" + signing._text(mac)


@given(st.binary(min_size=32, max_size=200), st.binary(max_size=300))
def test_any_secret_signs_as_the_standard_library_does(secret: bytes, data: bytes) -> None:
    key = SecretKey(secret)
    for _ in range(2):  # what it keeps is not used up
        assert key.sign(data) == hmac.digest(secret, data, "sha256")
