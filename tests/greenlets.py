"""A worker and its callers as greenlets of one process, until it is told to stop:
`python -m tests.greenlets URL`."""

from gevent import monkey

monkey.patch_all()

import asyncio  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import AsyncGenerator, Callable, Generator  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from rpc import RpcClient, RpcReceiver, RpcTimeout  # noqa: E402

CALLERS = 20
url = sys.argv[1]
asleep, go_on = threading.Semaphore(0), threading.Event()


def inc(number: int) -> int:
    return number + 1


async def ainc(number: int) -> int:
    await asyncio.sleep(0.01)
    return number + 1


def meet(number: int) -> int:
    """Returns once all of them are here."""
    asleep.release()
    assert go_on.wait(30)
    return number


async def spin() -> str:
    """Always has something to do."""
    while not go_on.is_set():  # noqa: ASYNC110 - that is what it is for
        await asyncio.sleep(0)
    return "spun"


async def calls_and_waits() -> int:
    """Has its event loop wait for another one: that is no good manners, and has to work."""
    with RpcClient(backend=url, queue="inner") as client:
        got: int = client.submit("inc", [1]).result(30).data
    await asyncio.sleep(0)
    return got


def count(most: int) -> Generator[int, Any, str]:
    yield from range(most)
    return "all"


async def acount(most: int) -> AsyncGenerator[int, Any]:
    for number in range(most):
        yield number


def echo(value: Any = None) -> Generator[Any, Any, None]:
    while True:
        try:
            value = yield value
        except TypeError as error:
            value = repr(error)


def total(request: Any) -> int:
    return sum(request.items)


JOBS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (inc, ainc, meet, spin, calls_and_waits, count, acount, echo, total)
}


def no_loop_runs_here() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AssertionError("asyncio takes this greenlet for one with an event loop")


def call(client: RpcClient) -> None:
    callers = [gevent.spawn(client.call_and_wait, "meet", [number]) for number in range(CALLERS)]
    for _ in callers:
        assert asleep.acquire(timeout=30), "handlers do not run while others wait"
    spinning = client.submit("spin")
    for job in "inc", "ainc":
        assert client.call_and_wait(job, [1]).data == 2
    try:
        client.call_and_wait("meet", [0], timeout=0.1)
    except RpcTimeout:
        pass
    else:
        raise AssertionError("it was answered")
    go_on.set()
    gevent.joinall(callers, raise_error=True)
    assert [caller.value.data for caller in callers] == [*range(CALLERS)]
    assert spinning.result(30).data == "spun"
    futures = [client.submit("inc", [number]) for number in range(CALLERS)]
    no_loop_runs_here()
    assert [future.result(30).data for future in futures] == [*range(1, CALLERS + 1)]
    assert client.call_and_wait("calls_and_waits").data == 2


def stream(client: RpcClient) -> None:
    counted = client.stream("count", [100], window=10)
    assert [*counted] == [*range(100)]
    assert counted.value == "all"
    assert [*client.stream("acount", [100], window=10)] == [*range(100)]
    with client.stream("echo", [1]) as talk:
        assert [next(talk), talk.send(2), talk.throw(TypeError("spam"))] == [1, 2, "TypeError('spam')"]
    upload = client.stream("total", items=range(100))
    assert [*upload] == []
    assert upload.value == 4950
    no_loop_runs_here()


def main() -> None:
    failures: list[BaseException] = []
    other_is_there = threading.Event()
    others = RpcReceiver(jobs={"inc": inc}, backend=url, queues=["inner"])
    inner = gevent.spawn(others.run, arrived=other_is_there.set)

    def calls() -> None:
        try:
            assert other_is_there.wait(30)
            with RpcClient(backend=url, timeout=30) as client:
                for what in call, stream:
                    what(client)
        except BaseException as error:  # raised again below
            failures.append(error)
        others.stop()
        os.kill(os.getpid(), signal.SIGTERM)

    receiver = RpcReceiver(jobs=JOBS, backend=url, concurrency=CALLERS + 4, coroutines=10)
    began = threading.Event()
    calling = gevent.spawn(lambda: began.wait(30) and calls())
    receiver.run(arrived=began.set)
    calling.join()
    inner.join()
    if failures:
        raise failures[0]
    print("stopped")


if __name__ == "__main__":
    main()
