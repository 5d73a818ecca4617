"""What one writes by hand on pyzmq: DEALER and ROUTER. No acknowledgement, no deadline, no error handling."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import zmq

from .work import WORK, ZMQ

PACKAGES = ("pyzmq", "msgspec")
NOTE = "a DEALER for each thread; the worker: ROUTER; msgspec's JSON"
ENDPOINT = ZMQ.format(port=5572)

encode, decode = msgspec.json.encode, msgspec.json.decode


class Caller:
    def __init__(self) -> None:
        self._own = threading.local()

    def call(self, name: str, **arguments: Any) -> Any:
        socket = self._socket()
        socket.send(encode([1, name, arguments]))
        return decode(socket.recv())[1]

    def send(self, name: str, **arguments: Any) -> None:
        self._socket().send(encode([0, name, arguments]))

    def _socket(self) -> zmq.Socket[bytes]:
        if not hasattr(self._own, "socket"):
            self._own.socket = zmq.Context.instance().socket(zmq.DEALER)
            self._own.socket.connect(ENDPOINT)
        socket: zmq.Socket[bytes] = self._own.socket
        return socket


connect = Caller


def serve() -> None:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(ENDPOINT)
    while True:
        identity, frame = socket.recv_multipart()
        id, name, arguments = decode(frame)
        answer = WORK[name](**arguments)
        if id:
            socket.send_multipart([identity, encode([id, answer])])
