"""What is special to ZeroMQ: many endpoints, dead ones, who may connect, and what strangers send."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import uuid4

import pytest
import zmq
import zmq.auth

from rpc import AsyncRpcClient, Identity, RpcClient, RpcReceiver, ServiceInfo
from rpc.backends import backend_from_url
from rpc.backends.zeromq import ZeromqBackend
from rpc.backends.zeromq.directory import WHERE, Directory
from rpc.backends.zeromq.server import ZeromqServer
from rpc.backends.zeromq.session import LAST, Route
from rpc.errors import BackendRefused, BackendUnavailable, QueueFull, RpcTimeout, SettingsError, Unsupported
from rpc.testing.site import Site, eventually, request
from rpc.transport import LOST, Delivery, Message, inbox, queue, topic
from tests.zeromq import cut, tcp_url

QUEUE = queue("default")
PATIENCE = 20.0
"""Seconds: far longer than anything here takes."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(f"{tcp_url(4)}?lease=1") as site:
        yield site


# Who handles what, and sends the reply.


def test_the_time_to_send_a_reply_is_not_that_of_its_handler(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another thread would take over the sockets for each message, on a busy machine."""
    write = Route.write

    def slowly(route: Route, frame: bytes) -> bool:
        if frame[:1] == LAST:
            threading.Event().wait(0.002)
        return write(route, frame)

    monkeypatch.setattr(Route, "write", slowly)
    server, _ = site.serve()

    def is_fast() -> bool:
        site.ask(b"echo:x").receive(site.patience)
        return cast("ZeromqServer", server)._turns.are_fast()

    eventually(lambda: all(is_fast() for _ in range(10)))


# Which worker gets what.


def test_of_two_workers_the_one_that_is_ten_times_slower_gets_little(site: Site) -> None:
    done = Counter[str]()

    def worker(name: str, seconds: float) -> None:
        def answer(delivery: Delivery) -> Message:
            threading.Event().wait(seconds)  # it is the work that takes so long
            done[name] += 1
            return Message(b"", {"id": delivery.message.id})

        site.serve(answer)

    worker("slow", 0.05)
    worker("fast", 0.005)
    eventually(lambda: _served_by(site) == 2)

    def call(_: int) -> None:
        replies = site.client.request(site.queue(), request(b""))
        replies.receive(site.patience)
        replies.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(200)))
    assert done["fast"] + done["slow"] == 200
    assert done["fast"] > 160


def test_a_killed_worker_costs_no_call(site: Site) -> None:
    workers = [site.spawn() for _ in range(2)]
    eventually(lambda: _served_by(site) == 2)

    def call(number: int) -> bytes:
        if number == 100:
            workers[0].kill()
        replies = site.client.request(site.queue(), request(b"echo:%d" % number))
        try:
            return replies.receive(site.patience).body
        finally:
            replies.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(400))) == [b"%d" % number for number in range(400)]


def test_a_worker_that_holds_the_interpreter_for_longer_than_the_lease_is_not_dead(site: Site) -> None:
    program = """
import ctypes, sys, time
from rpc.backends import backend_from_url
from rpc.transport import Message, queue
def handle(delivery):
    with open(sys.argv[3], "a") as log:
        log.write("begun\\n")
    ctypes.PyDLL(None).usleep(2_500_000)
    delivery.finish(Message(b"done", {"id": delivery.message.id}))
backend_from_url(sys.argv[1]).server([queue(sys.argv[2])], handle).run()
"""
    arguments = [sys.executable, "-c", program, site.url, site.name(), str(site.log.path)]
    with subprocess.Popen(arguments) as process:
        try:
            assert site.ask(b"").receive(site.patience).body == b"done"
            assert site.log.lines() == ["begun"]
        finally:
            process.kill()


def test_what_a_stopped_worker_has_not_begun_goes_to_another(site: Site) -> None:
    server, thread = site.serve()
    eventually(lambda: _served_by(site) == 1)
    held = site.ask(b"hold:x")
    eventually(site.log.lines)
    asked = [site.ask(b"echo:%d" % number) for number in range(20)]
    server.stop()
    site.serve(site.toy("other"))
    assert [replies.receive(site.patience).body for replies in asked] == [b"%d" % n for n in range(20)]
    site.release()
    assert held.receive(site.patience).body == b"x"
    thread.join(site.patience)


@pytest.fixture
def patient() -> Iterator[Site]:
    """Whose workers are not given up as dead while connections break."""
    with Site(f"{tcp_url(4)}?lease=60") as site:
        yield site


def test_replies_survive_that_connections_break_all_the_time(patient: Site) -> None:
    patient.serve(threads=4)
    done = threading.Event()

    def break_them() -> None:
        while not done.wait(0.05):
            cut()

    breaking = threading.Thread(target=break_them)
    breaking.start()
    try:
        replies = [patient.ask(b"count:50") for _ in range(20)]
        for each in replies:
            bodies = [each.receive(patient.patience).body for _ in range(51)]
            assert bodies == [*[b"%d" % number for number in range(50)], b"end"]
    finally:
        done.set()
        breaking.join()


def test_a_worker_with_too_much_to_do_refuses_more() -> None:
    with Site(f"{tcp_url()}?high_water=2") as site:
        site.serve()
        site.ask(b"hold:x")
        eventually(site.log.lines)
        site.tell(b"log:1")
        with pytest.raises(QueueFull):
            site.tell(b"log:2")
        asked = site.ask(b"log:3")
        site.release()
        assert asked.receive(site.patience).body == b"logged"
        assert site.log.lines() == ["holding x", "held x", "toy 1", "toy 3"]


# What sending means.


def test_a_message_was_sent_when_a_worker_has_it(site: Site) -> None:
    site.serve()
    site.ask(b"hold:x")
    eventually(site.log.lines)
    site.tell(b"log:1")
    site.hang_up()
    site.release()
    eventually(lambda: "toy 1" in site.log.lines())


def test_without_a_worker_nothing_is_sent(site: Site) -> None:
    with pytest.raises(BackendUnavailable, match=f"no worker of queue {site.name()}"):
        site.client.send(site.queue(), Message(b"", {"id": "1", "ttl": "0.2"}))
    site.serve()
    site.tell(b"log:later")
    eventually(lambda: site.log.lines() == ["toy later"])


def test_an_event_that_nobody_hears_is_no_error(site: Site) -> None:
    site.tell(b"log:unheard", topic(site.name()))


def test_each_worker_hears_its_own_inbox_while_it_serves(site: Site) -> None:
    for name in "ab":
        site.serve(site.toy(name), site.queue(), inbox(site.name(name)), threads=2)
    eventually(lambda: _served_by(site) == 2)
    site.ask(b"hold:x")
    site.ask(b"hold:y")
    eventually(lambda: len(site.log.lines()) == 2)
    for name in "abab":
        site.tell(b"log:hello", inbox(site.name(name)))
    eventually(lambda: len(site.log.lines()) == 6)
    assert Counter(site.log.lines()[2:]) == {"a hello": 2, "b hello": 2}


@pytest.mark.parametrize("header", ["delay", "idempotency-key"])
def test_what_it_cannot_do_is_refused(site: Site, header: str) -> None:
    with pytest.raises(Unsupported, match="have it"):
        site.client.send(site.queue(), Message(b"", {"id": "1", header: "1"}))
    with pytest.raises(Unsupported, match="have it"):
        site.client.request(site.queue(), request(b"", **{header: "1"}))
    with pytest.raises(Unsupported, match="subscriptions"):
        site.client.server([topic("x", "y", durable=True)], lambda delivery: None)


# Events.


def empty_url(kind: str, path: Path) -> str:
    """Three endpoints where nobody is."""
    names = [f"{path}/{name}" for name in "abc"]
    return tcp_url(3) if kind == "tcp" else f"zmq+ipc://{','.join(names)}"


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_who_has_just_subscribed_misses_nothing(kind: str, tmp_path: Path) -> None:
    """Though whoever publishes has tried in vain where he is, or knew somebody else there."""
    url = empty_url(kind, tmp_path)
    with RpcClient(backend=url) as publisher:
        publisher.publish("boom")
        for number in range(4):
            with RpcClient(backend=url) as client, client.subscribe("boom") as stream:
                publisher.publish("boom", number)
                assert stream.get(PATIENCE).data == number


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_who_has_just_subscribed_misses_nothing_of_an_event_loop(kind: str, tmp_path: Path) -> None:
    url = empty_url(kind, tmp_path)

    async def main() -> None:
        async with AsyncRpcClient(backend=url) as publisher:
            await publisher.publish("boom")
            for number in range(4):
                async with (
                    AsyncRpcClient(backend=url) as client,
                    await client.subscribe("boom") as stream,
                ):
                    await asyncio.gather(*(publisher.publish("boom", number) for _ in range(3)))
                    assert [(await stream.get(PATIENCE)).data for _ in range(3)] == [number] * 3

    asyncio.run(main())


def test_many_threads_publish_to_who_has_just_subscribed() -> None:
    url = tcp_url(3)
    with RpcClient(backend=url) as publisher, RpcClient(backend=url) as client, ThreadPoolExecutor(8) as pool:
        publisher.publish("boom")
        with client.subscribe("boom") as stream:
            for each in [pool.submit(publisher.publish, "boom", number) for number in range(40)]:
                each.result()
            assert sorted(stream.get(PATIENCE).data for _ in range(40)) == [*range(40)]


def test_an_endpoint_that_says_nothing_keeps_no_event() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"{tcp_url(1)},127.0.0.1:{mute.getsockname()[1]}"
        with RpcClient(backend=url) as publisher, RpcClient(backend=url) as client:
            publisher.publish("boom")
            with client.subscribe("boom") as stream:
                for number in range(3):
                    publisher.publish("boom", number)
                assert [stream.get(PATIENCE).data for _ in range(3)] == [0, 1, 2]


# Endpoints.


def test_a_port_that_is_not_given_is_found() -> None:
    with Site("zmq+tcp://127.0.0.1:0") as site:
        backend = cast("ZeromqBackend", site.backend())
        site.serve(backend=backend)
        [endpoint] = eventually(lambda: backend.bound)
        client = ZeromqBackend([endpoint])
        with _closing(client):
            assert client.request(site.queue(), request(b"echo:x")).receive(site.patience).body == b"x"


def test_one_worker_listens_at_many_endpoints(tmp_path: Path) -> None:
    endpoints = [tcp_url().removeprefix("zmq+"), f"ipc://{tmp_path}/socket"]
    with Site("memory://unused") as site:
        worker = ZeromqBackend(endpoints, listen="all")
        site.serve(backend=cast("Any", worker))
        for endpoint in endpoints:
            with _closing(ZeromqBackend([endpoint])) as client:
                assert client.request(site.queue(), request(b"echo:x")).receive(20).body == b"x"


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_an_endpoint_belongs_to_whoever_has_it(transport: str, tmp_path: Path) -> None:
    url = tcp_url() if transport == "tcp" else f"zmq+ipc://{tmp_path}/socket"
    with Site(url) as site:
        server, thread = site.serve()
        assert site.ask(b"whoami:").receive(site.patience).body == b"toy"
        with pytest.raises(BackendRefused, match=r"^cannot listen: (?!cannot)"):
            site.backend().server([site.queue()], lambda delivery: None).run()
        assert site.ask(b"whoami:").receive(site.patience).body == b"toy"
        server.stop()
        thread.join(site.patience)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_it_stops_and_starts_twenty_times_at_one_endpoint(transport: str, tmp_path: Path) -> None:
    url = tcp_url() if transport == "tcp" else f"zmq+ipc://{tmp_path}/socket"
    with Site(url) as site:
        for number in range(20):
            server, thread = site.serve()
            assert site.ask(b"echo:%d" % number).receive(site.patience).body == b"%d" % number
            server.stop()
            thread.join(site.patience)
            assert not thread.is_alive()


def test_workers_connect_to_a_caller_that_binds() -> None:
    with Site(f"{tcp_url()}?workers=connect&lease=1") as site:
        told: list[bool] = []
        site.serve(site.toy("a"), threads=2, on_change=told.append)
        site.serve(site.toy("b"), threads=2)
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        eventually(lambda: told == [True])
        eventually(lambda: _served_by(site) == 2)
        for _ in range(4):
            site.ask(b"hold:x")
        eventually(lambda: len(site.log.lines()) == 4)
        cut()
        site.release()
        assert site.ask(b"echo:y").receive(site.patience).body == b"y"
        site.client.close()
        eventually(lambda: told == [True, False])
        site.hang_up()
        assert site.ask(b"echo:z").receive(site.patience).body == b"z"


def test_workers_are_found_by_a_function() -> None:
    endpoints: list[str] = []
    client = ZeromqBackend(lambda: endpoints)
    with Site("zmq+tcp://127.0.0.1:0") as site, _closing(client):
        backend = cast("ZeromqBackend", site.backend())
        site.serve(backend=backend)
        endpoints += eventually(lambda: backend.bound)
        assert client.request(site.queue(), request(b"echo:x")).receive(site.patience).body == b"x"


def test_a_function_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpc.backends.zeromq.endpoints.LOOK_EVERY", 0.05)
    answers = iter([OSError("no answer"), ValueError("no sense")])
    with Site("zmq+tcp://127.0.0.1:0") as site:
        backend = cast("ZeromqBackend", site.backend())

        def find() -> list[str]:
            for error in answers:
                raise error
            return backend.bound

        with _closing(ZeromqBackend(find)) as client:
            replies = client.request(site.queue(), request(b"echo:x"))
            site.serve(backend=backend)
            assert replies.receive(site.patience).body == b"x"


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [endpoint.rpartition(":")[2] for endpoint in tcp_url(2).split(",")]
    found = [(None, None, None, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    with Site(f"zmq+tcp://127.0.0.1:{ports[0]}") as one, Site(f"zmq+tcp://127.0.0.2:{ports[0]}") as two:
        one.serve(one.toy("one"), QUEUE)
        two.serve(two.toy("two"), QUEUE)
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
        with _closing(ZeromqBackend(f"zmq+tcp://workers.example:{ports[0]}")) as client:
            eventually(lambda: len(client._calling().workers._at.get(QUEUE, ())) == 2)


@pytest.mark.parametrize(
    "url",
    [
        "zmq+tcp://",
        "zmq+ipc://",
        "zmq+tcp://host",
        "zmq+tcp://host:x",
        "zmq+tcp://host:70000",
        "zmq+tcp://host:1?nonsense=1",
        "zmq+tcp://host:1?lease=0",
        "zmq+tcp://host:1?max_deliveries=0",
        "zmq+tcp://host:1?listen=some",
        "zmq+tcp://host:1?server_key=x",
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        backend_from_url(url)


# Who may connect.


class Certificates:
    """Of a worker and two callers, of whom one is authorized."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in "worker", "friend", "stranger":
            zmq.auth.create_certificates(directory, name)
        self.authorized = directory / "authorized"
        self.authorized.mkdir()
        self.admit("friend")

    def admit(self, name: str) -> None:
        (self.authorized / f"{name}.key").write_bytes((self._directory / f"{name}.key").read_bytes())

    def worker(self, endpoint: str) -> ZeromqBackend:
        secret = str(self._directory / "worker.key_secret")
        return ZeromqBackend(endpoint, certificate=secret, authorized=str(self.authorized))

    def client(self, endpoint: str, name: str, server: str = "worker") -> ZeromqBackend:
        secret, key = self._directory / f"{name}.key_secret", self._directory / f"{server}.key"
        return ZeromqBackend(endpoint, certificate=str(secret), server_key=str(key))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def test_only_those_with_a_known_key_are_served(certificates: Certificates) -> None:
    url = tcp_url()
    with Site(url) as site:
        site.serve(backend=cast("Any", certificates.worker(url)))
        with _closing(certificates.client(url, "friend")) as friend:
            assert friend.request(site.queue(), request(b"echo:x")).receive(site.patience).body == b"x"
        for refused in (
            ZeromqBackend(url),
            certificates.client(url, "stranger"),
            certificates.client(url, "friend", "stranger"),
        ):
            with _closing(refused), pytest.raises(RpcTimeout):
                refused.request(site.queue(), request(b"log:refused")).receive(0.5)
        with _closing(certificates.client(url, "stranger")) as stranger:
            replies = stranger.request(site.queue(), request(b"echo:y"))
            certificates.admit("stranger")
            assert replies.receive(site.patience).body == b"y"
        assert site.log.lines() == []


def test_a_certificate_alone_lets_nobody_in(certificates: Certificates, tmp_path: Path) -> None:
    worker = ZeromqBackend(tcp_url(), certificate=str(tmp_path / "worker.key_secret"))
    with pytest.raises(BackendRefused, match="authorized"):
        worker.server([QUEUE], lambda delivery: None).run()


# Strangers.


def test_what_strangers_send_costs_that_message_alone(site: Site) -> None:
    """Random frames, from those who say HELLO first, too, and pretend to be somebody."""
    import random

    from rpc.backends.zeromq.peers import INTRODUCTION
    from rpc.backends.zeromq.session import HEAD

    dice = random.Random(7)
    toy = site.toy()
    site.serve(toy, site.queue(), topic(site.name()), inbox(site.name()), threads=2)
    held = site.ask(b"hold:x")
    eventually(site.log.lines)
    [endpoint] = [link.endpoint for link in _links(site) if link.greeted]
    with zmq.Context() as context:
        for number in range(40):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 1000
                if number % 4 == 0:
                    socket.setsockopt(zmq.ROUTING_ID, b"somebody")
                socket.connect(endpoint)
                if number % 2:
                    introduction = INTRODUCTION.pack(dice.randbytes(16), bytes(16), 0, False)
                    socket.send(HEAD.pack(b"H", 0, 0) + introduction + dice.randbytes(dice.randrange(9)))
                for count in range(50):
                    kind = bytes([dice.choice([*b"HWA?MCGRLBNSE", 0, 255])])
                    head = HEAD.pack(kind, dice.choice([0, count + 1, 2**63]), dice.choice([0, 2**64 - 1]))
                    random_frame = dice.randbytes(dice.randrange(60))
                    frame = dice.choice([head, head + random_frame, random_frame, b""])
                    socket.send_multipart([frame] * dice.choice([1, 1, 1, 2, 5]))
    assert site.ask(b"echo:y").receive(site.patience).body == b"y"
    site.tell(b"log:heard", inbox(site.name()))
    site.tell(b"log:heard", topic(site.name()))
    eventually(lambda: site.log.lines().count("toy heard") == 2)
    toy.released.set()
    assert held.receive(site.patience).body == b"x"


def test_who_is_greeted_again_before_he_has_answered_keeps_his_session(site: Site) -> None:
    """Else what was sent after his first answer would be lost, or done twice: he may have been stopped."""
    from rpc.backends.zeromq.peers import INTRODUCTION
    from rpc.backends.zeromq.session import HEAD

    site.serve(None, site.queue())
    site.ask(b"echo:x").receive(site.patience)
    [endpoint] = [link.endpoint for link in _links(site) if link.greeted]
    token = uuid4().bytes
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        for _ in range(2):
            socket.send(HEAD.pack(b"H", 0, 0) + INTRODUCTION.pack(token, bytes(16), 0, False))
        known = []
        while len(known) < 2:
            assert socket.poll(PATIENCE * 1000)
            frame = socket.recv()
            if frame[:1] == b"W":
                known.append(INTRODUCTION.unpack_from(frame, HEAD.size)[1])
    assert known == [bytes(16), token]


def test_what_a_caller_says_in_its_turn_costs_that_message_alone(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one who is known, and counts as he should: what he says is read, and stops no thread for a while."""
    import random

    from rpc.backends.zeromq.peers import INTRODUCTION
    from rpc.backends.zeromq.session import HEAD
    from rpc.backends.zeromq.wire import message_data

    dice = random.Random(7)
    site.serve(threads=2)
    assert site.ask(b"echo:x").receive(site.patience).body == b"x"
    [endpoint] = [link.endpoint for link in _links(site) if link.greeted]
    good = message_data(1, site.queue(), request(b"echo:z"))
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1000
        socket.connect(endpoint)
        socket.send(HEAD.pack(b"H", 0, 0) + INTRODUCTION.pack(dice.randbytes(16), bytes(16), 0, False))
        for number in range(1, 500):
            odd = dice.choice([bytes(dice.randrange(60)), dice.randbytes(dice.randrange(60)), good])
            odd = odd[: dice.randrange(len(odd) + 1)] + dice.randbytes(dice.randrange(2))
            socket.send(HEAD.pack(dice.choice([b"M", b"M", b"C", b"G"]), number, 0) + odd)
        socket.send(HEAD.pack(b"M", 500, 0) + message_data(9, site.queue(), request(b"log:heard")))
        eventually(site.log.lines)
    assert site.ask(b"echo:y").receive(site.patience).body == b"y"
    assert not [each.getMessage() for each in caplog.records if each.name == "rpc.backends._retry"]


def test_what_a_worker_says_that_makes_no_sense_costs_that_message_alone(site: Site) -> None:
    """A stranger listens where a worker is looked for."""
    import random

    from rpc.backends.zeromq.session import HEAD

    dice = random.Random(7)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(site.url.removeprefix("zmq+").partition(",")[0])
        site.serve()
        assert site.ask(b"echo:x").receive(site.patience).body == b"x"
        identity, hello = socket.recv_multipart()
        for number in range(300):
            kind = bytes([dice.choice(b"HWA?MCGRLBNSE")])
            data = hello[17:] if number % 2 else dice.randbytes(dice.randrange(80))
            socket.send_multipart([identity, HEAD.pack(kind, number, 0) + data])
        for number in range(20):
            assert site.ask(b"echo:%d" % number).receive(site.patience).body == b"%d" % number


def test_a_forked_child_has_sockets_of_its_own_also_in_the_middle_of_a_call(site: Site) -> None:
    site.serve()
    waiting = site.ask(b"hold:x")
    eventually(site.log.lines)
    site.serve(site.toy("other"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(site.client.request(site.queue(), request(b"whoami:")).receive(20).body != b"other")
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    site.release()
    assert waiting.receive(site.patience).body == b"x"


def test_a_call_that_may_not_be_delivered_again_fails_if_its_worker_is_killed(site: Site) -> None:
    process = site.spawn()
    replies = site.ask(b"die_once:")
    assert LOST in replies.receive(site.patience).headers
    process.wait()
    assert site.log.lines() == ["once"]


class _closing:
    def __init__(self, backend: ZeromqBackend) -> None:
        self.backend = backend

    def __enter__(self) -> ZeromqBackend:
        return self.backend

    def __exit__(self, *_: object) -> None:
        self.backend.close()


def _served_by(site: Site) -> int:
    """How many workers the client of the site knows for its queue."""
    client = cast("ZeromqBackend", site.client)
    client.is_served(site.name())
    return len(client._calling().workers._at.get(site.queue(), ()))


def _links(site: Site) -> list[Any]:
    return [*cast("ZeromqBackend", site.client)._calling().workers.peers.links.values()]


def test_workers_are_found_over_another_backend(
    any_broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"{any_broker_url}{'&' if '?' in any_broker_url else '?'}prefix={uuid4().hex}"
    with Site(f"zmq+tcp://127.0.0.1:0?lease=1&registry={quote(other, safe='')}") as site:
        junk = cast("Any", backend_from_url(other))
        site.serve(lambda delivery: Message(b'["ftp://x"]', {"id": delivery.message.id}), WHERE, backend=junk)
        replies = site.ask(b"whoami:")
        server, thread = site.serve(site.toy("one"))
        assert replies.receive(site.patience).body == b"one", "a call waits for the first one"
        site.serve(site.toy("two"))
        eventually(lambda: _served_by(site) == 2)
        server.stop()
        thread.join(site.patience)
        assert site.ask(b"whoami:").receive(site.patience).body == b"two"
        eventually(lambda: "refused what should be the endpoints of a worker" in caplog.text)


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://[::]:5555"])
def test_who_listens_everywhere_is_found_by_the_name_of_its_machine(
    endpoint: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "there")
    told, ended = Directory(redis_url), threading.Event()
    told.tell([endpoint, "ipc:///x"], ended)
    try:
        eventually(lambda: told.look_up() == ["tcp://there:5555", "ipc:///x"])
    finally:
        ended.set()
        told.close()


@pytest.mark.parametrize(
    ("registry", "error"),
    [("nothing://x", "nothing"), ("http://127.0.0.1:1", "topics"), ("redis://:secret@x?lease=no", "lease")],
)
def test_a_registry_that_makes_no_sense_is_refused(registry: str, error: str) -> None:
    with pytest.raises((SettingsError, Unsupported), match=error) as caught:
        backend_from_url(f"zmq+tcp://127.0.0.1:0?registry={quote(registry, safe='')}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_are_asked_also_by_a_client_that_has_just_begun(asynchronous: bool) -> None:
    """And though nobody is at one of its endpoints, so that it waits for that one first."""

    async def listed(url: str) -> list[ServiceInfo]:
        async with AsyncRpcClient(backend=url) as client:
            return await client.list_services()

    urls = [tcp_url() for _ in range(3)]
    receivers = [RpcReceiver(jobs={}, backend=url, identity=Identity(type="calc")) for url in urls[:2]]
    threads = [threading.Thread(target=each.start) for each in receivers]
    for thread in threads:
        thread.start()
    everywhere = ",".join(
        url.removeprefix("zmq+tcp://") if number else url for number, url in enumerate(urls)
    )
    try:
        with RpcClient(backend=everywhere) as client:
            eventually(lambda: len(client.list_services()) == 2)  # both have begun
        if asynchronous:
            assert len(asyncio.run(listed(everywhere))) == 2
        else:
            with RpcClient(backend=everywhere) as client:
                assert len(client.list_services()) == 2
    finally:
        for receiver, thread in zip(receivers, threads, strict=True):
            receiver.stop()
            thread.join()
