"""A duration is a number of seconds or a timedelta, wherever one is given, and refused in the same words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from threading import Thread
from types import ModuleType
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcClient, RpcReceiver, SettingsError, Unsupported, every, job, on
from rpc.backends import backend_from_url
from rpc.backends.amqp import AmqpBackend
from rpc.backends.redis import RedisBackend
from rpc.backends.rq import PythonRqBackend
from rpc.durations import LONGEST, seconds
from rpc.settings import load_settings

NOWHERE = "redis://127.0.0.1:1/0"
BAD: list[Any] = [
    float("inf"), float("-inf"), float("nan"), -1, -0.001, timedelta(seconds=-1), True, False, "5", b"5", "",
    date(2030, 1, 1), datetime(2030, 1, 1), time(1), [], {}, 1j, 10**400, 1e300, LONGEST * 2, timedelta.max,
    Decimal("NaN"), object(),
]  # fmt: skip
NO_NUMBER = "in seconds, a number or a timedelta"


@pytest.mark.parametrize("good", [0, 1, 0.5, timedelta(milliseconds=20), Fraction(1, 3), LONGEST], ids=repr)
def test_a_number_or_a_timedelta_is_one(good: Any) -> None:
    found = seconds(good, "it")
    assert type(found) is float
    assert found == (good.total_seconds() if isinstance(good, timedelta) else pytest.approx(float(good)))


@pytest.mark.parametrize("bad", [*BAD, None], ids=map(str, range(len(BAD) + 1)))
def test_what_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^it is {NO_NUMBER}, at least 0 and finite, not "):
        seconds(bad, "it")


def test_nothing_may_be_too_little() -> None:
    for nothing in 0, 0.0, timedelta():
        with pytest.raises(ValueError, match="more than 0 and finite"):
            seconds(nothing, "it", above=True)
    with pytest.raises(ValueError, match="at least 1 and"):
        seconds(0.5, "it", least=1)


CLIENTS = ["memory://durations", NOWHERE, f"rq+{NOWHERE}", "amqp://127.0.0.1:1"]
CALLS: list[Callable[[Any, Any], Any]] = [
    lambda client, bad: client.call_and_wait("work", timeout=bad),
    lambda client, bad: client.submit("work", timeout=bad),
    lambda client, bad: client.map("work", [[1]], timeout=bad),
    lambda client, bad: client.services.shop.work.options(timeout=bad)(),
    lambda client, bad: client.call("work", ttl=bad),
    lambda client, bad: client.call("work", delay=bad),
    lambda client, bad: client.describe(wait=bad),
    lambda client, bad: client.discover(wait=bad),
]
NAMES = ["call_and_wait", "submit", "map", "proxy", "ttl", "delay", "describe", "discover"]


@pytest.mark.parametrize("url", CLIENTS)
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_every_call_refuses_it_before_anything_is_sent(url: str, call: Any) -> None:
    """Nobody is there: what is sent would raise another error."""
    with RpcClient(backend=url) as client:
        for bad in BAD:
            with pytest.raises(ValueError, match=NO_NUMBER):
                _ = [*called] if hasattr(called := call(client, bad), "__next__") else called


@pytest.mark.parametrize("url", CLIENTS)
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_every_call_that_is_awaited_does(url: str, call: Any) -> None:
    async def made(client: AsyncRpcClient, bad: Any) -> None:
        called = call(client, bad)
        await (anext(called) if hasattr(called, "__anext__") else called)

    async def main() -> None:
        async with AsyncRpcClient(backend=url) as client:
            for bad in BAD:
                with pytest.raises(ValueError, match=NO_NUMBER):
                    await made(client, bad)

    asyncio.run(main())


@pytest.mark.parametrize("url", CLIENTS)
@pytest.mark.parametrize(
    "at", [date(2030, 1, 1), "2030-01-01", 5, True, datetime.max, datetime.min], ids=repr
)
def test_a_time_is_a_datetime_that_can_be_counted(url: str, at: Any) -> None:
    with RpcClient(backend=url) as client, pytest.raises((ValueError, Unsupported)) as raised:
        client.call("work", at=at)
    if raised.type is Unsupported:  # what is long past is now, where the backend can do that at all
        assert at == datetime.min


DECLARED: list[Callable[[Any], Any]] = [
    lambda bad: every(seconds=bad),
    lambda bad: job(backoff=bad),
    lambda bad: on("order", backoff=bad),
    lambda bad: RpcReceiver(jobs={"work": len}, backend="memory://durations", grace=bad),
    lambda bad: RpcClient(backend="memory://durations", timeout=bad),
    lambda bad: RedisBackend(NOWHERE, lease=bad),
    lambda bad: RedisBackend(NOWHERE, idempotency_window=bad),
    lambda bad: PythonRqBackend(NOWHERE, lease=bad),
    lambda bad: PythonRqBackend(NOWHERE, job_timeout=bad),
    lambda bad: PythonRqBackend(NOWHERE, result_ttl=bad),
    lambda bad: PythonRqBackend(NOWHERE, failure_ttl=bad),
    lambda bad: AmqpBackend(lease=bad),
    lambda bad: AmqpBackend(heartbeat=bad),
]


@pytest.mark.parametrize("declare", DECLARED, ids=map(str, range(len(DECLARED))))
def test_so_does_whatever_else_takes_one(declare: Any) -> None:
    for bad in BAD:
        with pytest.raises(ValueError, match=NO_NUMBER):
            declare(bad)
    declare(timedelta(seconds=5))


@pytest.mark.parametrize("key", ["RPC_TIMEOUT", "RPC_GRACE", "RPC_LEASE"])
def test_settings_name_the_key(key: str) -> None:
    for bad in BAD:
        module = ModuleType("shop")
        setattr(module, key, bad)
        with pytest.raises(SettingsError, match=f"shop: {key}: it is {NO_NUMBER}"):
            load_settings(module)
    setattr(module, key, timedelta(minutes=1))
    assert 60.0 in vars(load_settings(module)).values()


@pytest.mark.parametrize("option", [
    "redis://127.0.0.1:1?lease=", "redis://127.0.0.1:1?idempotency_window=", "amqp://127.0.0.1:1?heartbeat=",
    "rq+redis://127.0.0.1:1?lease=", "rq+redis://127.0.0.1:1?job_timeout=",
])  # fmt: skip
def test_urls_do_not_have_it_either(option: str) -> None:
    for bad in "inf", "nan", "-1", "1e300":
        with pytest.raises(SettingsError, match=NO_NUMBER):
            backend_from_url(option + bad)


def test_a_timedelta_is_as_good_as_seconds(any_url: str) -> None:
    """And the longest that is allowed is, wherever it comes to."""
    receiver = RpcReceiver(jobs={"inc": lambda x: x + 1}, backend=any_url, grace=timedelta(seconds=5))
    in_thread = Thread(target=receiver.run)
    in_thread.start()

    async def awaited() -> Any:
        async with AsyncRpcClient(backend=any_url) as client:
            return (await client.call_and_wait("inc", [1], timeout=timedelta(seconds=LONGEST))).data

    try:
        with RpcClient(backend=any_url, timeout=timedelta(seconds=30)) as client:
            assert client.call_and_wait("inc", [1]).data == 2
            for long in timedelta(seconds=20), LONGEST, 2_000_000_000, timedelta(days=60):
                assert client.call_and_wait("inc", [1], timeout=long).data == 2
                assert client.submit("inc", [1], timeout=long).result(30).data == 2
                client.call("inc", [1], ttl=long)
            longest = 49 * 86400 if any_url.startswith("amqp:") else LONGEST
            client.call("inc", [1], delay=longest)
            if longest < LONGEST:
                with pytest.raises(Unsupported, match="from 0 to 49 days"):
                    client.call("inc", [1], delay=LONGEST)
            client.call("inc", [1], delay=timedelta(milliseconds=1))
            assert client.call_and_wait("inc", [1]).data == 2
        assert asyncio.run(awaited()) == 2
    finally:
        receiver.stop()
        in_thread.join()
