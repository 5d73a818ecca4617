"""fakeredis' TCP server, corrected where a broker needs it: a Redis server in pure Python.

For a child process only (`rpc.testing.servers` starts it). It uses fakeredis' internals: with a release that
changed them it fails at its start, loudly.
"""

from __future__ import annotations

import io
import os
import socket
from typing import Any

from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from fakeredis._command_args_parsing import Int
from fakeredis._commands import command
from fakeredis._helpers import SimpleError
from fakeredis._socket import FakeSocket


def serve(port: int) -> None:
    """Be a Redis server on 127.0.0.1:`port` until a signal ends this process."""
    with _Server(("127.0.0.1", port), server_version=(7, 4)) as server:
        server.daemon_threads = True
        server.RequestHandlerClass = _Handler
        server.serve_forever()


class _Chunks(io.BufferedReader):
    def readline(self, size: int | None = -1, /) -> bytes:
        return self.read1(65536) or b""  # line by line, a large binary value takes very long


class _Handler(TCPFakeRequestHandler):
    def setup(self) -> None:
        super().setup()
        fake: Any = self.current_client.get_socket()
        fake.__class__ = _BrokerSocket  # there is no place to say which class to make
        fake.peer = self.connection
        here, there = self.connection.getsockname(), self.client_address
        # CLIENT LIST would show tuples, on whose spaces older clients stumble.
        fake._client_info.update(laddr="{}:{}".format(*here), addr="{}:{}".format(*there))
        self.rfile = _Chunks(self.rfile.detach(), 65536)
        # The socket was made non-blocking, and cuts a reply that the kernel does not take at once.
        self.patient = self.connection.dup()
        self.patient.settimeout(60)
        self.writer.writer = type(self.wfile)(self.patient)  # type: ignore[call-arg]

    def finish(self) -> None:
        self.patient.close()
        super().finish()


class _Server(TcpFakeServer):
    request_queue_size = 128  # its own 5 are few for clients that come at once


class _BrokerSocket(FakeSocket):
    """fakeredis' end of a connection, with what queues and workers rely on and it lacks."""

    peer: socket.socket

    def _blocking(self, timeout: float | None, func: Any, shape: Any = None) -> Any:
        def unless_gone(first_pass: bool) -> Any:
            # A client that died while it waited would be served all the same, and the job be lost.
            if _hung_up(self.peer):
                raise ConnectionResetError("the client has gone")
            return func(first_pass)

        return super()._blocking(timeout, unless_gone, shape)

    def _run_command(self, func: Any, sig: Any, args: list[Any], from_script: bool) -> Any:
        run = super()._run_command
        seconds, at_once = (None, args) if from_script else _without_waiting(sig.name, args)
        if seconds is None:
            return run(func, sig, args, from_script)

        def attempt(first_pass: bool) -> Any:
            answer = run(*self._name_to_func(at_once[0]), at_once[1:], False)
            return None if answer == {} else answer

        return self._blocking(seconds, attempt)

    def _decode_error(self, error: SimpleError) -> Any:
        # As redis-py's exception it would be raised in the handler, which then closes the connection.
        return SimpleError(" ".join(error.value.splitlines()))

    @command(name="EVAL", fixed=(bytes, Int), repeat=(bytes,))
    def eval(self, script: bytes, numkeys: int, *keys_and_args: bytes) -> Any:
        """EVALSHA ends here, too. Lua does not know the first line that scripts may have in Redis 7."""
        if script.startswith(b"#!"):
            script = script.partition(b"\n")[2]
        return super().eval(script, numkeys, *keys_and_args)

    @command(name="INFO", fixed=(), repeat=(bytes,))
    def info(self, *sections: bytes) -> bytes:
        version = ".".join(map(str, self.version))
        return b"redis_version:%s.0\r\nprocess_id:%d\r\n" % (version.encode(), os.getpid())


def _hung_up(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def _without_waiting(name: str, args: list[Any]) -> tuple[float | None, list[Any]]:
    """The seconds that BLMOVE or XREADGROUP BLOCK may wait, and the command that does the same at once.

    fakeredis does not let these two wait. (None, ...) stands for all others.
    """
    if name == "blmove":
        return float(args[-1]), ["lmove", *args[:-1]]
    if name == "xreadgroup":
        words = [word.upper() for word in args]
        options = words[3 : words.index(b"STREAMS", 3)]  # GROUP and its two names come first
        if b"BLOCK" in options:
            at = words.index(b"BLOCK", 3)
            return float(args[at + 1]) / 1000, [name, *args[:at], *args[at + 2 :]]
    return None, args
