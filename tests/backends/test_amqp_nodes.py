"""RabbitMQ itself stops and starts; or speaks TLS."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from rpc import BackendUnavailable, NoReceivers, RpcClient, RpcReceiver, RpcTimeout
from rpc.backends import backend_from_url
from rpc.testing._portal import Portal
from rpc.testing.site import PATIENCE, Site, eventually, request
from rpc.transport import Delivery, Message, queue, topic
from tests.rabbit import AmqpBackend, Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.start()
    yield node
    node.stop()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_of_rabbitmq_loses_no_call(node: Node, number: int) -> None:
    ran: Counter[int] = Counter()

    def add(request: Any) -> None:
        ran[request.data["a"]] += 1
        request.respond({"answer": request.data["a"] + 1})

    _settled(node, "calls")
    receiver = RpcReceiver(jobs={"add": add}, backend=node.url, queues=["calls"], concurrency=2)
    serving = threading.Thread(target=receiver.run)
    serving.start()
    try:
        with RpcClient(backend=node.url, queue="calls", timeout=120) as client, ThreadPoolExecutor(8) as pool:
            eventually(lambda: _served(client))

            def ask(a: int) -> int:
                while True:
                    with suppress(BackendUnavailable):  # it could not be sent for five seconds
                        return int(client.call_and_wait("add", {"a": a}).data["answer"])

            answers = [pool.submit(ask, a) for a in range(2000)]
            eventually(lambda: sum(answer.done() for answer in answers) > 300)
            node.stop(number)
            node.start()
            assert [answer.result(120) for answer in answers] == [a + 1 for a in range(2000)]
    finally:
        receiver.stop()
        serving.join(PATIENCE)
    assert not serving.is_alive()
    assert set(ran) >= set(range(2000))


def _settled(node: Node, name: str) -> None:
    """A queue that RabbitMQ has on disk. It confirms messages to one that it forgets if it is killed in the
    first seconds after it was made."""
    backend = AmqpBackend(node.url)
    backend.declare(queue(name))
    backend.close()
    node.stop()
    node.start()


def _served(client: RpcClient) -> bool:
    try:
        return client.call_and_wait("add", {"a": -1}, timeout=5).data == {"answer": 0}
    except (NoReceivers, RpcTimeout):
        return False


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_rabbitmq_said_it_has_outlives_its_death(node: Node) -> None:
    backend = cast("Any", backend_from_url(node.url))
    _settled(node, "kept")
    for number in range(100):
        backend.send(queue("kept"), Message(b"%d" % number, {"id": f"id-{number}"}))
    node.stop(signal.SIGKILL)
    node.start()
    came: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        came.append(delivery.message.body)
        delivery.finish(None)
        if len(came) == 100:
            server.stop()

    server = backend.server([queue("kept")], handler)
    server.run()
    assert came == [b"%d" % number for number in range(100)]
    backend.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_lay_there_while_rabbitmq_was_killed_three_times_is_not_given_up(node: Node) -> None:
    backend, to = cast("Any", backend_from_url(node.url)), queue("deaths")
    _settled(node, to.name)
    came, go_on = list[tuple[bytes, int]](), threading.Semaphore(0)

    def handler(delivery: Delivery) -> None:
        came.append((delivery.message.body, delivery.message.deliveries))
        if delivery.message.body != b"x":
            assert go_on.acquire(timeout=240)
        delivery.finish(None)

    backend.send(to, Message(b"0", {"id": "hold-0"}))
    server = backend.server([to], handler)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        eventually(lambda: came)
        backend.send(to, Message(b"x", {"id": "x"}))
        for number in range(1, 4):
            node.stop(signal.SIGKILL)
            node.start()
            # Whoever counts x puts it behind this one.
            backend.send(to, Message(b"%d" % number, {"id": f"hold-{number}"}))
            go_on.release()
            eventually(lambda number=number: (b"%d" % number, 1) in came)
        assert [each for each in came if each[0] == b"x"] == [(b"x", 2)]
        assert backend.dead_letters(to.name) == []
    finally:
        server.stop()
        go_on.release()
        serving.join(PATIENCE)
        backend.close()
    assert not serving.is_alive()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("wrap", [lambda backend: backend, Portal], ids=["blocking", "in a loop"])
def test_what_a_durable_group_has_not_heard_outlives_a_restart(node: Node, wrap: Any) -> None:
    backend, came = cast("Any", backend_from_url(node.url)), list[bytes]()
    team = topic("news", "team", durable=True)

    def handler(delivery: Delivery) -> None:
        came.append(delivery.message.body)
        delivery.finish(None)

    first: Any = backend.server([team], handler, on_change=lambda connected: connected and first.stop())
    first.run()  # it is known from then on
    publisher = wrap(backend_from_url(node.url))
    publisher.send(topic("news"), Message(b"kept", {"id": "x"}))
    publisher.close()
    node.stop()
    node.start()
    server = backend.server([team], handler)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        eventually(lambda: came == [b"kept"])
    finally:
        server.stop()
        serving.join(PATIENCE)
        backend.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs RabbitMQ's server, and openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    node = Node(tmp_path, tls=(key, certificate))
    node.start()
    try:
        url = f"amqps://localhost:{node.tls_port}?ssl_ca_certs={certificate}"
        with Site(url) as site:
            cast("Any", site.client).declare(site.queue())
            site.serve()
            assert site.ask(b"echo:" + b"x" * 300_000).receive(PATIENCE).body == b"x" * 300_000
            portal = Portal(site.backend())
            replies = portal.request(site.queue(), request(b"echo:y"))
            assert replies.receive(PATIENCE).body == b"y"
            replies.close()
            portal.close()
        stranger = backend_from_url(f"amqps://localhost:{node.tls_port}")
        with pytest.raises(BackendUnavailable, match="CERTIFICATE"):
            stranger.send(queue("x"), Message(b"", {"id": "x", "ttl": "0.2"}))
    finally:
        node.stop()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_under_an_alarm_everybody_is_told_why_in_time(node: Node) -> None:
    """As when memory or the disk runs out: RabbitMQ takes no messages until that is over."""
    done: list[int] = []
    receiver = RpcReceiver(jobs={"add": done.append}, backend=node.url, queues=["calls"])
    serving = threading.Thread(target=receiver.run)
    serving.start()
    try:
        with RpcClient(backend=node.url, queue="calls", timeout=PATIENCE) as client:
            eventually(lambda: _is_answered(client, done))
            done.clear()
            node.control("set_vm_memory_high_watermark", "0.00001")
            submitted = client.submit("add", [1], timeout=3)
            with pytest.raises(RpcTimeout, match="takes no messages at present"):
                client.call_and_wait("add", [2], timeout=3)
            with pytest.raises(RpcTimeout, match="takes no messages at present"):
                submitted.result(PATIENCE)
            for send in (lambda: client.call("add", [3])), (lambda: client.publish("news")):
                with pytest.raises(BackendUnavailable, match="takes no messages at present"):
                    send()
            node.control("set_vm_memory_high_watermark", "0.9")
            eventually(lambda: _is_answered(client, done))
    finally:
        receiver.stop()
        serving.join(PATIENCE)
    assert not serving.is_alive()


def _is_answered(client: RpcClient, done: list[int]) -> bool:
    with suppress(BackendUnavailable, RpcTimeout, NoReceivers):  # the last: the worker has not begun
        client.call_and_wait("add", [4], timeout=2)
    return 4 in done
