"""Two applications with the same names of jobs, queues and events share a broker: neither meets what is the
other's, and all that they leave there begins with their prefixes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from rpc import (
    AsyncRpcClient,
    Request,
    RpcClient,
    RpcReceiver,
    SettingsError,
    backends,
    every,
    expose,
    job,
    on,
)
from rpc.backends import backend_from_url
from rpc.settings import Settings
from rpc.testing.site import PATIENCE, eventually
from rpc.transport import inbox, topic

BACKENDS = Path(backends.__file__).parent
SHOP, BANK, CONCURRENCY = "shop", "bank", 4
OURS = re.compile(r"(shop|bank)(:|$)")
ON_RQ = re.compile(
    r"rq:(queue|wip|finished|failed|scheduled|workers):(shop|bank)\.[\w.]+|rq:worker:(shop|bank)-\w+(:executions)?"
    r"|rq:(queues|workers|(job|results|execution|executions):.+)"
)
"""Where rq looks for what is ours; it knows jobs by their ids, wherever they are."""


class Application:
    """One that has everything. It writes down what happens to it."""

    name = "desk"

    def __init__(self, url: str, prefix: str, stack: ExitStack) -> None:
        self.prefix, self.url = prefix, f"{url}{'&' if '?' in url else '?'}prefix={prefix}"
        self.happened: list[Any] = []
        self.failed = ""
        self.go, self.cancelled, begun = threading.Event(), threading.Event(), threading.Event()
        self.client = stack.enter_context(RpcClient(backend=self.url, timeout=PATIENCE))
        settings = Settings(unknown_for=0.0)
        self.receiver = RpcReceiver(
            services=[self], backend=self.url, concurrency=CONCURRENCY, settings=settings
        )
        self.receiver.hook("on_connect")(begun.set)
        self._thread = threading.Thread(target=self.receiver.run)
        self._thread.start()
        stack.callback(self._end)
        assert begun.wait(PATIENCE)

    def _end(self) -> None:
        self.receiver.stop()
        self.go.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    @expose
    def who(self, padding: str = "") -> str:
        return self.prefix

    @expose
    @job(retries=1, backoff=0.01)
    def again(self, request: Request) -> str:
        if request.attempt == 1:
            raise ConnectionError("the first time")
        return self.prefix

    @expose
    @job(delivery="at-most-once")
    def once(self) -> str:
        self.happened.append("once")
        self.go.wait(PATIENCE)
        return self.prefix

    @expose
    def fail(self) -> None:
        raise ValueError(self.prefix)

    @expose
    def note(self, text: str) -> None:
        self.happened.append(text)

    @expose
    def wait(self, request: Request) -> None:
        self.happened.append("waits")
        eventually(lambda: request.cancelled or self.go.is_set())
        if request.cancelled:
            self.cancelled.set()

    @on("order.*")
    def alone(self, data: Any) -> None:
        self.happened.append(f"alone {data['of']}")

    @on("order.*", group="team")
    def team(self, data: Any) -> None:
        self.happened.append(f"team {data['of']}")

    @on("order.*", group="team", durable=True)
    def durable(self, data: Any) -> None:
        self.happened.append(f"durable {data['of']}")

    @every(seconds=0.05, singleton=True)
    def tick(self) -> None:
        if "tick" not in self.happened:
            self.happened.append("tick")

    def has(self, *features: str) -> bool:
        return {*features} <= self.client.backend.features

    def letters(self) -> list[Any]:
        backend: Any = self.client.backend
        return list(backend.dead_letters("default"))


Pair = tuple[Application, Application]


@pytest.fixture
def amqp_url(rabbit_node: Any) -> str:
    """A vhost of its own: it is looked at what is in it."""
    return str(rabbit_node.vhost("default", "nobody"))


@pytest.fixture
def pair(any_url: str) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Application(any_url, SHOP, stack), Application(any_url, BANK, stack)


@pytest.fixture
def names(any_url: str, request: pytest.FixtureRequest) -> Callable[[], set[str]]:
    """What there is in the broker: keys, or queues and exchanges."""
    if any_url.startswith("memory"):
        return set
    if any_url.startswith("amqp"):
        node, vhost = request.getfixturevalue("rabbit_node"), any_url.rpartition("/")[2]
        listed = f"""[amqqueue:get_name(Q) || Q <- rabbit_amqqueue:list(<<"{vhost}">>)]
            ++ [element(2, X) || X <- rabbit_exchange:list(<<"{vhost}">>)]."""
        at_first = {"", "rpc", "rpc:queue:default", "rpc:queue:nobody"}
        return lambda: {
            name
            for name in re.findall(r'<<"([^"]*)">>}', node.control("eval", listed))
            if name not in at_first and not name.startswith("amq.")
        }

    server = request.getfixturevalue("rpc_redis")

    def keys() -> set[str]:
        with redis.Redis.from_url(server.url, decode_responses=True) as admin:
            return {*admin.scan_iter(count=1000)}

    return keys


def test_two_applications_do_not_meet(pair: Pair, names: Callable[[], set[str]]) -> None:
    for each in pair:
        calls(each)
        events(each)
        failures(each)
    for each, other in zip(pair, reversed(pair), strict=True):
        look_for(each, other)
    for each, other in zip(pair, reversed(pair), strict=True):
        withdrawals(each, other)
    running = [each.client.submit("desk.once") for each in pair]
    for each in pair:
        eventually(lambda each=each: "once" in each.happened)
    found = names()
    for each, future in zip(pair, running, strict=True):
        each.go.set()
        assert future.result(PATIENCE).data == each.prefix
    assert [name for name in found if not (OURS.match(name) or ON_RQ.fullmatch(name))] == []
    assert {name.partition(":")[0] for name in found} - {"rq"} == ({SHOP, BANK} if found else set())
    assert found or not pair[0].has("processes")
    for each in pair:
        heard = [f"{who} {each.prefix}" for who in ("alone", "durable", "team")]
        assert sorted(each.happened) == sorted(["tick", "waits", "once", f"later {each.prefix}", *heard])


def calls(at: Application) -> None:
    client = at.client
    for padding in "", "x" * 100_000:
        for _ in range(3):
            assert client.call_and_wait("desk.who", [padding]).data == at.prefix
    assert client.call_and_wait("desk.again").data == at.prefix
    client.call("desk.note", {"text": f"later {at.prefix}"}, delay=0.05)
    eventually(lambda: f"later {at.prefix}" in at.happened)
    if at.has("idempotency"):
        for _ in range(2):
            assert client.call_and_wait("desk.who", idempotency_key="key").data == at.prefix

    async def in_a_loop() -> None:
        async with AsyncRpcClient(backend=at.url, timeout=PATIENCE) as client:
            both = await asyncio.gather(*(client.call_and_wait("desk.who") for _ in range(2)))
            assert [each.data for each in both] == [at.prefix] * 2

    asyncio.run(in_a_loop())


def events(at: Application) -> None:
    at.client.publish("order.paid", {"of": at.prefix})
    eventually(lambda: {f"{who} {at.prefix}" for who in ("alone", "team", "durable")} <= {*at.happened})
    eventually(lambda: "tick" in at.happened)
    assert len(at.client.describe()) == 1


def failures(at: Application) -> None:
    at.failed = at.client.call("desk.fail")
    (letter,) = eventually(at.letters)
    assert (letter.id, letter.why) == (at.failed, f"ValueError: {at.prefix}")


def look_for(at: Application, other: Application) -> None:
    """What the other one has."""
    (info,) = (each for each in at.client.queues() if each.queue == "default")
    assert info.dead == 1
    assert info.workers in (1, CONCURRENCY)  # to rq, each thread is one
    if at.has("inspection", "results"):
        kept = at.client.call("desk.who", keep=60)
        eventually(lambda: at.client.job(kept).state == "succeeded")
        assert at.client.job(kept).result == at.prefix
        for id in kept, at.failed:
            assert other.client.job(id).state == "unknown"
            assert not other.client.retry(id)
        assert [each.id for each in at.client.jobs()] == [at.failed]
    if at.has("subscriptions") and hasattr(at.client.backend, "subscribed"):
        assert len(at.client.backend.subscribed()) == 1


def withdrawals(at: Application, other: Application) -> None:
    at.happened = [each for each in at.happened if each != "waits"]
    waiting = at.client.submit("desk.wait")
    eventually(lambda: "waits" in at.happened)
    if at.has("inspection"):
        (running,) = at.client.jobs(state="running")
        assert not other.client.cancel(running.id)
    assert not at.cancelled.is_set()
    waiting.cancel()
    assert at.cancelled.wait(PATIENCE)


# What a prefix can be.

URLS = [
    "memory://",
    "redis://127.0.0.1",
    "redis+unix:///tmp/none",
    "redis+sentinel://127.0.0.1/mymaster",
    "redis+cluster://127.0.0.1",
    "rq+redis://127.0.0.1",
    "amqp://127.0.0.1",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("prefix", ["", "a:b", "a.b", "{a}", "a b", "a*", "\u00e9", "rq", "x" * 33, "a%0A"])
def test_what_is_no_prefix_is_refused(url: str, prefix: str) -> None:
    pytest.importorskip("pamqp") if url.startswith("amqp") else None
    with pytest.raises(SettingsError, match=r"prefix is not '.*': it has letters, digits") as raised:
        backend_from_url(f"{url}?prefix={prefix}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("prefix", ["rpc", "shop", "Shop-2_x", "x" * 32, "0", "rq2"])
def test_a_prefix(url: str, prefix: str) -> None:
    pytest.importorskip("pamqp") if url.startswith("amqp") else None
    backend_from_url(f"{url}?prefix={prefix}").close()


def test_names_are_made_in_one_place() -> None:
    sources = [*BACKENDS.rglob("*.py"), *BACKENDS.rglob("*.lua")]
    literal = [
        line.strip()
        for source in sources
        for line in source.read_text().splitlines()
        if re.search(r"""["']\^?rpc:""", line)
    ]
    assert len(sources) > 50
    assert [line for line in literal if "SETNAME" not in line] == []  # of a connection


def test_the_longest_names_fit() -> None:
    """RabbitMQ takes 255 bytes, for a routing key, too."""
    names = pytest.importorskip("rpc.backends.amqp.names").Names("x" * 32)
    delays = pytest.importorskip("rpc.backends.amqp.delays")
    queue = names.queue(inbox("y" * 128))
    assert len("*." * delays.LEVELS + queue) <= 255
    assert len(names.group(topic("y" * 128, "z" * 128))) <= 255
    assert len(names.mark("begun:1000000", "id")) <= 255


def test_on_rq_our_queues_have_the_prefix_unless_another_one_is_set(rpc_redis: Any) -> None:
    for query, expected in ("", "rpc."), ("?prefix=shop", "shop."), ("?prefix=shop&queue_prefix=a.", "a."):
        backend: Any = backend_from_url(f"rq+{rpc_redis.url}{query}")
        assert backend.names.queues == expected
