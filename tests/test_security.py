"""What strangers try who can write into the broker, and read it: docs/security.md lists it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from in_memory import LONG, until
from websockets.sync.client import connect

from rpc import (
    AsyncRpcClient,
    Request,
    RpcClient,
    RpcError,
    RpcReceiver,
    RpcTimeout,
    SettingsError,
    Unauthorized,
    WorkerLost,
    expose,
    on,
)
from rpc.backends import backend_from_url
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.core.protocol import encode_result
from rpc.core.signing import Keys, SecretKey, binding_of, check_reply, fields, signed_message, signed_reply
from rpc.core.streams import CREDIT, CREDIT_BYTES, SEND, THROW
from rpc.describe import ALL_WORKERS, DESCRIBE
from rpc.inspection import DeadLetters
from rpc.settings import Settings
from rpc.signing.backend import SignedBackend
from rpc.signing.serving import REFUSED, Recent
from rpc.signing.signer import Signing, keys_of
from rpc.transport import (
    EXPIRES,
    HANDED_BACK,
    IDEMPOTENCY_KEY,
    LOST,
    NAME,
    SIGNATURE,
    STREAM,
    TOKEN,
    Address,
    Backend,
    Delivery,
    Message,
    inbox,
    queue,
    topic,
)

SECRET = "a secret that no stranger will ever know"
KEYS = {"k1": SECRET}
TO, LOW = queue("default"), queue("low")
PUBLIC = "ed25519-public:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
"""Of RFC 8032, test 1."""
MUTATIONS = int(os.environ.get("RPC_FUZZ", "0"))
SEED = int(os.environ.get("RPC_SEED", random.randrange(2**32)))


class Desk:
    """What is to be protected: it writes down what it did."""

    name = "desk"

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.hold, self.holding = threading.Event(), threading.Event()

    @expose
    def run(self, what: str) -> str:
        self.did.append(what)
        return f"did {what}"

    @expose
    def wait(self, what: str) -> str:
        self.did.append(what)
        self.holding.set()
        self.hold.wait(LONG)
        return what

    @expose
    def echo(self) -> Any:
        said = []
        try:
            while True:
                said.append((yield len(said)))
        except ValueError as error:
            self.did.append(f"threw {error}")
        finally:
            self.did += [each for each in said if each is not None]

    @expose
    def headers(self, request: Request) -> list[str]:
        return [*request.headers, *request.headers.values()]

    @expose
    def fail(self) -> None:
        self.did.append("failed")
        raise LookupError("no such thing")


class Ear:
    """What hears events, where there are topics."""

    def __init__(self, desk: Desk) -> None:
        self._did = desk.did

    @on("payment.*")
    def paid(self, event: Any) -> None:
        self._did.append(event.topic)


def message(what: str = "forged", name: str = "desk.run", reply: bool = False, **headers: str) -> Message:
    id = uuid4().hex
    return call_message(id, name, {"what": what}, Writing(JSON), ttl=None, replies=reply, headers=headers)


def signed(
    given: Message, to: Address = TO, secret: str = SECRET, id: str = "k1", at: float = 0.0
) -> Message:
    keys = Keys({id: SecretKey(secret.encode())})
    return signed_message(keys, to, given, time.time() + at)


class Scene:
    """A receiver with keys, a client that has them, and the bare backend that a stranger has."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.url, self._stack, self.desk = url, stack, Desk()
        self.stranger = self.bare()
        stack.callback(self.desk.hold.set)

    def bare(self) -> Backend:
        backend = backend_from_url(self.url)
        self._stack.callback(backend.close)
        return backend

    def settings(self, **more: Any) -> Settings:
        return Settings(**{"signing_keys": KEYS, "timeout": LONG, **more})

    def serve(self, settings: Settings | None = None, **options: Any) -> RpcReceiver:
        ears = [Ear(self.desk)] if "topics" in self.stranger.features else []
        options = {"services": [self.desk, *ears], "backend": self.url, **options}
        receiver, serving = RpcReceiver(settings=settings or self.settings(), **options), threading.Event()
        thread = threading.Thread(target=lambda: receiver.run(arrived=serving.set))
        thread.start()

        def end() -> None:
            receiver.stop()
            self.desk.hold.set()
            thread.join(LONG)
            assert not thread.is_alive()

        self._stack.callback(end)
        assert serving.wait(LONG)
        return receiver

    def rogue(self, handler: Callable[[Delivery], object], *to: Address) -> None:
        """A worker of the stranger."""
        server = self.bare().server([*(to or (TO,))], handler)
        thread = threading.Thread(target=server.run)
        thread.start()
        self._stack.callback(thread.join, LONG)
        self._stack.callback(server.stop)

    def client(self, settings: Settings | None = None, **options: Any) -> RpcClient:
        client = RpcClient(settings=settings or self.settings(), backend=self.url, **options)
        return self._stack.enter_context(client)

    def letters(self) -> list[Any]:
        if "dead-letters" not in self.stranger.features:
            return []
        return cast("DeadLetters", self.stranger).dead_letters("default")

    def send(self, given: Message, to: Address = TO) -> None:
        self.stranger.send(to, given)


BROKERS = [
    "memory",
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("rq", marks=[pytest.mark.redis, pytest.mark.slow]),
    pytest.param("amqp", marks=[pytest.mark.xdist_group("rabbit_node"), pytest.mark.slow]),
    pytest.param("zmq", marks=pytest.mark.slow),
    pytest.param("http", marks=pytest.mark.slow),
    pytest.param("ws", marks=pytest.mark.slow),
]


@pytest.fixture(params=BROKERS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, str(request.getfixturevalue(f"{request.param}_url")))


def refused(receiver: RpcReceiver) -> int:
    return sum(cast("SignedBackend", receiver.backend).refused.values())


def other_secret(given: Message) -> Message:
    return signed(given, secret="another secret of a stranger's own...")


def with_public_key_as_secret(given: Message) -> Message:
    return signed(given, secret=PUBLIC, id="public")


def moved(name: str) -> Callable[[Message], Message]:
    """The signature of another message."""
    return lambda given: given.replace(**{SIGNATURE: signed(message(name)).headers[SIGNATURE]})


def changed(**headers: Any) -> Callable[[Message], Message]:
    return lambda given: signed(given).replace(**{k.replace("_", "-"): v for k, v in headers.items()})


def as_reply(given: Message) -> Message:
    keys = Keys({"k1": SecretKey(SECRET.encode())})
    return signed_reply(keys, [("to", "queue", "default")], given)


def expired(given: Message) -> Message:
    return signed(given.replace(ttl="1"), at=-1000.0).replace(ttl="60")


ATTACKS: dict[str, Callable[[Message], Message]] = {
    "not signed": lambda given: given,
    "a signature of spaces": changed(signature="    "),
    "an empty signature": changed(signature=""),
    "a signature of nonsense": changed(signature="k1=AAAA"),
    "a signature of all zeros": changed(signature="k1=" + "A" * 43),
    "a signature without a key": changed(signature="=" + "A" * 43),
    "a key that is not known": lambda given: signed(given, id="k2"),
    "another secret under a known id": other_secret,
    "the public half of a key as a secret": with_public_key_as_secret,
    "the signature of another message": moved("other"),
    "a signature with another form of its base64": lambda given: given.replace(
        **{SIGNATURE: signed(given).headers[SIGNATURE] + "="}
    ),
    "a hundred signatures, of which the last is good": lambda given: given.replace(
        **{SIGNATURE: "k9=A " * 99 + signed(given).headers[SIGNATURE]}
    ),
    "a signature of six kilobytes": changed(signature="k1=" + "A" * 6000),
    "another body": lambda given: Message(message("other").body, signed(given).headers),
    "no body": lambda given: Message(b"", signed(given).headers),
    "a body with more behind it": lambda given: Message(given.body + b" ", signed(given).headers),
    "another name": changed(name="desk.other"),
    "another id": changed(id="f" * 32),
    "a way back that was not asked for": changed(reply_to="f" * 32),
    "signed for another queue": lambda given: signed(given, to=LOW),
    "signed for a topic of this name": lambda given: signed(given, to=topic("default")),
    "signed for an inbox of this name": lambda given: signed(given, to=inbox("default")),
    "a reply, sent as a request": as_reply,
    "expired": expired,
    "expired, and made younger": lambda given: expired(given).replace(**{EXPIRES: "9999999999"}),
    "a time to live that was longer": lambda given: expired(given).replace(ttl=None, **{EXPIRES: None}),
    "another codec": changed(content_type="application/x-python-pickle"),
    "a codec that decodes the same": changed(content_type="application/json+types"),
    "compressed, it says": changed(content_encoding="gzip"),
    "a token was added": changed(token="stolen"),
    "a header of the application was added": changed(x_role="admin"),
    "a trace was added": changed(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"),
    "it was made a stream": changed(credit="10"),
    "it was made an upload": changed(upload="1"),
}  # fmt: skip
KEYED: dict[str, Callable[[Message], Message]] = {
    "the idempotency key was taken away": changed(idempotency_key=None),
    "another idempotency key": changed(idempotency_key="desk.run:2"),
}


def test_whatever_a_stranger_writes_into_the_queue_nothing_is_run(scene: Scene) -> None:
    receiver = scene.serve(scene.settings(signing_keys={**KEYS, "public": PUBLIC}))
    attacks = dict(ATTACKS)
    if scene.url.startswith("amqp"):  # which carries it only where there is one
        del attacks["a way back that was not asked for"]
    client, forged = scene.client(), [attack(message()) for attack in attacks.values()]
    if "idempotency" in scene.stranger.features:
        key = {IDEMPOTENCY_KEY: "desk.run:1"}
        forged += [attack(message(**key)) for attack in KEYED.values()]
    for each in forged:
        scene.send(each)
    assert client.call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
    until(lambda: refused(receiver) == len(forged))
    assert scene.desk.did == ["asked"]
    if "dead-letters" in scene.stranger.features:
        until(lambda: len(scene.letters()) == len(forged))
        assert {each.why.partition(":")[0] for each in scene.letters()} == {"Unauthorized"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(attack: str, memory_url: str) -> None:
    with ExitStack() as stack:
        scene = Scene(stack, memory_url)
        receiver = scene.serve(scene.settings(signing_keys={**KEYS, "public": PUBLIC}))
        scene.send(ATTACKS[attack](message()))
        until(lambda: refused(receiver) == 1)
        assert not scene.desk.did
        until(scene.letters)


@pytest.mark.parametrize("attack", KEYED)
def test_an_attack_on_a_key_is_refused(attack: str, memory_url: str) -> None:
    with ExitStack() as stack:
        scene = Scene(stack, memory_url)
        receiver = scene.serve()
        scene.send(KEYED[attack](message(**{IDEMPOTENCY_KEY: "desk.run:1"})))
        until(lambda: refused(receiver) == 1)
        assert not scene.desk.did


def test_what_was_done_is_not_done_again(scene: Scene) -> None:
    receiver, replayed = scene.serve(), signed(message("once"))
    scene.send(replayed)
    until(lambda: scene.desk.did == ["once"])
    time.sleep(0.05)  # its acknowledgement may be on its way
    again = [
        {},
        {"deliveries": "2"},
        {"attempt": "2"},
        {HANDED_BACK: "1"},
        {"unknown-for": "2"},
        {"ttl": "99"},
    ]
    for each in again:
        scene.send(replayed.replace(**cast("dict[str, Any]", each)))
    assert scene.client().call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
    if "memory" in scene.url:  # other brokers know it by its id, too
        until(lambda: refused(receiver) == len(again))
    assert scene.desk.did == ["once", "asked"]


@pytest.mark.redis
@pytest.mark.parametrize("url", ["redis_url", pytest.param("rq_url", marks=pytest.mark.slow)])
def test_what_was_done_is_not_done_again_if_redis_is_as_it_was_before(
    url: str, request: pytest.FixtureRequest
) -> None:
    """The strongest replay: all keys are as they were when the job had just been sent."""
    with ExitStack() as stack:
        scene = Scene(stack, str(request.getfixturevalue(url)))
        scene.send(signed(message("once")))
        admin = stack.enter_context(redis.Redis.from_url(scene.url.removeprefix("rq+").partition("?")[0]))
        before = {key: admin.dump(key) for key in admin.scan_iter()}
        receiver = scene.serve()
        until(lambda: scene.desk.did == ["once"])
        client = scene.client()
        assert client.call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
        for n in range(1, 4):
            for key, value in before.items():
                admin.restore(key, 0, value, replace=True)
            assert client.call_and_wait("desk.run", {"what": "again"}).data == "did again"
            until(lambda n=n: refused(receiver) == n)
        assert scene.desk.did == ["once", "asked", *["again"] * 3]


def test_what_is_being_done_is_not_done_beside_it(scene: Scene) -> None:
    receiver = scene.serve(concurrency=3)
    replayed = signed(message("held", "desk.wait"))
    scene.send(replayed)
    assert scene.desk.holding.wait(LONG)
    with suppress(RpcError):
        scene.send(replayed.replace(deliveries="2"))
    assert scene.client().call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
    scene.desk.hold.set()
    if "memory" in scene.url:
        until(lambda: refused(receiver) == 1)
    assert scene.desk.did == ["held", "asked"]


def test_what_failed_and_was_put_back_by_hand_is_done_again(scene: Scene) -> None:
    if "dead-letters" not in scene.stranger.features:
        pytest.skip("has no feature 'dead-letters'")
    scene.serve()
    client = scene.client(scene.settings(client_backend=scene.url))
    client.call("desk.fail", ttl=60)
    until(scene.letters)
    (letter,) = scene.letters()
    assert cast("DeadLetters", client.backend).revive(letter)
    until(lambda: scene.desk.did == ["failed"] * 2)
    until(scene.letters)


def test_a_forged_job_that_is_put_back_by_hand_is_refused_again(scene: Scene) -> None:
    if "dead-letters" not in scene.stranger.features:
        pytest.skip("has no feature 'dead-letters'")
    receiver = scene.serve()
    scene.send(message())
    until(scene.letters)
    assert cast("DeadLetters", scene.client().backend).revive(scene.letters()[0])
    until(lambda: refused(receiver) == 2)
    assert not scene.desk.did


def test_a_stranger_who_calls_is_told_so_and_no_more(scene: Scene) -> None:
    scene.serve()
    with pytest.raises(Unauthorized) as told:
        scene.client(Settings(timeout=LONG)).call_and_wait("desk.run", {"what": "forged"})
    assert str(told.value) == REFUSED
    other = scene.settings(signing_keys={"k1": "another secret of 32 characters, or more"}, timeout=0.5)
    refused = "1 reply was refused: not signed"  # what he is told is not signed as he wants it
    with pytest.raises(RpcTimeout, match=refused):
        scene.client(other).call_and_wait("desk.run", {"what": "forged"})
    assert not scene.desk.did


@pytest.mark.parametrize("url", ["memory_url", pytest.param("redis_url", marks=pytest.mark.redis)])
def test_a_request_that_is_changed_on_its_way_is_not_done_and_not_answered(
    url: str, request: pytest.FixtureRequest
) -> None:
    """Nor is its caller told that it was refused, which would end the call before its time."""
    with ExitStack() as stack:
        scene = Scene(stack, str(request.getfixturevalue(url)))
        future = scene.client().submit("desk.run", {"what": "asked"}, timeout=1.5)
        if "memory" in scene.url:
            waiting = cast("Any", scene.stranger).hub.waiting[TO]
            until(lambda: waiting)
            changed = waiting[0].message
            waiting[0].message = Message(changed.body.replace(b"asked", b"other"), changed.headers)
        else:
            admin = stack.enter_context(redis.Redis.from_url(scene.url.partition("?")[0]))
            until(lambda: admin.keys("*}:default"))
            (key,) = cast("list[bytes]", admin.keys("*}:default"))
            (record,) = cast("list[bytes]", admin.lrange(key, 0, -1))
            assert b"asked" in record
            admin.lset(key, 0, cast("str", record.replace(b"asked", b"other")))
        receiver = scene.serve()
        until(lambda: refused(receiver) == 1)
        with pytest.raises(RpcTimeout, match="1 reply was refused"):
            future.result()
        assert not scene.desk.did


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rpc", {"jsonrpc": "2.0", "method": "desk.run", "params": {"what": "forged"}, "id": 1}),
        ("/rpc", {"jsonrpc": "2.0", "method": "desk.run", "params": {"what": "forged"}}),
        ("/rpc", [{"jsonrpc": "2.0", "method": "desk.run", "params": ["forged"], "id": 1}] * 3),
        ("/desk.run", {"what": "forged"}),
    ],
)
def test_no_plain_http_request_is_done_by_a_receiver_with_keys(http_url: str, path: str, body: Any) -> None:
    with ExitStack() as stack:
        scene = Scene(stack, http_url)
        receiver = scene.serve()
        connection = http.client.HTTPConnection(cast("Any", receiver.backend).bound[0], timeout=LONG)
        stack.callback(connection.close)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert b"did" not in answer.read()
        assert scene.client().call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
        assert scene.desk.did == ["asked"]


def test_nothing_on_a_plain_websocket_is_done_by_a_receiver_with_keys(http_url: str) -> None:
    call = {"jsonrpc": "2.0", "method": "desk.run", "params": {"what": "forged"}}
    stream = {
        "jsonrpc": "2.0",
        "method": "rpc.stream",
        "params": {"method": "desk.run", "params": ["forged"]},
    }
    with ExitStack() as stack:
        scene = Scene(stack, http_url)
        receiver = scene.serve()
        url = f"ws://{cast('Any', receiver.backend).bound[0]}/rpc"
        with connect(url) as socket:
            socket.send(json.dumps(call))
            for id, each in enumerate((call, stream)):
                socket.send(json.dumps([{**each, "id": id}] * 2))
                assert all("error" in answer for answer in json.loads(socket.recv(LONG)))
        assert scene.client().call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
        assert scene.desk.did == ["asked"]


def test_an_event_of_a_stranger_is_not_heard(scene: Scene) -> None:
    if "topics" not in scene.stranger.features:
        pytest.skip("has no feature 'topics'")
    receiver, to = scene.serve(), topic("payment")
    good = signed(message(name="payment.good"), to=to)
    forged = [
        message(name="payment.forged"),
        signed(message(name="payment.moved"), to=topic("order")),
        signed(message(name="payment.job"), to=TO),
        Message(message(name="payment.body").body, good.headers),
        good,
        good.replace(id=uuid4().hex),  # a replay, under another name
    ]
    client = scene.client()
    for each in (good, *forged):
        scene.send(each, to)
    client.publish("payment.last")
    until(lambda: "payment.last" in scene.desk.did)
    assert scene.desk.did == ["payment.good", "payment.last"]
    assert refused(receiver) == len(forged)


def test_what_a_topic_remembers_is_not_heard_if_a_stranger_wrote_it(scene: Scene) -> None:
    if "replay" not in scene.stranger.features:
        pytest.skip("has no feature 'replay'")
    client, to = scene.client(), topic("payment")
    client.publish("payment.good")
    good = signed(message(name="payment.other"), to=to)
    for each in (message(name="payment.forged"), good.replace(id=uuid4().hex), signed(message(), to=TO)):
        scene.send(each, to)
    client.publish("payment.last")
    with client.subscribe("payment.*", since=timedelta(minutes=1)) as events:
        assert [events.get(LONG).topic for _ in range(2)] == ["payment.good", "payment.last"]
    assert cast("SignedBackend", client.backend).refused["event"] == 3


def test_a_stream_hears_nobody_but_its_caller(scene: Scene) -> None:
    receiver, client = scene.serve(), scene.client()
    stream = client.stream("desk.echo")
    assert next(stream) == 0
    to, id = inbox(receiver.id), next(iter(receiver._application._streams._open))
    for body, headers in (
        (JSON.encode("forged"), {STREAM: SEND}),
        (JSON.encode({"type": "ValueError", "message": "forged"}), {STREAM: THROW}),
        (b"", {STREAM: "credit"}),
    ):
        forged = Message(body, {"id": id, CREDIT: "99", CREDIT_BYTES: "9999", **headers})
        scene.send(forged, to)
        scene.send(signed(forged, to=TO), to)
        scene.send(signed(forged.replace(id="another"), to=to).replace(id=id), to)
    until(lambda: refused(receiver) == 9)
    assert [stream.send("asked"), next(stream)] == [1, 2]
    stream.close()
    until(lambda: scene.desk.did)
    assert scene.desk.did == ["asked"]


def reply(delivery: Delivery, body: bytes = b"", **headers: str) -> Message:
    return Message(
        body or encode_result(delivery.message.id, "forged", JSON), {"id": delivery.message.id, **headers}
    )


def lies(delivery: Delivery) -> None:
    """All that a worker of a stranger could say."""
    error = b'{"jsonrpc":"2.0","id":"1","error":{"code":-32002,"message":"forged"}}'
    own = Keys({"k1": SecretKey(b"another secret of a stranger's own...")})
    delivery.reply(reply(delivery, **{STREAM: "progress"}))
    delivery.reply(reply(delivery, **{STREAM: "items", "seq": "0", "size": "9"}))
    delivery.reply(reply(delivery, **{SIGNATURE: "k1=" + "A" * 43, STREAM: "1"}))
    delivery.reply(
        signed_reply(own, [("request", delivery.message.id, "")], reply(delivery, **{STREAM: "1"}))
    )
    delivery.finish(reply(delivery, error, error="WorkerLost"))


@pytest.mark.parametrize("way", ["waits", "awaits", "submits"])
def test_no_worker_of_a_stranger_answers_a_call_or_ends_it_before_its_time(scene: Scene, way: str) -> None:
    scene.rogue(lies)
    alone = scene.url.startswith(("http", "ws"))  # where nobody else can answer
    client, data, about = scene.client(), {"what": "x"}, {"timeout": None if alone else 1.0}

    async def awaited() -> None:
        async with AsyncRpcClient(settings=scene.settings(), backend=scene.url) as asynchronous:
            await asynchronous.call_and_wait("desk.run", data, **about)

    ways: dict[str, Callable[[], Any]] = {
        "waits": lambda: client.call_and_wait("desk.run", data, **about),
        "submits": lambda: client.submit("desk.run", data, **about).result(),
        "awaits": lambda: asyncio.run(awaited()),
    }
    began = time.monotonic()
    within = "" if alone else " within 1 s"
    with pytest.raises(
        RpcTimeout,
        match=f"^'desk.run' was not answered{within}: . (reply was|replies were) refused: not signed",
    ):
        ways[way]()
    if not alone:
        assert time.monotonic() - began >= 1.0


def test_the_reply_to_another_call_is_no_reply_to_this_one(scene: Scene) -> None:
    """Also if it is to the same question: it might be the answer of yesterday."""
    captured: list[Message] = []

    def capture(delivery: Delivery) -> None:
        request = delivery.message
        if not captured:  # an honest worker, whose reply is read on its way
            backend = SignedBackend(scene.bare(), Signing(keys_of(KEYS)))

            captured.append(backend.answer([binding_of(TO, request)], reply(delivery)))
            delivery.finish(captured[0])
        else:
            delivery.finish(captured[0].replace(id=request.id))

    scene.rogue(capture)
    client = scene.client()
    assert client.call_and_wait("desk.run", {"what": "x"}).data == "forged"
    with pytest.raises(RpcTimeout, match="1 reply was refused: not signed"):
        client.call_and_wait("desk.run", {"what": "x"}, timeout=0.7)


def test_what_the_broker_says_of_lost_workers_ends_a_call_and_says_that_it_is_not_signed(
    scene: Scene,
) -> None:
    """It may be true, and whoever can forge it can take the request away, too."""
    scene.rogue(lambda delivery: delivery.finish(reply(delivery, b"x", **{LOST: "it died\nforged line"})))
    with pytest.raises(WorkerLost, match=r"it died\\nforged line \(so the broker says; that is not signed\)"):
        scene.client().call_and_wait("desk.run", {"what": "x"})


def test_a_kept_result_of_a_stranger_is_not_read(scene: Scene) -> None:
    if "results" not in scene.stranger.features:
        pytest.skip("has no feature 'results'")
    scene.serve()
    client, stranger = scene.client(), cast("Any", scene.stranger)
    one, two = (client.call("desk.run", {"what": each}, keep=60) for each in "ab")
    until(lambda: client.job(two).state == client.job(one).state == "succeeded")
    assert client.job(one).result == "did a"
    stranger.keep("default", "3" * 32, Message(encode_result("3", "forged", JSON), {"id": "3"}), 60.0)
    assert client.job("3" * 32).state == "unknown"
    stranger.keep("default", one, stranger.result("default", two), 60.0)
    assert client.job(one).state == "unknown"
    assert client.backend.refused["result"] >= 2  # type: ignore[attr-defined]


def test_nobody_tells_a_stranger_what_there_is(scene: Scene) -> None:
    if "topics" not in scene.stranger.features:
        pytest.skip("has no feature 'topics'")
    scene.serve()
    client = scene.client()
    until(lambda: len(client.describe(wait=0.2)) == 1)
    asked = call_message(uuid4().hex, DESCRIBE, None, Writing(JSON), ttl=5, replies=True)
    with closing(scene.stranger.request(ALL_WORKERS, asked)) as replies, pytest.raises(RpcTimeout):
        replies.receive(0.5)
    scene.serve(Settings(), services=[Desk()])
    time.sleep(0.1)
    assert len(client.describe(wait=0.4)) == 1, "it is not signed"


def test_what_is_signed_with_either_key_is_taken_while_keys_are_changed(scene: Scene) -> None:
    old, new = {"old": "o" * 32}, {"new": "n" * 32}
    scene.serve(scene.settings(signing_keys={**old, **new}))
    for keys, answered in ((old, True), ({**old, **new}, True), ({**new, **old}, True), (new, False)):
        client = scene.client(scene.settings(signing_keys=keys, timeout=LONG if answered else 0.5))
        if answered:
            assert client.call_and_wait("desk.run", {"what": "x"}).data == "did x"
        else:  # the receiver signs with the old one
            with pytest.raises(RpcTimeout, match="refused: not signed with a key that is known"):
                client.call_and_wait("desk.run", {"what": "x"})
    both = scene.client(scene.settings(signing_keys="+new=" + "n" * 32 + ",+old=" + "o" * 32))
    assert both.call_and_wait("desk.run", {"what": "x"}).data == "did x"


def test_while_signatures_are_brought_in_nothing_is_refused(scene: Scene) -> None:
    receiver = scene.serve(scene.settings(signing_required=False))
    for settings in Settings(timeout=LONG), scene.settings(signing_required=False), scene.settings():
        assert scene.client(settings).call_and_wait("desk.run", {"what": "x"}).data == "did x"
    assert refused(receiver) == 0


def mutated(given: Message, dice: random.Random) -> Message:
    """Something else, by dice."""
    headers, body = dict(given.headers), bytearray(given.body)
    junk = "".join(dice.choices("\0\n =aZ09ä\u2028%,:;{}[]\"'\\", k=dice.randrange(40)))
    match dice.randrange(7):
        case 0:
            body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        case 1:
            del body[dice.randrange(len(body)) :]
        case 2:
            body += dice.randbytes(dice.randrange(1, 200))
        case 3:
            del headers[dice.choice([name for name in headers if name != "id"])]
        case 4:
            headers[dice.choice([SIGNATURE, NAME, "content-type", EXPIRES])] = junk
        case 5:
            headers[dice.choice(["x-more", "stream", "credit", TOKEN, "content-encoding", "name"])] = junk
        case _:
            text = [*headers[SIGNATURE]]
            text[dice.randrange(len(text))] = dice.choice("aZ09-_= \n.ä")
            headers[SIGNATURE] = "".join(text)
    return Message(bytes(body), headers)


def batter(scene: Scene, number: int) -> None:
    """Nothing is run, nobody stops, and what is asked for is done all the while."""
    receiver, client, dice = scene.serve(), scene.client(), random.Random(SEED)
    binding, sent = ("to", "queue", "default"), 0
    for n in range(number):
        good = signed(message(f"forged {n}"))
        bad = mutated(good, dice)
        if bad.headers.get(SIGNATURE) == good.headers[SIGNATURE] and fields(binding, bad) == fields(
            binding, good
        ):
            continue
        with suppress(RpcError):  # a header that it does not carry
            scene.send(bad)
            sent += 1
        if n % 500 == 0:
            assert client.call_and_wait("desk.run", {"what": f"asked {n}"}).data == f"did asked {n}"
    asked = [f"asked {n}" for n in range(0, number, 500)]
    assert client.call_and_wait("desk.run", {"what": "last"}).data == "did last", SEED
    assert [each for each in scene.desk.did if each not in asked] == ["last"], SEED
    assert sent > number * 0.9
    assert refused(receiver) > number * 0.8, SEED


@pytest.mark.parametrize("url", ["memory_url", pytest.param("redis_url", marks=pytest.mark.redis)])
def test_no_message_that_was_changed_by_dice_is_run(url: str, request: pytest.FixtureRequest) -> None:
    logging.getLogger("rpc").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.callback(logging.getLogger("rpc").setLevel, logging.NOTSET)
        batter(Scene(stack, str(request.getfixturevalue(url))), MUTATIONS or 600)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_none_of_ten_thousand_is_run(scene: Scene) -> None:
    logging.getLogger("rpc").setLevel(logging.CRITICAL)
    try:
        batter(scene, MUTATIONS or 10_000)
    finally:
        logging.getLogger("rpc").setLevel(logging.NOTSET)


TOKENS = {"desk.run": ["right", {"token": "reader", "methods": ["desk.headers"]}], "desk.*": "other"}


def test_two_hundred_callers_without_the_token_or_the_signature_get_nowhere(scene: Scene) -> None:
    receiver = scene.serve(scene.settings(tokens=TOKENS, token={}))
    client = scene.client(scene.settings(token={"desk.run": "right"}))
    assert client.call_and_wait("desk.run", {"what": "asked"}).data == "did asked"
    done = signed(message("once", **{TOKEN: "right"}))
    scene.send(done)
    until(lambda: "once" in scene.desk.did)
    for n in range(50):
        wrong = ("", "wrong", "reader", "other", "Right", "right ", "righ", "r" * 1000, "ä")[n % 9]
        scene.send(signed(message(**{TOKEN: wrong} if wrong else {})))
        scene.send(message(**{TOKEN: "right"}))
        scene.send(expired(message(**{TOKEN: "right"})))
        scene.send(done)
    assert client.call_and_wait("desk.run", {"what": "last"}).data == "did last"
    assert scene.desk.did == ["asked", "once", "last"]
    assert refused(receiver) >= 100


def test_a_missing_token_is_told_as_a_wrong_one(scene: Scene) -> None:
    scene.serve(scene.settings(tokens=TOKENS, token={}))
    texts = set()
    for token in {}, {"*": "wrong"}, {"*": "other"}, {"*": "reader"}:
        with pytest.raises(Unauthorized) as told:
            scene.client(scene.settings(token=token)).call_and_wait("desk.run", {"what": "x"})
        texts.add(str(told.value))
    with pytest.raises(Unauthorized) as told:  # nor is it told what there is
        scene.client().call_and_wait("desk.no_such", {"what": "x"})
    assert texts == {str(told.value)}
    assert not scene.desk.did


def test_a_token_is_in_no_log_no_error_and_no_letter_and_is_not_sent_to_others(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = "hunter2-hunter2"
    seen: list[Any] = []

    class Other:
        name = "other"

        @expose
        def peek(self, request: Request) -> None:
            seen.append(dict(request._delivery.message.headers))

    settings = scene.settings(tokens={"desk.*": token}, token={"desk.*": token})
    receiver = scene.serve(settings, services=[scene.desk, Other()])
    client = scene.client(settings)
    headers = client.call_and_wait("desk.headers").data
    client.call_and_wait("other.peek")
    client.call("desk.fail")
    with pytest.raises(RpcError):
        scene.client(scene.settings(token={"desk.*": "hunter2-wrong"})).call_and_wait(
            "desk.run", {"what": "x"}
        )
    if "topics" in scene.stranger.features:
        client.publish("desk.happened")
    until(lambda: scene.desk.did)
    assert token not in headers
    assert all(token not in each.values() for each in seen)
    for text in caplog.text, repr(settings), repr(receiver), repr(client), repr(message(**{TOKEN: token})):
        assert "hunter2" not in text
    for letter in scene.letters():
        assert token not in letter.why + letter.traceback


class Held:
    cancelled = False


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpc.signing.serving.MOST_REPLY_BYTES", 10_000)
    recent, held = Recent(most=3), cast("Delivery", Held())
    for key in range(5):
        assert recent.begin(key, held)
        assert not recent.begin(key, held), "in hand"
        recent.end(key, held, Message(b"x" * 3000))
        assert not recent.begin(key, held) or key < 2
    assert [recent.is_done(key) for key in range(5)] == [False, False, True, True, True]
    assert [bool(recent.reply(key)) for key in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize("by_caller", [False, True])
def test_what_goes_back_is_begun_again_and_what_was_cancelled_only_if_its_caller_sends_it(
    by_caller: bool,
) -> None:
    recent, held, other = Recent(by_caller=by_caller), cast("Delivery", Held()), cast("Delivery", Held())
    assert recent.begin("postponed", held)
    recent.forget("postponed")
    assert recent.begin("postponed", other)
    recent.end("postponed", held, None)  # whoever had it before ends nothing
    assert not recent.is_done("postponed")
    recent.forget_all()
    assert recent.begin("postponed", held)
    held.cancelled = True
    assert recent.begin("postponed", other) is by_caller
    assert recent.begin("cancelled", held)
    recent.end("cancelled", held, Message(b"x"))
    assert recent.begin("cancelled", other) is by_caller
    assert recent.reply("cancelled") is None


def test_settings_and_keys_do_not_show_secrets() -> None:
    settings = Settings(signing_keys=KEYS, tokens={"x": "hunter2"}, token={"x": "hunter2"})
    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)
    assert SECRET not in repr(keys_of(KEYS))


def test_keys_are_read_from_texts_and_files(tmp_path: Any) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    no, raw = serialization.NoEncryption(), serialization.PublicFormat.SubjectPublicKeyInfo
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, raw))
    worker, caller = keys_of({"w": str(private)}), keys_of(f"own={SECRET}, w={public}")
    request = signed_message(caller, TO, message(), 0.0)
    binding = ("request", request.id, "")
    answer = signed_reply(worker, [binding], request)
    check_reply(caller, binding, answer)
    with pytest.raises(Unauthorized, match="'own', which is not known"):
        check_reply(worker, binding, signed_reply(caller, [binding], request))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"k": "hunter2"}, "at least 32 bytes"), (", ", "no key"), ("k", "at least 32 bytes"),
        ({"k": "ed25519:hunter2"}, "no key of Ed25519"),
        ({"k": "ed25519-public:hunter2"}, "no key of Ed25519"),
        ({"k": "ed25519:hunter2!"}, "no key of Ed25519"), ({"k": "/no/such.pem"}, "No such file"),
        ({"k": PUBLIC}, "cannot sign"), ({"a b": SECRET}, "'a b' is no id"),
        ({f"+{n}": SECRET for n in range(3)}, "at most 2 keys sign"),
    ],
)  # fmt: skip
def test_keys_that_are_none_are_refused_and_not_shown(given: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as told:
        RpcClient(
            backend="memory://x",
            settings=Settings(signing_keys=given),
        )
    assert "RPC_SIGNING_KEYS" in str(told.value)
    assert "hunter2" not in str(told.value)


def test_the_page_has_each_attack_and_each_test_that_it_names() -> None:
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    assert re.findall(r"^\| (.*) \| refused, counted, a dead letter \|$", page, re.MULTILINE) == [
        *ATTACKS,
        *KEYED,
    ]
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 12
    assert set(named) <= set(globals())
    assert len(ATTACKS) + len(KEYED) + len(named) >= 50
