"""Order keys on RabbitMQ: what `rpc.testing.conformance` does not say, as it is of partitions."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rpc import NoReceivers, QueueFull
from rpc.backends.amqp import partitions
from rpc.backends.amqp.messages import RESENT
from rpc.backends.amqp.names import PARTITIONS
from rpc.backends.amqp.order import MOST_DONE, all_of
from rpc.backends.amqp.wire import Basic, Queue
from rpc.errors import BackendUnavailable
from rpc.testing._features import letters_of
from rpc.testing._order import inversions
from rpc.testing.site import Site, eventually
from rpc.transport import HANDED_BACK, ORDER_KEY, UNKNOWN, Delivery, Message, queue
from tests.rabbit import Node, Rabbit

A: Any = {ORDER_KEY: "user-7"}
B: Any = {ORDER_KEY: "user 8"}


@pytest.fixture(params=[False, True], ids=["blocking", "in a loop"])
def site(broker: Rabbit, request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(broker.url, disrupt=broker.proxy.cut, named=broker.declare, asynchronous=request.param) as site:
        yield site


def partition(site: Site) -> str:
    names = cast("Any", site.client).servers.names
    return str(names.target(site.queue(), A[ORDER_KEY]))


def put(site: Site, name: str, body: bytes, id: str, **headers: Any) -> None:
    """A message as another sender may have put it there."""
    properties = Basic.Properties(correlation_id=id, headers={**A, **headers}, delivery_mode=2)
    senders = cast("Any", site.client).senders
    assert senders.do(lambda on: on.confirmed(2, name, properties, body)) is None


def ago(seconds: float) -> str:
    return str(round((time.time() - seconds) * 1000))


def test_a_queue_that_was_never_served_takes_none(broker: Rabbit) -> None:
    with Site(broker.url) as site:
        for _ in range(2):
            with pytest.raises(NoReceivers):
                site.tell(b"x", **A)
        with pytest.raises(NoReceivers):
            site.ask(b"x", **A).receive(site.patience)


def test_workers_that_run_are_told_of_the_first_one(site: Site) -> None:
    site.serve()
    assert site.ask(b"echo:x").receive(site.patience).body == b"x"
    assert site.ask(b"echo:y", **A).receive(site.patience).body == b"y"


def test_partitions_that_were_deleted_are_made_again(site: Site) -> None:
    site.tell(b"log:1", **A)
    other = cast("Any", site.backend())
    other.delete(site.queue())
    with pytest.raises(NoReceivers):
        site.tell(b"log:2", **A)
    other.declare(site.queue())
    site.tell(b"log:3", **A)
    assert other.queue_info(site.name()).waiting == 1
    other.delete(site.queue())
    other.declare(site.queue())
    with pytest.raises(NoReceivers):
        site.ask(b"log:4", **A).receive(site.patience)
    site.ask(b"log:5", **A)
    site.serve()
    eventually(lambda: site.log.lines() == ["toy 5"])


def test_senders_that_are_the_first_at_the_same_time_make_them_once(site: Site) -> None:
    def tell(share: int) -> None:
        for number in range(10):
            site.tell(b"log:%d %d" % (share, number), **{ORDER_KEY: str(share)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, range(8)))
    assert cast("Any", site.client).queue_info(site.name()).waiting == 80
    site.serve()
    lines = eventually(lambda: len(site.log.lines()) == 80 and site.log.lines())
    assert inversions([line.removeprefix("toy ") for line in lines]) == 0


def test_nothing_is_left_of_a_queue_that_is_deleted(site: Site) -> None:
    site.tell(b"x", **A)
    backend = cast("Any", site.client)
    backend.delete(site.queue())
    names = all_of(backend.servers.names, site.name())
    assert len(names) == PARTITIONS + 2
    for name in names:
        with pytest.raises(BackendUnavailable, match="404"):
            backend.senders.do(lambda on, name=name: on.ask(3, Basic.Get(queue=name), Basic.GetOk), 0)


def test_they_count_in_a_bounded_queue(site: Site) -> None:
    backend = site.backend(max_length=2)
    messages = [Message(b"x", {"id": f"m{number}", **A}) for number in range(3)]
    backend.send(site.queue(), messages[0].replace(**{ORDER_KEY: None}))
    backend.send(site.queue(), messages[1])
    with pytest.raises(QueueFull):
        backend.send(site.queue(), messages[2])


def test_one_that_comes_too_late_is_for_the_worker_to_refuse(site: Site) -> None:
    left: list[str] = []
    site.tell(b"x", ttl="0.05", **A)
    site.tell(b"x", ttl="60", **A)
    time.sleep(0.1)

    def note(delivery: Delivery) -> None:
        left.append(delivery.message.headers["ttl"])

    site.serve(note)
    eventually(lambda: len(left) == 2)
    assert left[0] == "0.000"
    assert 0 < float(left[1]) < 60


def test_a_busy_worker_leaves_them_to_an_idle_one(site: Site) -> None:
    busy = site.toy("busy")
    site.serve(busy)
    site.ask(b"hold:x", **A)
    eventually(lambda: site.log.lines() == ["holding x"])
    for number in range(20):
        site.tell(b"log:%d" % number, **{ORDER_KEY: f"other {number}"})
    site.tell(b"log:behind", **A)
    site.serve(site.toy("idle"))
    own = partition(site)
    names = cast("Any", site.client).servers.names
    free = [n for n in range(20) if names.target(site.queue(), f"other {n}") != own]
    eventually(lambda: {f"idle {number}" for number in free} <= {*site.log.lines()})
    assert "behind" not in "".join(site.log.lines())
    busy.released.set()
    eventually(lambda: len(site.log.lines()) == 23)


def test_a_handler_that_is_slow_once_lets_no_partition_go_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a busy machine has them change hands all the time, which takes longer than the work."""
    monkeypatch.setattr(partitions, "PAUSE", 1000.0)
    closed: list[int] = []
    connection: Any = SimpleNamespace(
        listeners={},
        say=lambda channel, *_: closed.append(channel),
        wait_for=lambda answer: None,
        closed=lambda channel: None,
    )
    mine = partitions.Partitions(connection, cast("Any", SimpleNamespace(names=None)), [])
    mine._looked = -math.inf
    for channel, came in ((1, time.monotonic()), (2, -math.inf)):
        mine._on[channel] = each = partitions.Partition(queue("default"), f"{channel}", channel)
        each.is_open, each.came = True, came
    mine.release()
    assert closed == [2]
    mine._on[2].is_open = True
    mine.release()
    assert closed == [2]  # it was let go just now


def test_all_workers_get_some_though_they_are_fast(site: Site) -> None:
    for number in range(600):
        site.tell(b"%d" % number, **{ORDER_KEY: str(number % 50)})
    did: dict[str, list[str]] = {"one": [], "two": [], "three": []}
    lock, all_of_them = threading.Lock(), list[str]()

    def serve(name: str) -> None:
        def note(delivery: Delivery) -> None:
            line = f"{delivery.message.headers[ORDER_KEY]} {int(delivery.message.body) // 50}"
            with lock:
                did[name].append(line)
                all_of_them.append(line)
            if len(all_of_them) < 600 and not all(did.values()):
                site.tell(b"%d" % 10_000, **{ORDER_KEY: "more"})  # until each has got something

        site.serve(note)

    for name in did:
        serve(name)
    eventually(lambda: all(did.values()))
    lines = eventually(
        lambda: len([each for each in all_of_them if not each.startswith("more")]) == 600 and all_of_them
    )
    assert inversions([each for each in lines if not each.startswith("more")]) == 0


def test_the_next_attempt_outlives_the_worker_that_waits_for_it(site: Site) -> None:
    site.tell(b"again:2", **A)
    site.tell(b"log:next", **A)
    worker = site.spawn()
    eventually(site.log.lines)
    worker.kill()
    site.serve()
    eventually(lambda: "toy next" in site.log.lines())
    lines = site.log.lines()
    assert lines[-2:] == ["attempt 3", "toy next"]
    assert sorted(lines) == lines
    assert lines[0] == "attempt 1"


@pytest.mark.parametrize("end", ["stop", "hand_back", "disrupt"])
def test_what_waits_to_be_tried_again_is_left_to_others(site: Site, end: str) -> None:
    at = time.monotonic()

    def again(delivery: Delivery) -> None:
        attempt, message = delivery.message.attempt, delivery.message
        if attempt == 1:
            delivery.postpone(1, message.replace(attempt=2))
        site.log.write(f"{attempt} {message.deliveries} after {time.monotonic() - at > 1}")

    server, thread = site.serve(again)
    site.tell(b"x", **A)
    eventually(site.log.lines)
    if end == "disrupt":
        assert site.disrupt
        site.disrupt()
    else:
        getattr(server, end)()
        thread.join(site.patience)
        assert not thread.is_alive()
        site.serve(again)
    eventually(lambda: len(site.log.lines()) == 2)
    assert site.log.lines()[1] == "2 1 after True"


def test_what_a_worker_gives_back_keeps_its_place_and_says_so(site: Site) -> None:
    toy = site.toy()
    server, thread = site.serve(toy)
    site.tell(b"hold:x", **A)
    site.tell(b"next", **A)
    eventually(lambda: site.log.lines() == ["holding x"])
    server.hand_back()
    came: list[tuple[bytes, bool]] = []

    def note(delivery: Delivery) -> None:
        came.append((delivery.message.body, HANDED_BACK in delivery.message.headers))

    site.serve(note)
    eventually(lambda: len(came) == 2)
    assert came == [(b"hold:x", True), (b"next", False)]
    toy.released.set()
    thread.join(site.patience)


def test_what_a_worker_does_not_know_is_passed_on_in_its_place(site: Site) -> None:
    def old(delivery: Delivery) -> None:
        tried = float(delivery.message.headers.get(UNKNOWN, "0"))
        site.log.write(f"old {delivery.message.body.decode()}")
        delivery.postpone(0.05, delivery.message.replace(**{UNKNOWN: f"{tried + 0.05:g}"}))

    def new(delivery: Delivery) -> None:
        site.log.write(f"new {delivery.message.body.decode()}")

    site.serve(old)
    site.tell(b"1", **A)
    site.tell(b"2", **A)
    eventually(lambda: len(site.log.lines()) > 2)
    site.serve(new)
    eventually(lambda: "new 2" in site.log.lines())
    lines = site.log.lines()
    assert [line for line in lines if line.startswith("new")] == ["new 1", "new 2"]
    assert lines.index("new 1") < lines.index("old 2") if "old 2" in lines else True


def test_what_was_sent_again_is_not_done_after_what_follows(site: Site) -> None:
    server, thread = site.serve(site.toy("one"))
    site.tell(b"log:1", **A, id="first")
    site.tell(b"log:2", **A)
    eventually(lambda: len(site.log.lines()) == 2)
    put(site, partition(site), b"log:1", "first", **{RESENT: ago(5)})
    site.tell(b"log:3", **A)
    eventually(lambda: len(site.log.lines()) == 3)
    server.stop()
    thread.join(site.patience)
    put(site, partition(site), b"log:1", "first", **{RESENT: ago(5)})
    put(site, partition(site), b"log:new", "new", **{RESENT: ago(5)})
    site.serve(site.toy("two"))
    eventually(lambda: "two new" in site.log.lines())
    assert site.log.lines() == ["one 1", "one 2", "one 3", "two new"]
    assert cast("Any", site.client).dead_letters(site.name()) == []


def test_it_is_given_up_where_nobody_can_know_whether_it_was_done(site: Site) -> None:
    site.tell(b"log:1", **A)
    backend = cast("Any", site.client)
    done = backend.servers.names.done(site.name())

    def fill(on: Any) -> None:
        for number in range(MOST_DONE):
            on.publish(2, done, Basic.Properties(headers={"timestamp_in_ms": int(ago(1))}), b"%d" % number)
        on.ask(2, Basic.Qos(), Basic.QosOk)

    backend.senders.do(fill)
    put(site, partition(site), b"log:x", "x", **{RESENT: ago(5)})
    put(site, partition(site), b"log:y", "y", **{RESENT: ago(0)})
    site.serve()
    eventually(lambda: site.log.lines() == ["toy 1", "toy y"])
    (letter,) = letters_of(site, 1)
    assert (letter.id, "it may have been done" in letter.why) == ("x", True)


@pytest.mark.parametrize("junk", [[], {"x": 1}, {"rpc-due": "soon", "rpc-given": "x"}, {"delay": "1e99"}])
def test_what_others_put_into_partitions_and_records_costs_that_alone(site: Site, junk: Any) -> None:
    site.tell(b"again:1", **A, id="m")
    backend = cast("Any", site.client)
    names, own = backend.servers.names, partition(site)
    record = names.mark("again", f"{own}m")
    headers = junk if isinstance(junk, dict) else {}

    def forge(on: Any) -> None:
        declare = backend.servers.queue(record, 60)
        declare.arguments["x-max-length"] = 1
        on.ask(3, declare, Queue.DeclareOk)
        on.confirmed(2, record, Basic.Properties(headers={**headers, **A}, correlation_id="m"), b"log:forged")

    backend.senders.do(forge)
    for name in all_of(names, site.name()):
        backend.senders.do(
            lambda on, name=name: on.confirmed(2, name, Basic.Properties(headers=headers), b"")
        )
    worker = site.spawn()
    eventually(site.log.lines)
    worker.kill()
    site.serve()
    site.tell(b"log:last", **A)
    eventually(lambda: "toy last" in site.log.lines())


@pytest.mark.slow
def test_order_is_kept_while_connections_are_cut(site: Site) -> None:
    """Of callers, who send again, and of two workers."""
    keys, each = 16, 25
    lock, done = threading.Lock(), list[str]()

    def note(delivery: Delivery) -> Message:
        with lock:
            done.append(delivery.message.body.decode())
        return Message(b"", {"id": delivery.message.id})

    for _ in range(2):
        site.serve(note, threads=2)

    def call(key: int) -> None:
        for number in range(each):
            site.ask(b"%d %d" % (key, number), ttl=None, **{ORDER_KEY: str(key)}).receive(site.patience)

    with ThreadPoolExecutor(keys) as pool:
        calls = [pool.submit(call, key) for key in range(keys)]
        for share in range(1, 5):
            eventually(lambda share=share: len({*done}) > share * keys * each // 6)
            assert site.disrupt
            site.disrupt()
        failed = [error for each in calls if (error := each.exception())]
    assert failed == []
    assert len({*done}) == keys * each
    assert inversions(done) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP], ids=str)
def test_order_is_kept_while_rabbitmq_is_away(tmp_path: Path, sent: signal.Signals) -> None:
    keys, each = 50, 20
    node = Node(tmp_path)
    node.start()
    try:
        with Site(f"{node.url}?heartbeat=4") as site:
            cast("Any", site.client).declare(site.queue())
            site.tell(b"log:first 0", **{ORDER_KEY: "first"})
            node.stop()  # what was made just now may be forgotten with its death
            node.start()

            def tell(share: int) -> None:
                for number in range(each):
                    for key in range(share, keys, 8):
                        site.tell(b"log:%d %d" % (key, number), **{ORDER_KEY: f"key {key}"})

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(tell, range(8)))
            for _ in range(4):
                site.spawn()
            eventually(lambda: len(site.log.lines()) > keys * each // 4, within=10 * site.patience)
            if sent == signal.SIGSTOP:
                node.send_signal(signal.SIGSTOP)
                time.sleep(10)  # longer than its connections last
                node.send_signal(signal.SIGCONT)
            else:
                node.stop(sent)
                node.start()

            def lines() -> list[str]:
                return [line.removeprefix("toy ") for line in site.log.lines()]

            eventually(lambda: len({*lines()}) == keys * each + 1, within=10 * site.patience)
            assert inversions(lines()) == 0
    finally:
        node.stop(signal.SIGKILL)
