import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from rpc.backends.http.wire import CONTENT_TYPE, Answers, Request, path_of
from rpc.testing.conformance import Site
from rpc.testing.site import request
from rpc.transport import Delivery, Message, packed
from tests.conformance.brokerless import Brokerless
from tests.zeromq import cut, http_places

MOST = 6
"""Workers at a time, at most, each at a place of its own."""


class Listening(Site):
    """A site where whoever asks finds who serves: what is asked before that comes in any order."""

    def serve(self, *arguments: Any, on_change: Any = lambda connected: None, **options: Any) -> Any:
        listening = threading.Event()

        def change(connected: bool) -> None:
            on_change(connected)
            listening.set()

        served = super().serve(*arguments, on_change=change, **options)
        assert listening.wait(self.patience)
        return served


class OnHttp(Brokerless):
    scheme = "http"
    asynchronous = False

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        url = f"{http_places(MOST, self.scheme)}?lease=1&retry_for=60"
        with Listening(url, disrupt=cut, asynchronous=self.asynchronous) as site:
            yield site


class TestHttp(OnHttp):
    pass


class TestReplies:
    scheme, asynchronous, site = "http", False, OnHttp.site

    def test_a_reply_that_was_cut_comes_again(self, site: Site) -> None:
        """One that is too large to be kept is made again."""
        handled: list[bytes] = []

        def handler(delivery: Delivery) -> Message:
            handled.append(delivery.message.body)
            return Message(bytes(int(delivery.message.body)), {"id": delivery.message.id})

        site.serve(handler)
        for size, times in (b"9", 1), (b"9000000", 2):
            message = request(size)
            with posted(site, message) as line:
                line.recv(1)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            answers = Answers()
            with posted(site, message.replace(deliveries=2)) as line:
                while not answers.is_complete:
                    answers.feed(line.recv(1_000_000))
            assert [len(reply.body) for reply in answers.frames()] == [int(size)]
            assert handled.count(size) == times


def posted(site: Site, message: Message) -> socket.socket:
    """A connection on which this was asked, and that takes little at a time."""
    host, port = urlsplit(site.url).netloc.split(",")[0].split(":")
    line = socket.socket()
    line.settimeout(site.patience)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect((host, int(port)))
    headers = [("content-type", CONTENT_TYPE)]
    line.sendall(Request("POST", path_of(site.queue()), "x", packed(message), headers).encoded())
    return line


class TestHttpInALoop(OnHttp):
    asynchronous = True
