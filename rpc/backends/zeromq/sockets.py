"""The sockets of one context, how they are set, and who may connect to them (CURVE, https://rfc.zeromq.org/spec/26,
and ZAP, https://rfc.zeromq.org/spec/27)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import zmq
from zmq.auth import load_certificate, load_certificates

from ...errors import shown
from .endpoints import Claims

logger = logging.getLogger(__name__)

HIGH_WATER = 1000
"""Messages that ZeroMQ keeps for each connection, and each direction."""
MAX_FRAME = 65 * 1024 * 1024
"""Bytes. Whoever sends more is disconnected."""
ZAP = "inproc://zeromq.zap.01"


@dataclass(frozen=True)
class Keys:
    """Who this is, and whom it trusts: paths of certificates as `zmq.auth.create_certificates` makes them.

    `certificate` has the own keys. Whoever binds lets those in whose public keys are in the folder
    `authorized`; whoever connects talks to those alone that have the key in `server_key`. Without any,
    nothing is encrypted.
    """

    certificate: str = ""
    server_key: str = ""
    authorized: str = ""

    def __post_init__(self) -> None:
        if bool(self.certificate) < bool(self.server_key or self.authorized):
            raise ValueError("server_key and authorized need a certificate of one's own")

    def bind(self, socket: zmq.Socket[bytes]) -> None:
        """Raises ValueError if it is not said who may connect, or a certificate cannot be read."""
        if self.certificate:
            if not self.authorized:
                raise ValueError("whoever binds with a certificate needs `authorized`: who may connect?")
            socket.curve_publickey, socket.curve_secretkey = self._own()
            socket.curve_server = True
            socket.zap_domain = b"rpc"
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def connect(self, socket: zmq.Socket[bytes]) -> None:
        """The same, for whoever connects."""
        if self.certificate:
            if not self.server_key:
                raise ValueError("whoever connects with a certificate needs `server_key`")
            socket.curve_publickey, socket.curve_secretkey = self._own()
            socket.curve_serverkey = _loaded(self.server_key)[0]

    def may_connect(self, public_key: bytes) -> bool:
        """The folder is looked at each time: who is added, or removed, needs no restart."""
        try:
            return load_certificates(self.authorized).get(zmq.utils.z85.encode(public_key), False)
        except (OSError, ValueError) as error:
            logger.error("nobody can connect: %s", shown(error))
            return False

    def _own(self) -> tuple[bytes, bytes]:
        public, secret = _loaded(self.certificate)
        if secret is None:
            raise ValueError(
                f"{self.certificate} has no secret key: give the file that ends with .key_secret"
            )
        return public, secret


def _loaded(path: str) -> tuple[bytes, bytes | None]:
    try:
        return load_certificate(path)
    except OSError as error:
        raise ValueError(f"no certificate: {error}") from error


class Sockets:
    """Those of one context, which is not used after a fork."""

    def __init__(self, keys: Keys, lease: float) -> None:
        self._context, self._keys = zmq.Context[zmq.Socket[bytes]](), keys
        self._claims = Claims()
        self._heartbeat = max(100, int(lease * 250))
        self._zap: list[zmq.Socket[bytes]] = []
        """At most one: it answers the question who may connect."""

    def bound(self, endpoint: str) -> tuple[zmq.Socket[bytes], str]:
        """A ROUTER there, and the endpoint with the port that it got. Raises zmq.ZMQError, OSError,
        ValueError."""
        self._claims.claim(endpoint)
        if self._keys.certificate and not self._zap:
            self._zap.append(self._context.socket(zmq.REP))
            self._zap[0].linger = 0
            self._zap[0].bind(ZAP)
        socket = self._socket(zmq.ROUTER)
        try:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._keys.bind(socket)
            socket.bind(endpoint)
        except BaseException:
            socket.close()
            raise
        real = socket.getsockopt(zmq.LAST_ENDPOINT)
        return socket, real.rstrip(b"\0").decode()  # type: ignore[union-attr]

    def connected(self, endpoint: str) -> zmq.Socket[bytes]:
        """A DEALER that is connected there, or will be."""
        socket = self._socket(zmq.DEALER)
        # Else what was sent to one process would wait for the next one there.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._keys.connect(socket)
        socket.connect(endpoint)
        return socket

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        # ZeroMQ's own thread minds these: whoever computes for long without the GIL is not dead.
        socket.setsockopt(zmq.HEARTBEAT_IVL, self._heartbeat)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * self._heartbeat)
        socket.set_hwm(HIGH_WATER)
        return socket

    def zap(self) -> list[zmq.Socket[bytes]]:
        """What is to be waited for, too."""
        return self._zap

    def authenticate(self) -> None:
        """Answer those who want to connect."""
        for socket in self._zap:
            while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                version, request, _, _, _, mechanism, *credentials = socket.recv_multipart()
                welcome = mechanism == b"CURVE" and self._keys.may_connect(b"".join(credentials))
                code, text = (b"200", b"OK") if welcome else (b"400", b"not authorized")
                socket.send_multipart((version, request, code, text, b"", b""))

    def close(self) -> None:
        """Give back everything; returns when ports are free again."""
        self._context.destroy(linger=0)
        self._claims.release()
