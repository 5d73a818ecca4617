"""Whatever arrives, and whatever a handler does, a caller that waits gets exactly one reply."""

from __future__ import annotations

import asyncio
import builtins
import logging
import pickle
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc import (
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotFound,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    ServiceNotFound,
    Unauthorized,
    job,
)
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON, MSGPACK, Accepted
from rpc.core.conversation import Conversation, call_message
from rpc.core.dispatch import Dispatcher
from rpc.core.jobs import Response, current_request, jobs_from
from rpc.core.middleware import Hooks
from rpc.errors import Interrupted
from rpc.transport import FAILED, Message, packed, queue, unpacked

with_both_codecs = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


class Delivery:
    """What a backend hands over. Remembers what was done with it."""

    def __init__(self, message, cancelled=False):
        self.message, self.cancelled, self.on_cancel = message, cancelled, None
        self.to, self.why, self.postponed = queue("work"), "", []
        self.replies, self.ends, self.redeliverable = [], [], True

    def reply(self, message):
        self.replies.append(message)
        return not self.cancelled

    def finish(self, last):
        self.ends.append(last)

    def bury(self, why, last):
        self.why = why
        self.finish(last)

    def postpone(self, seconds, message):
        self.postponed.append((seconds, message))

    @property
    def last(self):
        """What it ended with, once."""
        [last] = self.ends
        return last

    def forbid_redelivery(self):
        self.redeliverable = False


def dispatcher_of(handler, **options):
    def run(coroutine, delivery):
        return asyncio.run(coroutine)

    jobs = handler if isinstance(handler, dict) else {"work": handler}
    accept = Accepted(most=options.get("max_message"))
    given = {"clock": time.monotonic, "dice": random.random, "accept": accept, **options}
    return Dispatcher(jobs_from(jobs), **{"await_": run, **given})


def in_a_loop(coroutine, delivery):
    """Runs what a dispatcher spawns: a coroutine that holds no thread."""
    asyncio.run(coroutine)


def the_reply(dispatcher, message):
    """The only reply to a message, as it comes off the wire."""
    delivery = Delivery(message)
    try:
        dispatcher(delivery)
        last = delivery.last
        [reply] = delivery.replies if last is None else [*delivery.replies, last]
        return unpacked(packed(reply))
    except BaseException as error:
        raise AssertionError("there is not exactly one reply that can be sent") from error


def pending(data=None, codec=JSON, *, replies=True, **headers):
    return call_message(uuid4().hex, "work", data, Writing(codec), ttl=None, replies=replies).replace(
        **headers
    )


def answer(message, reply):
    return Conversation(message, "work", None, 0.0).feed(reply)


def asked(handler, data=None, *, codec=JSON, headers=None, **options):
    """What the caller of a handler gets."""
    message = pending(data, codec, **headers or {})
    return answer(message, the_reply(dispatcher_of(handler, **options), message)).data


def body(**members):
    return JSON.encode({"method": "work", **members})


def boom(request):
    raise SystemExit("boom")


def add(a: int, b: list[int] | None = None, *, c: str = ""):
    return a


async def wait(request):
    return request.data


def twice(request):
    request.respond(request.data)
    request.respond(request.data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)
JOBS = {"echo": lambda request: request.data, "add": add, "boom": boom, "wait": wait, "twice": twice}
CALLS = st.fixed_dictionaries(
    {"method": st.sampled_from([*JOBS, "nosuch"])}, optional={"params": VALUES, "kwargs": VALUES}
)
BODIES = st.binary() | (CALLS | VALUES).map(JSON.encode) | (CALLS | VALUES).map(MSGPACK.encode)
HEADERS = st.dictionaries(
    st.sampled_from(["id", "ttl", "deliveries", "content-type", "name", "lost"]) | st.text(max_size=5),
    st.sampled_from(["application/json", "application/msgpack", "0", "9", "-1", "nan"])
    | st.text(max_size=50),
    max_size=8,
)


@pytest.mark.parametrize("max_message", [None, 40], ids=["any size", "small"])
@settings(deadline=None)
@given(body=BODIES, headers=HEADERS)
@example(body=b'{"method":"echo"}', headers={"deliveries": "9" * 5000}).via("a number with too many digits")
@example(body=b'{"method":"echo"}', headers={"id": "1" * 8180}).via("hardly room for another header")
@example(body=b'{"method":"echo"}', headers={"name": "\ud800"}).via("a lone surrogate")
def test_whatever_arrives_a_caller_that_waits_gets_one_reply(max_message, body, headers):
    message = Message(body, {**headers, "reply-to": "inbox"})
    reply = the_reply(dispatcher_of(JOBS, max_message=max_message), message)
    with suppress(RpcError):
        assert isinstance(answer(message, reply), Response)


@settings(deadline=None)
@given(body=BODIES, headers=HEADERS)
def test_whatever_arrives_where_nobody_waits_there_is_no_result(body, headers):
    delivery = Delivery(Message(body, headers))
    dispatcher_of(JOBS)(delivery)
    assert delivery.postponed or delivery.last is None or FAILED in delivery.last.headers
    assert delivery.replies == []


@pytest.mark.parametrize(("poison", "error"), [
    (b"[" * 100_000, SerializationError), (b'{"method":"work","params":' + b"[" * 99_999, SerializationError),
    (b'{"method":"work","params":[' + b"9" * 5000 + b"]}", SerializationError), (b"", SerializationError),
    (b'{"method":"work","params":[NaN]}', SerializationError), (b"\x80\x04N.", SerializationError),
    (body(params=5), SerializationError), (body(kwargs={"a": 1}), SerializationError),
    (JSON.encode({"method": 5}), SerializationError), (JSON.encode([{"method": "work"}]), SerializationError),
    (body(params=[1, 2]), InvalidParams), (JSON.encode({"method": "nosuch"}), MethodNotFound),
    (JSON.encode({"method": "../work"}), ServiceNotFound),
    (JSON.encode({"method": "os.system"}), ServiceNotFound),
], ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None)  # fmt: skip
def test_a_poisonous_request_is_refused_and_the_handler_not_called(poison, error):
    called = []

    def handler(a: int):
        called.append(a)

    message = Message(poison, {"id": "1", "reply-to": "1"})

    reply = the_reply(dispatcher_of(handler), message)

    assert (called, reply.headers[FAILED]) == ([], error.__name__)
    with pytest.raises(error):
        answer(message, reply)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "content_type", ["application/x-python-serialize", "pickle", "application/json", None]
)
def test_nothing_is_unpickled(tmp_path, content_type):
    canary = tmp_path / "canary"
    message = Message(pickle.dumps(Canary(canary)), {"reply-to": "1"}).replace(content_type=content_type)
    with pytest.raises(SerializationError):
        answer(message, the_reply(dispatcher_of(lambda: None), message))
    assert not canary.exists()


def test_a_codec_that_is_not_accepted_is_refused_in_one_that_everybody_reads():
    with pytest.raises(SerializationError, match="'application/msgpack' is not accepted"):
        asked(lambda: 1, codec=MSGPACK, accept=Accepted([JSON]))


@with_both_codecs
def test_a_reply_has_the_id_and_the_encoding_of_its_request(codec):
    message = pending(codec=codec)
    reply = the_reply(dispatcher_of(lambda: 1), message)
    assert (reply.id, reply.headers["content-type"]) == (message.id, codec.content_type)
    assert codec.decode(reply.body) == {"jsonrpc": "2.0", "id": message.id, "result": 1}


def test_a_request_that_is_too_large_is_refused():
    with pytest.raises(SerializationError, match=r"the message has .* bytes: more than 5000"):
        asked(lambda text: "small", ["x" * 5000], max_message=5000)


def responding(result):
    return lambda request: request.respond(result)


def returning(result):
    return lambda request: result


def raising(error):
    def handler(request):
        raise error

    return handler


@pytest.mark.parametrize(("handler", "error"), [
    (responding("x" * 10_000), SerializationError), (returning("x" * 10_000), SerializationError),
    (raising(KeyError("x" * 10_000)), RemoteError), (raising(RemoteError("x" * 10_000, "")), RemoteError),
], ids=["responds", "returns", "raises", "raises a long type"])  # fmt: skip
def test_a_reply_that_is_too_large_is_an_error_that_is_not(handler, error):
    with pytest.raises(error) as raised:
        asked(handler, max_message=2000)
    assert len(str(raised.value)) < 2000


@with_both_codecs
@pytest.mark.parametrize("way", [responding, returning])
@pytest.mark.parametrize("result", [{print}, sys, Delivery, "\ud800"], ids=lambda r: type(r).__name__)
def test_a_result_that_cannot_be_encoded_is_an_error(codec, way, result):
    with pytest.raises(SerializationError, match="the result cannot be encoded"):
        asked(way(result), codec=codec)


def test_a_stream_that_was_not_asked_for_as_one_is_an_error():
    with pytest.raises(InvalidParams, match="gives a stream: call it with `stream`"):
        asked(returning(_ for _ in ()))


def test_a_handler_whose_response_cannot_be_encoded_may_respond_with_another_one():
    def handler(request):
        with pytest.raises(SerializationError):
            request.respond(print)
        assert request.respond("instead")

    assert asked(handler) == "instead"


class Unprintable(BaseException):
    def __str__(self):
        raise SystemExit("while printing")


class OddCode(InvalidParams):
    code = 2**80


BUILTIN_ERRORS = [
    kind.__new__(kind, "text", [ValueError()])
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
]
ODD_ERRORS = [
    Unprintable(), ValueError("\ud800"), type("Own", (BaseException,), {})("text"), OddCode("why"),
    type("Längst", (Exception,), {})("x" * 100_000), RemoteError("\ud800", "why"), RemoteError(None, 5),
    RemoteError("KeyError", "why", data={print}), RemoteError("x" * 10_000, "why"),
]  # fmt: skip


@with_both_codecs
@pytest.mark.parametrize("tracebacks", [True, False], ids=["with traceback", "without"])
@pytest.mark.parametrize("error", BUILTIN_ERRORS + ODD_ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_handler_raises_reaches_the_caller(error, tracebacks, codec, caplog):
    caplog.set_level(logging.CRITICAL, "rpc")  # a log with a lone surrogate cannot be reported
    with pytest.raises(RpcError) as raised:
        asked(raising(error), codec=codec, send_tracebacks=tracebacks)
    if error in BUILTIN_ERRORS:
        assert raised.value.type == type(error).__name__
        assert ("in handler" in (raised.value.traceback or "")) == tracebacks


@pytest.mark.parametrize("error", [
    KeyError("a"), SystemExit("boom"), KeyboardInterrupt(), *ODD_ERRORS
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_whatever_a_coroutine_raises_that_holds_no_thread_reaches_the_caller(error, caplog):
    caplog.set_level(logging.CRITICAL, "rpc")

    async def coroutine():
        raise error

    with pytest.raises(RpcError) as raised:
        asked(coroutine, spawn=in_a_loop)
    if type(error).__module__ == "builtins":
        assert raised.value.type == type(error).__name__


def test_a_coroutine_that_was_cancelled_says_so():
    async def coroutine():
        raise asyncio.CancelledError

    with pytest.raises(Cancelled):
        asked(coroutine, spawn=in_a_loop)


def test_a_coroutine_that_holds_no_thread_is_counted_while_it_runs():
    seen = []

    async def coroutine():
        seen.append((dispatcher.running(threads=False), dispatcher.running(threads=True)))

    def function():
        seen.append((dispatcher.running(threads=False), dispatcher.running(threads=True)))

    for handler in coroutine, function:
        dispatcher = dispatcher_of(handler, spawn=in_a_loop)
        the_reply(dispatcher, pending())
        assert (dispatcher.running(threads=False), dispatcher.running(threads=True)) == (0, 0)
    assert seen == [(1, 0), (0, 1)]


@pytest.mark.parametrize("kind", [InvalidParams, SerializationError, RpcTimeout, Unauthorized, Cancelled])
def test_an_error_of_ours_that_speaks_of_the_call_is_told_as_it_is(kind):
    with pytest.raises(kind, match=r"^why$"):
        asked(raising(kind("why")))


def test_a_handler_that_was_interrupted_took_too_long():
    with pytest.raises(RpcTimeout, match=r"^too long$"):
        asked(raising(Interrupted("too long")))


def test_the_method_that_a_handler_did_not_find_is_not_the_one_that_was_called():
    with pytest.raises(RemoteError, match=r"^MethodNotFound: 'other'"):
        asked(raising(MethodNotFound("'other'")))


def test_a_remote_error_keeps_its_origin():
    with pytest.raises(RemoteError) as raised:
        asked(raising(RemoteError("KeyError", "'a'", {"b": 1}, "there")))
    error = raised.value
    assert (error.type, error.message, error.data, error.traceback) == ("KeyError", "'a'", {"b": 1}, "there")


@pytest.mark.parametrize("then", [returning(3), raising(ValueError("too late"))], ids=["returns", "raises"])
def test_only_the_first_response_is_sent_and_at_once(then):
    delivery, sent = Delivery(pending()), []

    def handler(request):
        sent.extend(request.respond(number) for number in (1, 2))
        assert len(delivery.replies) == 1
        return then(request)

    dispatcher_of(handler)(delivery)
    assert delivery.last is None
    assert sent == [True, False]
    assert [answer(delivery.message, reply).data for reply in delivery.replies] == [1]


@pytest.mark.parametrize("value", [None, 0, [], "text"])
def test_a_handler_that_does_not_respond_responds_with_what_it_returns(value):
    assert asked(returning(value)) == value


@pytest.mark.parametrize(
    ("replies", "cancelled"), [(False, False), (True, True)], ids=["nobody waits", "caller left"]
)
def test_a_handler_is_told_that_its_response_reached_nobody(replies, cancelled):
    delivery, responded = Delivery(pending(replies=replies)), []

    def handler(request):
        delivery.cancelled = cancelled
        responded.append((request.respond(1), request.cancelled))
        return 2

    dispatcher_of(handler)(delivery)
    assert delivery.last is None
    assert responded == [(False, cancelled)]


@pytest.mark.parametrize("data", [None, {}, [], {"a": [1]}, [1, {}]], ids=repr)
def test_the_data_is_as_it_was_sent(data):
    assert asked(lambda request: request.data, data) == ({} if data is None else data)


@pytest.mark.parametrize(("cancelled", "headers", "error"), [
    (True, {}, Cancelled), (False, {"ttl": 0}, RpcTimeout), (False, {"ttl": -0.1}, RpcTimeout),
    (False, {"ttl": "nan"}, SerializationError),
], ids=["cancelled", "expired now", "expired", "nonsense"])  # fmt: skip
@pytest.mark.parametrize("replies", [True, False], ids=["call_and_wait", "call"])
def test_what_nobody_wants_any_more_is_not_done(cancelled, headers, error, replies):
    called = []
    delivery = Delivery(pending(replies=replies, **headers), cancelled)
    dispatcher_of(lambda: called.append(1))(delivery)
    assert (called, delivery.last.headers[FAILED]) == ([], error.__name__)
    assert delivery.why.partition(":")[0] == ("" if replies or error is Cancelled else error.__name__)


@pytest.mark.parametrize(("ttl", "deadline"), [(2.5, 102.5), (None, None)])
def test_a_handler_sees_its_deadline(ttl, deadline):
    assert asked(lambda request: request.deadline, headers={"ttl": ttl}, clock=lambda: 100.0) == deadline


@job(delivery="at-most-once")
def once(): ...


@job(delivery="at-least-once")
def again(): ...


@pytest.mark.parametrize(("handler", "delivery", "data", "redeliverable"), [
    (lambda: None, "at-least-once", None, True), (lambda: None, "at-most-once", None, False),
    (once, "at-least-once", None, False), (again, "at-most-once", None, True),
    (once, "at-most-once", [1], True),
], ids=["default", "set", "of the job", "of the job too", "refused"])  # fmt: skip
def test_redelivery_is_forbidden_to_a_job_that_may_start_but_once(handler, delivery, data, redeliverable):
    handed = Delivery(pending(data))
    dispatcher_of(handler, delivery=delivery)(handed)
    assert handed.redeliverable is redeliverable


def test_a_job_whose_redelivery_cannot_be_forbidden_is_not_started():
    def refuse():
        raise BackendUnavailable("why")

    called, handed = [], Delivery(pending())
    handed.forbid_redelivery = refuse
    dispatcher_of(lambda: called.append(1), delivery="at-most-once")(handed)
    assert (called, handed.last.headers[FAILED]) == ([], "BackendUnavailable")


def test_the_current_request_is_known_while_its_handler_runs():
    def function(request):
        return current_request.get() is request

    async def coroutine(request):
        return current_request.get() is request

    assert [asked(function), asked(coroutine), current_request.get()] == [True, True, None]
    assert asked(coroutine, spawn=in_a_loop)


async def doubled(a):
    await asyncio.sleep(0)
    if a is None:
        raise KeyError("why")
    return 2 * a


def in_middleware(request, call_next):
    return call_next(request) + 1


@pytest.mark.parametrize("handler", [lambda request: doubled(request.data["a"]), lambda a: doubled(a)])
@pytest.mark.parametrize(("options", "result"), [
    ({}, 14), ({"spawn": in_a_loop}, 14), ({"middleware": [in_middleware]}, 15),
    ({"spawn": in_a_loop, "middleware": [in_middleware]}, 15),
], ids=["in a thread", "in a loop", "middleware", "a loop and middleware"])  # fmt: skip
def test_a_coroutine_that_a_plain_function_returns_is_awaited(handler, options, result):
    assert asked(handler, {"a": 7}, **options) == result
    with pytest.raises(RemoteError, match="KeyError: 'why'"):
        asked(handler, {"a": None}, **options)


def test_a_coroutine_that_a_plain_function_returns_holds_no_thread():
    spawned, delivery = [], Delivery(pending({"a": 7}))
    dispatcher = dispatcher_of(lambda a: doubled(a), spawn=lambda coroutine, _: spawned.append(coroutine))
    dispatcher(delivery)
    assert (delivery.ends, dispatcher.running(threads=True), dispatcher.running(threads=False)) == ([], 0, 1)
    asyncio.run(spawned.pop())
    assert (delivery.last is None, dispatcher.running(threads=False)) == (False, 0)


def test_hooks_are_told_once_of_a_coroutine_that_a_plain_function_returns():
    told, hooks = [], Hooks(asyncio.run)
    hooks.add("pre_call", lambda request: told.append("begun"))
    hooks.add("post_success", lambda request, result: told.append(result))
    assert asked(lambda a: doubled(a), {"a": 7}, hooks=hooks, spawn=in_a_loop) == 14
    assert told == ["begun", 14]


@pytest.mark.parametrize("handler", [wait, lambda request: wait(request)], ids=["coroutine", "plain"])
def test_without_a_loop_a_coroutine_is_refused(handler):
    reply = the_reply(dispatcher_of(handler, await_=None), pending())
    assert reply.headers[FAILED] == "SerializationError"


def test_secrets_stay_out_of_the_log(caplog):
    with pytest.raises(RemoteError):
        asked(raising(ValueError("why")), {"password": "hunter2"}, headers={"token": "t0ken"})
    assert "why" in caplog.text
    assert "hunter2" not in caplog.text
    assert "t0ken" not in caplog.text


def test_a_job_that_was_withdrawn_as_it_is_to_be_tried_again_is_given_up_and_its_caller_told():
    def fail():
        raise ConnectionError("not now")

    def withdrawn(seconds, message):
        raise Cancelled("it was withdrawn")

    handed = Delivery(pending())
    handed.postpone = withdrawn
    dispatcher_of(job(retries=1)(fail))(handed)
    assert handed.last.headers[FAILED] == "ConnectionError"
    assert handed.why.startswith("ConnectionError: not now\n")
