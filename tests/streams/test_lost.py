"""Streams whose other end is gone, or seems to be."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any
from uuid import uuid4

import pytest

from rpc.core.streams import CREDIT, INBOX, SEND, SEQ, THROW, UPLOAD
from rpc.errors import Cancelled, RpcError, RpcTimeout, StreamBroken, WorkerLost
from rpc.transport import STREAM, Message, inbox, queue

from .conftest import Site, ended
from .handlers import PATIENCE, never, until

IDLE = 1.5
"""Seconds of the idle limit."""


@pytest.mark.parametrize("a", ["", "a"])
def test_a_reader_that_pauses_for_longer_than_the_idle_limit_misses_nothing(site: Site, a: str) -> None:
    site.serve(idle=0.3)
    stream = site.client().stream(f"{a}count", {"most": 10}, window=3)
    got = [next(stream)]
    time.sleep(1.5)  # the pause is what this is about
    assert [*got, *stream] == [*range(10)]


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.redis
def test_a_reader_that_pauses_for_70_seconds_misses_nothing(site: Site) -> None:
    site.serve()
    stream = site.client().stream("count", {"most": 100}, window=10)
    got = [next(stream) for _ in range(3)]
    time.sleep(70)
    assert [*got, *stream] == [*range(100)]


@pytest.mark.parametrize("a", ["", "a"])
def test_a_producer_that_is_killed_is_told_and_not_begun_again(abroad: Site, a: str, name: str) -> None:
    worker = abroad.spawn()
    client = abroad.client()
    first, second, third = (client.stream(f"{a}echo", {"value": 1, "name": name}) for _ in range(3))
    assert [next(each) for each in (first, second, third)] == [1, 1, 1]
    ended(worker)
    abroad.spawn()
    with pytest.raises(WorkerLost):
        next(first)
    second.close()  # does not wait for anybody
    del third
    gc.collect()
    assert len([*client.stream(f"{a}count", {"most": 5})]) == 5
    assert abroad.lines(f"{name} begins") == [f"{name} begins"] * 3


@pytest.mark.parametrize("a", ["", "a"])
def test_resume_goes_on_with_another_worker(abroad: Site, a: str) -> None:
    for _ in range(3):
        abroad.spawn(concurrency=2)
    data = {"most": 120, "deadly": [30, 77]}
    stream = abroad.client().stream(f"{a}killer", data, window=8, resume=True)
    assert [*stream] == [*range(120)]
    assert len(abroad.lines("killer begins")) == 3


def test_a_generator_that_kills_each_worker_does_not_kill_them_all(abroad: Site) -> None:
    workers = [abroad.spawn(concurrency=1) for _ in range(4)]
    data = {"most": 9, "deadly": [2], "always": True}
    stream = abroad.client().stream("killer", data, resume=True)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(WorkerLost):
        next(stream)
    # Its connection is gone a moment before the last of them is.
    until(lambda: sum(each.poll() is None for each in workers) == 1)


CONSUMER = """
import sys
from rpc import RpcClient
stream = RpcClient(backend=sys.argv[1]).stream(sys.argv[2], {"name": sys.argv[3]}, window=5)
for item in stream:
    print(item, flush=True)
    if item == 3:
        sys.stdin.read()
"""


@pytest.mark.parametrize("a", ["", "a"])
def test_what_a_consumer_that_is_killed_had_open_is_closed(abroad: Site, a: str, name: str) -> None:
    receiver = abroad.serve(idle=IDLE)
    command = [sys.executable, "-c", CONSUMER, abroad.url, f"{a}count", name]
    consumer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert consumer.stdout
        for _ in range(4):
            consumer.stdout.readline()
        assert abroad.open == 1
        consumer.kill()
        until(lambda: abroad.lines(f"{name} ends in {name}"))
        until(lambda: not len(receiver._application._streams))
    finally:
        ended(consumer)
        consumer.communicate()


@pytest.mark.parametrize("a", ["", "a"])
def test_who_opens_a_stream_and_says_nothing_loses_it(site: Site, a: str, name: str) -> None:
    site.serve(idle=0.5)
    for credit in "0", "2":
        replies, _ = opened(site, f"{a}count", {"name": name}, credit)
        until(lambda: not site.open)
        replies.close()
    assert len(site.lines(f"{name} ends")) == 1


def opened(site: Site, job: str, params: Any, credit: str, **more: str) -> tuple[Any, Message]:
    """A stream that is opened by hand: its replies, and the first of them."""
    import json

    id = uuid4().hex
    body = json.dumps({"jsonrpc": "2.0", "id": id, "method": job, "params": params}).encode()
    request = Message(body, {"id": id, "reply-to": id, CREDIT: credit, **more})
    replies = site.client().backend.request(queue("default"), request)
    first = replies.receive(30)
    assert first.headers[STREAM] == "open"
    return replies, first


def exhaust(stream: Any) -> None:
    for _ in stream:
        pass


NONSENSE: list[tuple[bytes, dict[str, str]]] = [
    (b"", {}),
    (b"\xff", {STREAM: SEND, CREDIT: "2"}),
    (b"1", {STREAM: SEND, CREDIT: "-2"}),
    (b"1", {STREAM: SEND, CREDIT: "9" * 30}),
    (b"1", {STREAM: SEND, CREDIT: "2", "credit-bytes": "many"}),
    (b"", {STREAM: THROW, CREDIT: "two"}),
    (b"[]", {STREAM: "open", CREDIT: ""}),
    (b"{}", {UPLOAD: "1", SEQ: "x"}),
    (b"{}", {UPLOAD: "1", STREAM: "items", SEQ: "0"}),
    (b"", {"ping": "1", SEQ: "nan"}),
]


def test_nonsense_in_the_inbox_of_a_worker_costs_that_message(site: Site) -> None:
    site.serve()
    client = site.client()
    stream = client.stream("count", {"most": 20}, window=2)
    assert next(stream) == 0
    replies, first = opened(site, "count", {}, "1")
    to = inbox(first.headers[INBOX])
    for body, headers in NONSENSE:
        for id in first.id, "nobody", "":
            client.backend.send(to, Message(body, {"id": id, **headers}))
    assert [*stream] == [*range(1, 20)]
    replies.close()
    until(lambda: not site.open)
    assert [*client.stream("count", {"most": 5})] == [*range(5)]


def test_a_second_stream_with_the_id_of_an_open_one_is_refused(site: Site) -> None:
    if site.kind == "amqp":
        pytest.skip("amqp has no feature by which it tells it from the same request, sent again")
    site.serve()
    client = site.client()
    stream = client.stream("count", {"most": 5})
    assert next(stream) == 0
    request = stream._pending.request
    body = request.body
    replies = client.backend.request(
        queue("default"), Message(body, {**request.headers, "reply-to": uuid4().hex})
    )
    until(lambda: STREAM not in replies.receive(30).headers)
    replies.close()
    assert [*stream] == [1, 2, 3, 4]


def test_items_beyond_a_window_of_uploads_end_it(site: Site) -> None:
    site.serve()
    replies, first = opened(site, "first_only", None, "1", **{UPLOAD: "1"})
    many = b'{"jsonrpc":"2.0","id":"","result":[%s]}' % b",".join([b"1"] * 5000)
    about = {"id": first.id, UPLOAD: "1", STREAM: "items", SEQ: "0", "size": "5000"}
    site.client().backend.send(inbox(first.headers[INBOX]), Message(many, about))
    last = replies.receive(30)
    assert STREAM not in last.headers
    assert b"credit" in last.body
    replies.close()


@pytest.mark.parametrize("a", ["", "a"])
def test_a_worker_that_is_stopped_hears_to_their_end_what_streams_say(site: Site, a: str) -> None:
    receiver = site.serve(grace=PATIENCE)
    stream, late = site.client().stream(f"{a}count", {"most": 5}), site.client("async")
    assert next(stream) == 0
    receiver.stop()
    assert list(stream) == [1, 2, 3, 4]
    with pytest.raises(RpcTimeout):  # nothing new is taken
        next(late.stream(f"{a}count", {"most": 5}, timeout=0.2))


@pytest.mark.parametrize("a", ["", "a"])
def test_a_worker_that_is_stopped_ends_its_streams(abroad: Site, a: str, name: str) -> None:
    worker = abroad.spawn()
    client = abroad.client()
    endless = client.stream(f"{a}count", {"name": name})
    assert next(endless) == 0
    worker.send_signal(signal.SIGTERM)
    with pytest.raises((WorkerLost, Cancelled)):
        exhaust(endless)
    assert worker.wait(30) == 0


def test_a_client_that_is_closed_ends_its_streams(site: Site, name: str) -> None:
    site.serve()
    client = site.another()
    stream, unused = client.stream("count", {"name": name}, window=3), client.stream("count")
    assert next(stream) == 0
    client.close()
    with pytest.raises(Cancelled):
        exhaust(stream)
    unused.close()
    until(lambda: site.lines(f"{name} ends"))
    until(lambda: not site.open)


def test_who_is_cancelled_as_it_waits_for_an_item_has_left_the_stream(site: Site, name: str) -> None:
    """As it is of async generators. Somebody may go on to hold the stream, such as the traceback."""
    site.serve(jobs={"never": never})
    client = site.client("async")

    async def read() -> None:
        stream = client.client.stream("never", {"name": name})
        waiting = asyncio.create_task(anext(stream))
        await asyncio.to_thread(until, lambda: site.lines(f"{name} begins"))
        waiting.cancel()
        await asyncio.to_thread(until, lambda: site.lines(f"{name} ends"))
        assert [item async for item in stream] == []

    client.run(read())


@pytest.mark.parametrize("how", ["sync", "async"])
def test_one_at_a_time_waits_for_an_item(site: Site, name: str, how: str) -> None:
    site.serve(jobs={"never": never})
    stream = site.client(how).stream("never", {"name": name})
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(next, stream, None) for _ in range(2)]
        (refused,) = wait(waiting, PATIENCE, FIRST_COMPLETED).done
        with pytest.raises(RuntimeError, match="another thread or task waits for the next item"):
            refused.result()
        until(lambda: site.lines(f"{name} begins"))
        site.client(how).close()
        waiting.remove(refused)
        with pytest.raises(Cancelled):
            waiting[0].result(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_stream_is_not_for_a_fork(site: Site) -> None:
    site.serve()
    stream = site.client().stream("count", {"most": 3})
    assert next(stream) == 0
    child = os.fork()
    if not child:
        code = 1
        try:
            next(stream)
        except RuntimeError:
            del stream
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert [*stream] == [1, 2]


@pytest.mark.slow
def test_a_thousand_abandoned_ones_of_every_kind_are_closed(site: Site) -> None:
    site.serve(idle=IDLE, concurrency=20)
    client = site.client()
    number = 1000 if "detached" in client.backend.features else 20
    for each in range(number):
        job = ("count", "acount", "echo", "aecho")[each % 4]
        stream = client.stream(job, window=1 if "echo" in job else 4)
        if each % 5:
            next(stream)
        if each % 5 == 4:
            stream.close()
        del stream
    gc.collect()
    until(lambda: not site.open)


def test_a_thousand_open_at_once_do_not_mix_and_need_few_threads(abroad: Site) -> None:
    client = abroad.client()
    number = 1000 if "detached" in client.backend.features else 12
    for _ in range(2):
        abroad.spawn(concurrency=8)
    echoes = [
        client.stream(("echo", "aecho")[each % 2], {"value": each, "name": f"e{each}"})
        for each in range(number)
    ]
    assert [next(each) for each in echoes] == [*range(number)]
    for turn in range(2):
        assert [each.send([turn, n]) for n, each in enumerate(echoes)] == [[turn, n] for n in range(number)]
    if number > 100:
        for _ in range(6):
            assert client.call_and_wait("threads").data <= 20
    for each in echoes:
        each.close()


@pytest.mark.parametrize("window", [10**9, 10**12])
def test_a_window_without_end_is_one_of_bytes(site: Site, name: str, window: int) -> None:
    site.serve(concurrency=2 if site.kind == "rq" else 1)  # there a stream holds a thread
    stream = site.client().stream("large", {"number": 200, "size": 100_000}, window=window)
    assert int(next(stream).rstrip(".")) == 0
    assert len([*site.client().stream("count", {"most": 30})]) == 30  # others have their turn
    assert len([*stream]) == 199


def test_the_broken_stream_of_a_caller_is_told(site: Site) -> None:
    """What is forged into the caller's replies ends that stream, and nothing else."""
    site.serve()
    client = site.client()
    stream, other = client.stream("count", {"most": 5}), client.stream("count", {"most": 5})
    assert next(stream) == next(other) == 0
    consumer = stream._consumer
    assert consumer is not None
    with pytest.raises(StreamBroken):
        consumer._hear(Message(b'{"result":[1]}', {STREAM: "items", SEQ: "7", "size": "9"}))
    for headers in {SEQ: "-1", "size": "9"}, {SEQ: "1"}, {SEQ: "1", "size": "9" * 99}:
        with pytest.raises(RpcError):
            consumer._hear(Message(b'{"result":[1]}', {STREAM: "items", **headers}))
    for body in b"", b"\xff", b'{"result":1}', b"[]":
        with pytest.raises(RpcError):
            consumer._hear(Message(body, {STREAM: "items", SEQ: "1", "size": "1"}))
    for idle in "nan", "inf", "-1", "0", "", "soon":
        with pytest.raises(RpcError):
            consumer._hear(Message(b"", {STREAM: "open", INBOX: "x", "idle": idle}))
    assert [*other] == [1, 2, 3, 4]
