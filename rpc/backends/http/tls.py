"""TLS of workers and of callers: https://www.rfc-editor.org/rfc/rfc8446."""

from __future__ import annotations

import ssl
from typing import Any

from ...errors import SettingsError, shown

PLAIN = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")
"""What OpenSSL calls an answer that is no TLS."""
NO_PASSWORD = ""
"""For keys that have one: else OpenSSL would ask for it on the terminal."""


class Refused(ssl.SSLError):
    """A handshake that failed, with the `alert` that says why: event loops end the connection without it."""

    def __init__(self, error: ssl.SSLError, alert: bytes) -> None:
        super().__init__(*error.args)
        self.alert = alert


class _Handshaking(ssl.SSLObject):
    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            raise Refused(error, self.outgoing.read()) from error


class _ServerContext(ssl.SSLContext):
    sslobject_class = _Handshaking

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **options: Any) -> Any:
        made: Any = super().wrap_bio(incoming, outgoing, *more, **options)
        made.outgoing = outgoing
        return made


def server_context(certificate: str, clients: str) -> ssl.SSLContext:
    """That of a worker with a PEM file, the chain and the key. With `clients`, the PEM file of authorities,
    only callers with a certificate of one of them are let in. Raises SettingsError if a file cannot be
    read."""
    if not certificate:
        raise SettingsError("a worker of https: needs ?certificate=, a PEM file with its chain and its key")
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate)
    if clients:
        try:
            context.load_verify_locations(clients)
        except (OSError, ValueError) as error:
            raise SettingsError(f"?clients={clients} is no PEM file: {shown(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(authorities: str, certificate: str) -> ssl.SSLContext:
    """That of callers, who trust the authorities in a PEM file, else those of the system, and show a
    certificate if they have one, a PEM file as that of a worker. Raises SettingsError if a file cannot be
    read."""
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"?authorities={authorities} is no PEM file: {shown(error)}") from error
    if certificate:
        _load(context, certificate)
    return context


def _load(context: ssl.SSLContext, certificate: str) -> None:
    try:
        context.load_cert_chain(certificate, password=NO_PASSWORD)
    except (OSError, ValueError) as error:
        text = f"?certificate={certificate} is no PEM file with a chain and a key without a password"
        raise SettingsError(f"{text}: {shown(error)}") from error


def refusal(error: Exception, *, is_begun: bool = False) -> str | None:
    """Why two that do reach each other do not come together, however often they try; None for what may just
    pass, as a connection that was closed. What comes after a handshake (`is_begun`) may pass, too, but for
    what the other end says of a certificate."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    reason = error.reason or str(error)
    if reason in PLAIN:
        return "it does not speak TLS: is it http:, and not https:?"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return f"it refuses our certificate, or wants one (?certificate=): {reason}"
    return None if is_begun else f"TLS: {reason}"
