"""Where workers are, as they say it themselves over another backend: whoever wants to know asks all. Nothing
is kept there."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from uuid import uuid4

import msgspec

from ...errors import NoReceivers, RpcError, RpcTimeout, shown
from ...loops import started
from ...transport import Delivery, Message, topic
from .. import backend_from_url
from ..features import unsupported
from .endpoints import checked

logger = logging.getLogger(__name__)

WHERE = topic("rpc.zeromq")
"""Where workers are asked for their endpoints."""
ASKED_FOR, SETTLED = 0.5, 0.1
"""Seconds that the first answer is waited for, and each further one."""
_ANYWHERE = ("0.0.0.0", "*", "::")  # noqa: S104
_endpoints = msgspec.json.Decoder(list[str]).decode


class Directory:
    """Of those at a backend, which has topics. Connects at first use. Raises SettingsError and Unsupported
    for what is none."""

    def __init__(self, url: str) -> None:
        self._backend = backend_from_url(url)
        if "topics" not in self._backend.features:
            raise unsupported("topics")

    def look_up(self) -> list[str]:
        """Those that there are. Raises BackendUnavailable."""
        id, found, wait = uuid4().hex, dict[str, None](), ASKED_FOR
        message = Message(headers={"id": id, "reply-to": id}).replace(ttl=ASKED_FOR)
        with suppress(RpcTimeout, NoReceivers), closing(self._backend.request(WHERE, message)) as replies:
            while (reply := replies.receive(wait)).id == id:
                found |= dict.fromkeys(_read(reply))
                wait = SETTLED
        return [*found]

    def tell(self, endpoints: Sequence[str], ended: threading.Event) -> None:
        """Answer whoever asks, in threads, until that is set. Does not wait for the other backend."""
        body = msgspec.json.encode([_reachable(each) for each in endpoints])

        def answer(delivery: Delivery) -> None:
            delivery.finish(Message(body, {"id": delivery.message.id}))

        server = self._backend.server([WHERE], answer)

        def serve() -> None:
            try:
                server.run()
            except RpcError as error:
                logger.error("nobody will find this worker by the registry: %s", shown(error))

        def end() -> None:
            ended.wait()
            server.stop()

        for target in serve, end:
            started(threading.Thread(target=target, name="rpc-zmq-registry", daemon=True))

    def close(self) -> None:
        self._backend.close()


def _read(reply: Message) -> list[str]:
    """Anybody may have written it."""
    try:
        found = _endpoints(reply.body)
        for each in found:
            checked(each)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        logger.warning("refused what should be the endpoints of a worker: %s", shown(error))
        return []
    return found


def _reachable(endpoint: str) -> str:
    """With the name of this machine, if any of its addresses will do."""
    transport, host, port = checked(endpoint)
    return f"{transport}://{socket.gethostname()}:{port}" if port and host in _ANYWHERE else endpoint
