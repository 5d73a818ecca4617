"""A client and a receiver, each in its own thread, with memory between them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Barrier, Event, Thread
from types import ModuleType
from uuid import uuid4

import pytest

from rpc import (
    BackendUnavailable,
    InvalidParams,
    MethodNotFound,
    RemoteError,
    RpcClient,
    RpcError,
    RpcReceiver,
    RpcTimeout,
    SerializationError,
)
from rpc.backends.memory import MemoryBackend
from rpc.backends.memory.hub import MemoryDelivery, MemoryReplies
from rpc.settings import Settings
from rpc.testing.site import eventually
from rpc.transport import Message, queue

LONG = 30.0
"""Seconds: far longer than anything here takes."""
NOBODY = "no worker serves queue 'default'"


class Site:
    """Receivers in threads, and clients, on a hub of their own. They end with the test."""

    def __init__(self, stack):
        self.url, self._stack = f"memory://{uuid4().hex}", stack

    def serve(self, jobs=None, **options):
        receiver = RpcReceiver(jobs=jobs, **{"backend": self.url, **options})
        self._stack.callback(self.started(receiver))

    def started(self, receiver):
        thread = Thread(target=receiver.start, daemon=True)
        thread.start()

        def end():
            receiver.stop()
            thread.join(LONG)
            assert not thread.is_alive()

        return end

    def client(self, **options):
        return self._stack.enter_context(RpcClient(**{"backend": self.url, "timeout": LONG, **options}))

    def marks(self):
        """What the job `mark` was called with while nobody served it, when somebody does."""
        marks = []
        self.serve({"mark": marks.append})
        self.client(queue="low").call_and_wait("mark", ["last"])
        return marks


@pytest.fixture
def site():
    with ExitStack() as stack:
        yield Site(stack)


def until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def add(request):
    request.respond({"answer": request.data["a"] + request.data["b"]})


def fail():
    raise KeyError("a")


def double(number: int):
    return number * 2


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_settings_module_is_all_that_both_sides_need(site, codec):
    settings = ModuleType("shop")
    settings.RPC_JOB_MAPPING, settings.RPC_BACKEND, settings.RPC_CODEC = {"add": add}, site.url, codec
    site.serve(settings=settings, backend=None)

    response = site.client(settings=settings, backend=None).call_and_wait("add", {"a": 1, "b": 1})

    assert response.data == {"answer": 2}


def test_a_receiver_does_as_its_settings_say(site, monkeypatch):
    settings, forbidden = ModuleType("shop"), []
    settings.RPC_JOB_MAPPING, settings.RPC_BACKEND, settings.RPC_ACCEPT = {"fail": fail}, site.url, ["json"]
    settings.RPC_SEND_TRACEBACKS, settings.RPC_DELIVERY = True, "at-most-once"
    monkeypatch.setattr(MemoryDelivery, "forbid_redelivery", lambda delivery: forbidden.append(delivery))
    site.serve(settings=settings, backend=None)

    with pytest.raises(RemoteError) as raised:
        site.client().call_and_wait("fail")
    assert "in fail" in raised.value.traceback
    assert len(forbidden) == 1
    with pytest.raises(SerializationError, match="'application/msgpack' is not accepted"):
        site.client(codec="msgpack").call_and_wait("fail")


def test_the_response_has_the_ids_that_the_handler_saw(site):
    site.serve({"ids": lambda request: [request.id, request.response_key]})
    response = site.client().call_and_wait("ids")
    assert [response.id, response.response_key] == response.data


def test_each_of_many_threads_gets_its_own_answers(site):
    site.serve({"double": double}, concurrency=4)
    client = site.client()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda n: client.call_and_wait("double", [n]).data, range(200))
    assert list(answers) == list(range(0, 400, 2))


@pytest.mark.parametrize(("name", "data", "error", "text"), [
    ("fail", None, RemoteError, r"^KeyError: 'a'$"), ("nosuch", None, MethodNotFound, "'nosuch'"),
    ("odd", None, SerializationError, "result cannot be encoded"), ("double", [], InvalidParams, "'number'"),
    ("double", ["2"], InvalidParams, r"^number: Expected `int`, got `str`$"),
])  # fmt: skip
def test_each_way_to_fail_has_its_own_error(site, name, data, error, text):
    site.serve({"fail": fail, "odd": lambda: print, "double": double})
    with pytest.raises(error, match=text):
        site.client().call_and_wait(name, data)
    assert type(site.client().submit(name, data).exception(LONG)) is error


def test_only_the_first_response_counts_and_without_one_it_is_null(site):
    returned = SimpleQueue()
    site.serve(
        {
            "twice": lambda request: returned.put([request.respond(1), request.respond(2)]),
            "never": lambda: None,
        }
    )
    assert site.client().call_and_wait("twice").data == 1
    assert returned.get(timeout=LONG) == [True, False]
    assert site.client().call_and_wait("never").data is None


def test_a_call_that_is_not_waited_for_is_done_once_and_cannot_be_answered(site):
    seen = SimpleQueue()
    id = site.client().call("note", {"a": 1})
    site.serve({"note": lambda request: seen.put([request.id, request.response_key, request.respond(1)])})
    site.client().call_and_wait("note")

    assert seen.get(timeout=LONG) == [id, None, False]
    assert seen.get(timeout=LONG)[0] != id
    assert seen.empty()


@pytest.mark.parametrize("timeout", [0.0, 0.02, 1.2])
@pytest.mark.parametrize("call", [
    lambda site, timeout: site.client().call_and_wait("add", timeout=timeout),
    lambda site, timeout: site.client(timeout=timeout).call_and_wait("add"),
    lambda site, timeout: site.client().submit("add", timeout=timeout).result(LONG),
], ids=["call", "client", "submit"])  # fmt: skip
def test_a_call_that_nobody_answers_ends_at_its_timeout(site, call, timeout):
    started = time.monotonic()
    with pytest.raises(RpcTimeout, match=f"^'add' was not answered within {timeout:g} s: {NOBODY}$"):
        call(site, timeout)
    assert timeout <= time.monotonic() - started < timeout + LONG


@pytest.mark.parametrize("ask", [
    lambda client: client.call_and_wait("add", timeout=0.05),
    lambda client: client.submit("add", timeout=0.05).result(LONG),
], ids=["call", "submit"])  # fmt: skip
def test_a_reason_that_cannot_be_had_does_not_replace_the_timeout(site, monkeypatch, ask):
    def is_served(backend, queue):
        asked.append(queue)
        if len(asked) == 1:
            raise BackendUnavailable("gone")
        end.wait(LONG)
        return False

    asked, end = [], Event()
    monkeypatch.setattr(MemoryBackend, "is_served", is_served)
    for _ in "unavailable", "slow":
        with pytest.raises(RpcTimeout, match=r"^'add' was not answered within 0.05 s$"):
            ask(site.client())
    end.set()
    assert asked == ["default", "default"]


def test_callers_that_are_late_together_ask_for_the_reason_once(site, monkeypatch):
    client, asked = site.client(), []
    monkeypatch.setattr(MemoryBackend, "is_served", lambda backend, queue: asked.append(queue))
    reasons = {client.reason(queue(name)) for name in ("default", "second") for _ in range(50)}
    assert {reason.result(LONG) for reason in reasons} == {NOBODY, NOBODY.replace("default", "second")}
    assert sorted(asked) == ["default", "second"]


def test_what_has_expired_is_not_done_by_a_worker_that_comes_later(site):
    client = site.client()
    with pytest.raises(RpcTimeout):
        client.call_and_wait("mark", ["timed out"], timeout=0.01)
    client.call("mark", ["expired"], ttl=0)
    client.call("mark", ["in time"], ttl=LONG)
    assert site.marks() == ["in time", "last"]


@pytest.mark.parametrize("way", ["call", "call_and_wait", "submit"])
@pytest.mark.parametrize(("name", "data", "error"), [
    ("mark", {"a": {print}}, SerializationError), ("mark", "text", SerializationError),
    ("mark", ["x" * 1000], SerializationError), ("../mark", None, ValueError),
], ids=["set of functions", "text", "large", "name"])  # fmt: skip
@pytest.mark.parametrize("limits", [(1000, None), (None, 1000)], ids=["limited client", "limited backend"])
def test_what_cannot_be_sent_is_refused_before_anything_is(site, way, name, data, error, limits):
    backend = MemoryBackend(site.url)
    max_message_bytes, backend.max_message = limits
    client = site.client(backend=backend, max_message_bytes=max_message_bytes)
    with pytest.raises(error):
        getattr(client, way)(name, data)
    assert site.marks() == ["last"]


def test_a_result_that_is_too_large_for_the_backend_is_an_error(site):
    backend = MemoryBackend(site.url)
    backend.max_message = 1000
    site.serve({"large": lambda: "x" * 1000}, backend=backend)
    with pytest.raises(SerializationError, match="more than 1000"):
        site.client().call_and_wait("large")


def test_a_worker_serves_on_after_poison(site):
    for body in b"", b"[" * 100_000, b'{"method":"fail"}':
        MemoryBackend(site.url).send(queue("default"), Message(body, {"deliveries": "many"}))
    site.serve({"fail": fail, "double": double})
    assert site.client().call_and_wait("double", [1]).data == 2


def test_queues_are_served_in_the_order_of_their_priority(site):
    for name in "low", "default", "high", "other":
        site.client().call("mark", [name], queue=name)
    assert site.marks() == ["high", "default", "low", "last"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_jobs_run_at_a_time(site, concurrency):
    together, threads = Barrier(concurrency), set()

    def meet():
        threads.add(threading.get_ident())
        together.wait(LONG)

    site.serve({"meet": meet}, concurrency=concurrency)
    client = site.client()
    for future in [client.submit("meet") for _ in range(30)]:
        future.result(LONG)
    assert len(threads) == concurrency


def test_coroutines_share_a_loop_that_a_blocking_handler_does_not_block(site):
    released, woken, loops = Event(), asyncio.Event(), []

    async def sleep():
        loops.append(asyncio.get_running_loop())
        return await woken.wait()

    async def wake():
        loops.append(asyncio.get_running_loop())
        woken.set()

    site.serve({"block": lambda: released.wait(LONG), "sleep": sleep, "wake": wake}, concurrency=3)
    client = site.client()
    blocked, slept = client.submit("block"), client.submit("sleep")
    until(lambda: loops)
    client.call_and_wait("wake")

    assert slept.result(LONG).data is True
    assert loops[0] is loops[1]
    assert not blocked.done()
    released.set()
    assert blocked.result(LONG).data is True


@pytest.mark.parametrize("kind", [KeyError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_coroutine_raises_the_next_one_runs(site, kind):
    async def raise_it():
        raise kind("cancelled")

    async def ok():
        return "ok"

    site.serve({"raise": raise_it, "ok": ok}, concurrency=2)
    with pytest.raises(RpcError, match="cancelled"):
        site.client().call_and_wait("raise", timeout=2)
    assert site.client().call_and_wait("ok", timeout=2).data == "ok"


def test_a_stopped_receiver_leaves_no_thread_and_no_loop_and_may_start_again(site):
    async def loop():
        loops.append(asyncio.get_running_loop())

    loops, threads = [], set(threading.enumerate())
    receiver = RpcReceiver(jobs={"loop": loop}, backend=site.url, concurrency=3)
    for _ in range(2):
        end = site.started(receiver)
        site.client().call_and_wait("loop")
        end()

        until(lambda: threads >= set(threading.enumerate()))
        assert loops[-1].is_closed()
    assert len(set(loops)) == 2


def test_a_task_that_a_coroutine_leaves_behind_is_cancelled_with_the_loop(site):
    async def leave():
        tasks.append(asyncio.create_task(asyncio.sleep(LONG)))

    tasks = []
    end = site.started(RpcReceiver(jobs={"leave": leave}, backend=site.url))
    site.client().call_and_wait("leave")
    end()
    assert tasks[0].cancelled()


@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_handler_sees_when_its_caller_stops_waiting(site, timeout):
    site.serve({"deadline": lambda request: request.deadline})
    before = time.monotonic()
    deadline = site.client().call_and_wait("deadline", timeout=timeout).data
    assert deadline is None if timeout is None else before < deadline <= time.monotonic() + timeout


@pytest.mark.parametrize("colour", ["function", "coroutine"])
@pytest.mark.parametrize(("timeout", "at_most"), [(None, LONG), (60, LONG), (1, 1)])
def test_a_nested_call_ends_before_the_call_that_it_serves(site, colour, timeout, at_most):
    client = site.client()

    def outer(request):
        return [request.deadline, client.call_and_wait("inner", timeout=timeout).data]

    async def outer_coroutine(request):
        return await asyncio.to_thread(outer, request)

    jobs = {"outer": outer if colour == "function" else outer_coroutine}
    site.serve(jobs | {"inner": lambda request: request.deadline}, concurrency=2)

    ends, nested_ends = client.call_and_wait("outer").data

    assert nested_ends < ends
    assert nested_ends <= time.monotonic() + at_most


def test_a_nested_call_on_the_only_slot_fails_before_its_callers_time_is_up(site):
    client = site.client()
    site.serve({"outer": lambda: client.call_and_wait("inner").data, "inner": lambda: 1}, concurrency=1)
    with pytest.raises(RpcTimeout, match="'inner' was not answered"):
        client.call_and_wait("outer", timeout=2)


def test_a_submitted_call_is_a_real_future(site):
    done = SimpleQueue()
    site.serve({"double": double})
    client = site.client()

    futures = [client.submit("double", [n]) for n in range(20)]
    futures[0].add_done_callback(done.put)

    completed = concurrent.futures.as_completed(futures, LONG)
    assert {future.result().data for future in completed} == set(range(0, 40, 2))
    assert done.get(timeout=LONG) is futures[0]
    assert all(future.done() and not future.cancel() for future in futures)


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_a_cancelled_call_is_withdrawn_from_its_queue(site, way):
    client = site.client()
    futures = [client.submit("mark", ["withdrawn"]) for _ in range(3)]
    eventually(lambda: sum(map(len, client.backend.hub.waiting.values())) == 3)
    for _ in range(2):
        assert way == "close" or all([future.cancel() for future in futures])
        assert way == "cancel" or client.close() is None
    eventually(lambda: not any(client.backend.hub.waiting.values()))

    assert site.marks() == ["last"]
    assert concurrent.futures.wait(futures, LONG).not_done == set()
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result()


@pytest.mark.parametrize("way", ["cancel", "close", "interrupt"])
@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_a_running_handler_learns_that_its_caller_left(site, colour, way, monkeypatch):
    started, told = Event(), Event()

    def function(request):
        started.set()
        until(lambda: request.cancelled)
        told.set()

    async def coroutine():
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    def interrupted(replies, timeout):
        assert started.wait(LONG)
        raise KeyboardInterrupt

    site.serve({"work": function if colour == "function" else coroutine})
    client = site.client()
    if way == "interrupt":
        monkeypatch.setattr(MemoryReplies, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.call_and_wait("work")
    else:
        future = client.submit("work")
        assert started.wait(LONG)
        assert future.cancel() if way == "cancel" else client.close() is None
        assert future.cancelled()
    assert told.wait(LONG)


def test_a_caller_that_is_interrupted_withdraws_its_job(site, monkeypatch):
    def interrupted(replies, timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemoryReplies, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            site.client().call_and_wait("mark", ["withdrawn"])
    assert site.marks() == ["last"]


def test_a_backend_that_fails_at_once_is_not_asked_over_and_over(site, monkeypatch):
    def unavailable(replies, timeout):
        asked.append(timeout)
        raise BackendUnavailable("down")

    asked = []
    monkeypatch.setattr(MemoryReplies, "receive", unavailable)
    with pytest.raises((BackendUnavailable, RpcTimeout)):
        site.client().submit("add", timeout=1.2).result(LONG)
    assert len(asked) < 100


@pytest.mark.parametrize(
    ("backend", "times"), [("memory://", 1), (MemoryBackend(), 0)], ids=["URL", "instance"]
)
def test_a_client_closes_the_backend_that_it_made_and_no_other(monkeypatch, backend, times):
    closed = []
    monkeypatch.setattr(MemoryBackend, "close", lambda backend: closed.append(backend))
    with RpcClient(backend=backend) as client:
        assert closed == []
    assert closed == [client.backend] * times


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


SIGNALLED = """
import os, signal, threading, time
import rpc

count = 0
def work():
    global count
    count += 1
    for _ in range({signals}):
        os.kill(os.getpid(), signal.{name})
    time.sleep({work})
    return "finished"

client = rpc.RpcClient(backend="memory://")
waiting = threading.Thread(target=lambda: print(client.call_and_wait("work").data), daemon=True)
waiting.start()
while not any(client.backend.hub.waiting.values()):
    time.sleep(0.001)
client.call("work")
before = signal.getsignal(signal.SIGINT)
rpc.RpcReceiver(jobs={{"work": work}}, backend="memory://", grace={grace}).start()
waiting.join()
print(count, signal.getsignal(signal.SIGINT) is before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("signals", "work", "grace", "killed", "prints"), [
    (1, 0.1, 30, False, "finished\n1 True\n"), (1, 60, 0.1, False, ""), (2, 60, 30, True, ""),
], ids=["what runs is finished", "grace is over", "the second one ends at once"])  # fmt: skip
def test_a_signal_stops_a_receiver(name, signals, work, grace, killed, prints):
    done = run(SIGNALLED.format(name=name, signals=signals, work=work, grace=grace))
    assert (done.returncode, done.stdout) == (-signal.Signals[name] if killed else 0, prints), done.stderr


def test_a_forked_child_has_an_empty_hub_whatever_threads_of_its_parent_did_at_the_fork():
    done = run("""
import os, signal, sys, threading

tried, forked = threading.Event(), threading.Event()

def hold():
    is_held = hub.lock.acquire(blocking=False)
    tried.set()
    forked.wait()
    if is_held:
        hub.lock.release()

def before():
    threading.Thread(target=hold).start()
    tried.wait()

os.register_at_fork(before=before)  # the last thing that is done before a fork, as it is registered first

import rpc
from rpc.backends.memory.hubs import HUBS

client = rpc.RpcClient(backend="memory://", timeout=0.1)
client.call("add")
(hub,) = HUBS.values()
print(client.backend.queue_info("default").waiting, flush=True)
if os.fork() == 0:
    signal.alarm(20)
    print(client.backend.queue_info("default").waiting)
    try:
        client.call_and_wait("add")
    except rpc.RpcTimeout as error:
        print(error, flush=True)
    os._exit(0)
forked.set()
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
""")
    told = "'add' was not answered within 0.1 s: no worker serves queue 'default'"
    assert (done.returncode, done.stdout) == (0, f"1\n0\n{told}\n"), done.stderr


async def serve_with_tokens_for(*patterns):
    settings = Settings(module="shop", tokens=dict.fromkeys(patterns, "secret"))
    async with RpcReceiver(jobs={"add": lambda a: a}, backend="memory://", settings=settings):
        pass


def test_a_token_for_no_job_is_told_at_the_start_and_one_for_some_is_not(caplog):
    asyncio.run(serve_with_tokens_for("add", "a*", "pay.*"))
    (told,) = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
    assert told == "shop: RPC_TOKENS['pay.*'] fits no job of this worker: there is add"


def test_no_codec_of_a_connection_is_imported_when_it_is_made():
    """A forked child would wait for a thread of its parent that imported it, which it does not have."""
    done = run("import sys; from rpc import RpcClient; print('encodings.idna' in sys.modules)")
    assert done.stdout == "True\n", done.stderr


def test_a_client_that_has_submitted_may_submit_after_a_fork():
    done = run("""
import os, threading
import rpc

client = rpc.RpcClient(backend="memory://", timeout=5)

def submit():
    receiver = rpc.RpcReceiver(jobs={"add": lambda a, b: a + b}, backend="memory://")
    thread = threading.Thread(target=receiver.start)
    thread.start()
    try:
        print(client.submit("add", [1, 1]).result(5).data, flush=True)
    finally:
        receiver.stop()
        thread.join()

submit()
if os.fork() == 0:
    submit()
    os._exit(0)
os.wait()
""")
    assert done.stdout == "2\n2\n", done.stderr
