"""What an AsyncRpcClient does, on any backend: tests that test_aio.py and backends/test_redis_aio.py run."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from rpc import (
    AsyncRpcClient,
    Cancelled,
    InvalidParams,
    MethodNotFound,
    QueueFull,
    RemoteError,
    Request,
    RpcClient,
    RpcReceiver,
    RpcTimeout,
    SerializationError,
    Unsupported,
)
from rpc.testing.site import PATIENCE, eventually


class Stage:
    """Receivers in threads, and clients, on one broker. They end with the test."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.url, self._stack = url, stack

    def serve(self, jobs: dict[str, Callable[..., Any]], **options: Any) -> None:
        receiver = RpcReceiver(jobs=jobs, **{"backend": self.url, **options})
        thread = threading.Thread(target=receiver.start)
        thread.start()

        def end() -> None:
            receiver.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()

        self._stack.callback(end)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[AsyncRpcClient]:
        async with AsyncRpcClient(**{"backend": self.url, "timeout": PATIENCE, **options}) as client:
            yield client

    def url_with(self, **options: Any) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{self.url}{'&' if '?' in self.url else '?'}{query}"

    def backend(self, **options: Any) -> Any:
        """What a client of a bounded queue is given."""
        return self.url_with(**options)

    def marks(self) -> list[Any]:
        """What the job `mark` was called with while nobody served it, now that somebody does."""
        marks: list[Any] = []
        self.serve({"mark": marks.append})
        with RpcClient(backend=self.url, timeout=PATIENCE, queue="low") as client:
            client.call_and_wait("mark", ["last"])
        return marks[:-1]

    def waiting(self) -> int:
        """How many messages wait in the queue `default` that somebody wants."""
        raise NotImplementedError


def run(main: Callable[[], Awaitable[Any]], new_loop: Callable[[], Any] = asyncio.new_event_loop) -> Any:
    """Run it in a loop of its own. It leaves no task behind, and nothing that the loop complains about."""
    complaints: list[Any] = []

    async def watched() -> Any:
        result = await asyncio.wait_for(main(), 2 * PATIENCE)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return result

    loop = new_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        result = loop.run_until_complete(watched())
        gc.collect()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert not complaints, complaints
    return result


async def until(check: Callable[[], Any], what: Callable[[], Any] = lambda: "it never happened") -> Any:
    """`eventually`, in an event loop."""
    end = time.monotonic() + PATIENCE
    while not (result := check()):
        assert time.monotonic() < end, what()
        await asyncio.sleep(0.002)
    return result


def double(number: int) -> int:
    return number * 2


def echo(value: Any) -> Any:
    return value


def fail() -> None:
    raise KeyError("a")


WAYS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {}


def way(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    WAYS[function.__name__.replace("by_", "")] = function
    return function


@way
async def by_call_and_wait(client: AsyncRpcClient, name: str, data: Any = None, **options: Any) -> Any:
    return (await client.call_and_wait(name, data, **options)).data


@way
async def by_submit(client: AsyncRpcClient, name: str, data: Any = None, **options: Any) -> Any:
    return (await client.submit(name, data, **options)).data


@way
async def by_map(client: AsyncRpcClient, name: str, data: Any = None, **options: Any) -> Any:
    [answer] = [response.data async for response in client.map(name, [data], **options)]
    return answer


every_way = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


class Calls:
    """On every backend."""

    # Answers.

    @every_way
    def test_a_call_is_answered(self, stage: Stage, ask: Any) -> None:
        async def main() -> None:
            async with stage.client() as client:
                assert await ask(client, "double", [21]) == 42

        stage.serve({"double": double})
        run(main)

    def test_the_response_has_the_ids_that_the_handler_saw(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                response = await client.call_and_wait("ids")
                assert [response.id, response.response_key] == response.data

        stage.serve({"ids": lambda request: [request.id, request.response_key]})
        run(main)

    @every_way
    @pytest.mark.parametrize(("name", "data", "error", "text"), [
        ("fail", None, RemoteError, r"^KeyError: 'a'$"), ("nosuch", None, MethodNotFound, "'nosuch'"),
        ("double", ["2"], InvalidParams, r"^number: Expected `int`, got `str`$"),
        ("odd", None, SerializationError, "result cannot be encoded"),
    ], ids=["raises", "unknown", "arguments", "result"])  # fmt: skip
    def test_each_way_to_fail_has_its_own_error(
        self, stage: Stage, ask: Any, name: str, data: Any, error: Any, text: str
    ) -> None:
        async def main() -> None:
            async with stage.client() as client:
                with pytest.raises(error, match=text):
                    await ask(client, name, data)

        stage.serve({"fail": fail, "double": double, "odd": lambda: print})
        run(main)

    @pytest.mark.parametrize(("name", "data", "error"), [
        ("mark", {"a": {print}}, SerializationError), ("mark", "text", SerializationError),
        ("mark", ["x" * 1000], SerializationError), ("../mark", None, ValueError),
    ], ids=["set of functions", "text", "large", "name"])  # fmt: skip
    def test_what_cannot_be_sent_is_refused_before_anything_is(
        self, stage: Stage, name: str, data: Any, error: Any
    ) -> None:
        async def main() -> None:
            async with stage.client(max_message_bytes=1000) as client:
                with pytest.raises(error):
                    await client.call(name, data)
                for ask in WAYS.values():
                    with pytest.raises(error):
                        await ask(client, name, data)
                with pytest.raises(error):  # at once
                    client.submit(name, data)

        run(main)
        assert stage.waiting() == 0

    def test_large_bodies_go_both_ways(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                for size in 10, 70_000, 1_000_000:
                    text = "ä" * size
                    assert (await client.call_and_wait("echo", [text])).data == text
                several = [client.submit("echo", [letter * 1_000_000]) for letter in "abcdefgh"]
                await asyncio.gather(client.call_and_wait("echo", [1]), client.call("echo", ["x" * 100_000]))
                assert [(await each).data[-1] for each in several] == list("abcdefgh")

        stage.serve({"echo": echo}, concurrency=2)
        run(main)

    def test_each_of_many_calls_gets_its_own_answer(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                asked = [client.call_and_wait("double", [number]) for number in range(300)]
                assert [answer.data for answer in await asyncio.gather(*asked)] == list(range(0, 600, 2))

        stage.serve({"double": double}, concurrency=3)
        run(main)

    def test_queues_are_served_in_the_order_of_their_priority(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                for name in "low", "default", "high", "other":
                    await client.call("mark", [name], queue=name)

        run(main)
        assert stage.marks() == ["high", "default", "low"]

    def test_a_call_that_is_not_waited_for_is_done_once(self, stage: Stage) -> None:
        async def main() -> list[str]:
            async with stage.client() as client:
                return list(await asyncio.gather(*(client.call("mark", [number]) for number in range(100))))

        ids = run(main)
        assert len(set(ids)) == 100
        assert sorted(stage.marks()) == list(range(100))

    def test_calls_that_follow_one_another_keep_their_order(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                for number in range(30):
                    await client.call("mark", [number])

        run(main)
        assert stage.marks() == list(range(30))

    @pytest.mark.parametrize("seconds", [None, 60, 1])
    def test_a_coroutine_handler_may_call(self, stage: Stage, seconds: float | None) -> None:
        async def main() -> None:
            async with stage.client() as client:
                ends, nested_ends = (await client.call_and_wait("outer")).data
                assert nested_ends < ends

        async def outer(request: Request) -> Any:
            async with stage.client() as client:
                nested = await client.call_and_wait("inner", timeout=seconds)
                others = [client.submit("inner", timeout=seconds) for _ in range(3)]
                return [request.deadline, max(nested.data, *[(await each).data for each in others])]

        stage.serve({"outer": outer, "inner": lambda request: request.deadline}, concurrency=2)
        run(main)

    # Time.

    @every_way
    @pytest.mark.parametrize("timeout", [0.0, 0.02, 0.3, 1.2])
    def test_a_call_that_nobody_answers_ends_at_its_timeout(
        self, stage: Stage, ask: Any, timeout: float
    ) -> None:
        async def main() -> None:
            async with stage.client() as client:
                await client.call("other", queue="other")  # connected
                start = time.monotonic()
                why = f"'mark' was not answered within {timeout:g} s: no worker serves queue"
                with pytest.raises(RpcTimeout, match=why):
                    await ask(client, "mark", ["late"], timeout=timeout)
                assert timeout <= time.monotonic() - start < timeout + PATIENCE

        run(main)
        assert stage.marks() == []

    def test_of_many_timeouts_each_is_its_own(self, stage: Stage) -> None:
        async def late(client: AsyncRpcClient, timeout: float) -> None:
            start = time.monotonic()
            with pytest.raises(RpcTimeout):
                await client.call_and_wait("mark", [timeout], timeout=timeout)
            assert timeout <= time.monotonic() - start < timeout + PATIENCE / 4

        async def main() -> None:
            async with stage.client() as client:
                await asyncio.gather(*(late(client, 0.02 * number) for number in range(1, 60)))

        run(main)
        assert stage.marks() == []

    def test_without_a_timeout_it_waits(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client, stage.client(timeout=None) as patient:
                waiting = client.submit("double", [1], timeout=None), patient.submit("double", [2])
                with pytest.raises(RpcTimeout):
                    await client.call_and_wait("double", [3], timeout=0.2)
                assert not any(each.done() for each in waiting)
                stage.serve({"double": double, "deadline": lambda request: request.deadline})
                assert [(await each).data for each in waiting] == [2, 4]
                assert (await patient.call_and_wait("deadline")).data is None

        run(main)

    # Tasks.

    def test_what_is_submitted_is_a_future_like_others(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                called: list[Any] = []
                futures = [client.submit("double", [number]) for number in range(20)]
                futures[0].add_done_callback(called.append)
                assert all(asyncio.isfuture(each) and not each.done() for each in futures)
                gathered = await asyncio.gather(*futures[:10])
                assert [response.data for response in gathered] == list(range(0, 20, 2))
                completed = {(await each).data for each in asyncio.as_completed(futures[10:])}
                assert completed == set(range(20, 40, 2))
                done, pending = await asyncio.wait(futures)
                assert not pending
                assert called == futures[:1]
                assert not any(each.cancel() for each in done)

        stage.serve({"double": double})
        run(main)

    @pytest.mark.parametrize("how", ["cancel", "wait_for", "gather"])
    def test_a_task_that_is_cancelled_withdraws_its_job(self, stage: Stage, how: str) -> None:
        async def main() -> None:
            async with stage.client() as client:
                calls = [
                    asyncio.ensure_future(client.call_and_wait("mark", ["withdrawn"])),
                    client.submit("mark", ["withdrawn"]),
                ]
                await until(lambda: stage.waiting() == 2)
                if how == "gather":
                    gathering = asyncio.gather(*calls)
                    gathering.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await gathering
                for each in calls:
                    if how == "wait_for":
                        with pytest.raises(asyncio.TimeoutError):
                            await asyncio.wait_for(each, 0.01)
                    each.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await each

        run(main)
        assert stage.marks() == []

    def test_a_task_that_is_cancelled_at_once_calls_nothing(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                for turns in range(5):
                    future = client.submit("mark", ["withdrawn"])
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    future.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await future

        run(main)
        assert stage.marks() == []

    @pytest.mark.parametrize("colour", ["function", "coroutine"])
    def test_a_running_handler_learns_that_its_caller_left(self, stage: Stage, colour: str) -> None:
        started, told = threading.Event(), threading.Event()

        def function(request: Request) -> None:
            started.set()
            eventually(lambda: request.cancelled)
            told.set()

        async def coroutine() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.set()
                raise

        async def main() -> None:
            async with stage.client() as client:
                future = client.submit("work")
                await until(started.is_set)
                future.cancel()
                await until(told.is_set)

        stage.serve({"work": function if colour == "function" else coroutine})
        run(main)

    # map.

    def test_responses_are_mapped_in_order(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                numbers = [r.data async for r in client.map("later", ([n] for n in range(60)), window=7)]
                assert numbers == list(range(60))
                assert [r async for r in client.map("later", [])] == []

        def later(number: int) -> int:
            time.sleep(0.002 * (number % 3))
            return number

        stage.serve({"later": later}, concurrency=3)
        run(main)

    @pytest.mark.parametrize("window", [1, 5])
    def test_no_more_than_the_window_is_taken_from_the_iterable(self, stage: Stage, window: int) -> None:
        taken: list[int] = []

        def numbers() -> Iterator[list[int]]:
            for number in range(20):
                taken.append(number)
                yield [number]

        async def main() -> None:
            async with stage.client() as client:
                count = 0
                mapping = client.map("double", numbers(), window=window)
                assert taken == []
                async for response in mapping:
                    assert response.data == 2 * count
                    assert len(taken) <= count + window
                    count += 1
                assert count == 20

        stage.serve({"double": double})
        run(main)

    def test_the_first_error_ends_a_map_and_withdraws_the_rest(self, stage: Stage) -> None:
        begun: set[int] = set()
        told: set[int] = set()

        def work(request: Request) -> int:
            number = int(request.data[0])
            if number == 2:
                raise ValueError("two")
            if number > 2:
                begun.add(number)
                eventually(lambda: request.cancelled)
                told.add(number)
            return number

        async def main() -> list[int]:
            async with stage.client() as client:
                got: list[int] = []
                with pytest.raises(RemoteError, match="two"):  # noqa: PT012
                    async for response in client.map("work", [[n] for n in range(100)], window=10):
                        got.append(response.data)
                await until(lambda: stage.waiting() == 0 and begun == told, lambda: begun ^ told)
                return got

        stage.serve({"work": work}, concurrency=12)
        assert run(main) == [0, 1]
        assert max(begun | {2}) <= 11

    def test_what_an_iterable_raises_ends_a_map_and_withdraws_the_rest(self, stage: Stage) -> None:
        def broken() -> Iterator[list[int]]:
            yield [1]
            yield [2]
            raise ZeroDivisionError

        async def main() -> None:
            async with stage.client() as client:
                with pytest.raises(ZeroDivisionError):
                    [response async for response in client.map("mark", broken())]

        run(main)
        assert stage.marks() == []

    def test_a_map_whose_calls_all_fail_is_over_without_a_complaint(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                with pytest.raises(MethodNotFound):
                    [response async for response in client.map("nosuch", [[n] for n in range(50)])]
                await client.call_and_wait("double", [1])

        stage.serve({"double": double})
        run(main)

    def test_closing_a_map_withdraws_what_is_under_way(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                stage.serve({"double": double}, queues=["other"])
                mapping: Any = client.map("double", [[n] for n in range(100)], window=10, queue="other")
                assert (await mapping.__anext__()).data == 0
                await mapping.aclose()
                unanswered: Any = client.map("mark", [[n] for n in range(100)], window=10)
                step = asyncio.ensure_future(unanswered.__anext__())
                await until(lambda: stage.waiting() == 10)
                step.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await step
                await unanswered.aclose()

        run(main)
        assert stage.marks() == []

    # Loops.

    def test_one_client_serves_several_loops_one_after_the_other(self, stage: Stage) -> None:
        client = AsyncRpcClient(backend=stage.url, timeout=PATIENCE)

        async def main() -> None:
            assert (await client.call_and_wait("double", [1])).data == 2
            assert [r.data async for r in client.map("double", [[1], [2], [3]])] == [2, 4, 6]

        async def last() -> None:
            await main()
            await client.close()

        stage.serve({"double": double})
        for _ in range(4):
            asyncio.run(main())  # what a program does that never closes it
        run(last)
        run(last)

    def test_one_client_serves_several_loops_at_a_time(self, stage: Stage) -> None:
        client, failures = AsyncRpcClient(backend=stage.url, timeout=PATIENCE), []

        async def ask(who: int) -> None:
            for turn in range(3):
                asked = [client.call_and_wait("echo", [[who, turn, number]]) for number in range(8)]
                answers = [answer.data for answer in await asyncio.gather(*asked)]
                assert answers == [[who, turn, number] for number in range(8)]
            await client.close()

        def loop(who: int) -> None:
            try:
                for _ in range(3):
                    asyncio.run(ask(who))
            except BaseException as error:
                failures.append(error)

        stage.serve({"echo": echo}, concurrency=3)
        threads = [threading.Thread(target=loop, args=[who]) for who in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_to_close_it_in_one_loop_is_nothing_to_another(self, stage: Stage) -> None:
        async def main() -> None:
            client = AsyncRpcClient(backend=stage.url, timeout=PATIENCE)
            waiting = client.submit("double", [4])
            await until(lambda: stage.waiting() == 1)
            await asyncio.to_thread(asyncio.run, client.close())
            stage.serve({"double": double})
            assert (await waiting).data == 8
            await client.close()

        run(main)

    def test_it_works_in_uvloop(self, stage: Stage) -> None:
        uvloop = pytest.importorskip("uvloop", reason="needs uvloop")

        async def main() -> None:
            async with stage.client() as client:
                asked = [client.call_and_wait("echo", ["x" * size]) for size in (1, 10**5, 10**6)]
                assert [len(answer.data) for answer in await asyncio.gather(*asked)] == [1, 10**5, 10**6]
                with pytest.raises(RpcTimeout):
                    await client.call_and_wait("echo", [1], timeout=0.1, queue="nobody")
                future = client.submit("echo", [1], queue="nobody")
                await asyncio.sleep(0)
                future.cancel()
                assert [r.data async for r in client.map("echo", [[1], [2]])] == [1, 2]

        stage.serve({"echo": echo})
        run(main, uvloop.new_event_loop)

    # Ends.

    def test_calls_that_wait_when_it_is_closed_are_told_and_withdrawn(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                calls = [asyncio.ensure_future(client.call_and_wait("mark", [1])) for _ in range(3)]
                futures = [client.submit("mark", [1]) for _ in range(3)]
                await until(lambda: stage.waiting() == 6)
                started = time.monotonic()
                await client.close()
                for each in calls:
                    with pytest.raises(Cancelled):
                        await each
                for each in futures:
                    with pytest.raises((asyncio.CancelledError, Cancelled)):
                        await each
                assert time.monotonic() - started < PATIENCE / 2
                await client.close()

        run(main)
        assert stage.marks() == []

    @pytest.mark.parametrize("how", ["cancelled", "timed out"])
    def test_what_is_withdrawn_right_before_it_is_closed_is_withdrawn(self, stage: Stage, how: str) -> None:
        async def main() -> None:
            async with stage.client() as client:
                future = client.submit("mark", [1], timeout=0.2 if how == "timed out" else None)
                await until(lambda: stage.waiting() == 1)
                if how == "cancelled":
                    future.cancel()
                await asyncio.wait([future])
                assert how == "cancelled" or isinstance(future.exception(), RpcTimeout)

        run(main)
        assert stage.marks() == []

    def test_what_was_submitted_just_now_ends_when_it_is_closed(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                futures = [client.submit("mark", [1]) for _ in range(3)]
                started = time.monotonic()
                await client.close()
                for each in futures:
                    with pytest.raises((asyncio.CancelledError, Cancelled)):
                        await each
                assert time.monotonic() - started < PATIENCE / 2

        run(main)
        assert stage.marks() == []

    def test_it_can_be_used_again_after_it_was_closed(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                for _ in range(3):
                    assert (await client.call_and_wait("double", [2])).data == 4
                    await client.close()

        stage.serve({"double": double})
        run(main)

    def test_a_client_that_never_called_closes(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                await client.close()

        run(main)


class SpecialCalls:
    """On backends with the features `delay` and `idempotency`, and with bounded queues."""

    # Later, and only once.

    @pytest.mark.parametrize("how", ["delay", "at"])
    def test_it_is_done_later(self, stage: Stage, how: str) -> None:
        came: list[str] = []

        async def main() -> None:
            async with stage.client() as client:
                when: Any = (
                    {"delay": 0.3} if how == "delay" else {"at": datetime.now() + timedelta(seconds=0.3)}
                )
                start = time.monotonic()
                await client.call("note", ["later"], **when)
                await client.call("note", ["now"])
                await until(lambda: came == ["now", "later"])
                assert time.monotonic() - start >= 0.25

        stage.serve({"note": came.append})
        run(main)

    @pytest.mark.parametrize("options", [
        {"delay": -1}, {"delay": 5, "ttl": 5}, {"delay": 1, "at": datetime.now()},
    ], ids=["negative", "ttl", "both"])  # fmt: skip
    def test_delays_that_make_no_sense_are_refused(self, stage: Stage, options: Any) -> None:
        async def main() -> None:
            async with stage.client() as client:
                with pytest.raises(ValueError, match="delay"):
                    await client.call("note", **options)

        run(main)
        assert stage.waiting() == 0

    def test_a_key_is_done_once_and_answers_all(self, stage: Stage) -> None:
        done: list[int] = []

        def pay(cents: int) -> int:
            done.append(cents)
            return cents

        async def main() -> None:
            async with stage.client() as client:
                await client.call("pay", [1], idempotency_key="order 1")
                futures = [client.submit("pay", [n], idempotency_key="order 1") for n in range(2, 20)]
                await until(lambda: stage.waiting() == 1)
                stage.serve({"pay": pay}, concurrency=3)
                assert {(await each).data for each in futures} == {1}
                assert (await client.call_and_wait("pay", [20], idempotency_key="order 1")).data == 1

        run(main)
        assert done == [1]

    def test_a_key_that_is_cancelled_is_not_withdrawn(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client() as client:
                future = client.submit("mark", ["kept"], idempotency_key="k")
                await until(lambda: stage.waiting() == 1)
                future.cancel()
                await asyncio.wait([future])

        run(main)
        assert stage.marks() == ["kept"]

    # Room.

    @every_way
    def test_where_there_is_no_room_it_is_told_at_once(self, stage: Stage, ask: Any) -> None:
        async def main() -> None:
            async with stage.client(backend=stage.backend(max_length=1)) as client:
                await client.call("mark", ["first"])
                for refused in ask(client, "mark", ["no"]), client.call("mark", ["no"]):
                    with pytest.raises(QueueFull, match="max_length"):
                        await refused

        run(main)
        assert stage.marks() == ["first"]

    @every_way
    def test_it_may_wait_until_there_is_room(self, stage: Stage, ask: Any) -> None:
        came: list[str] = []

        async def main() -> None:
            async with stage.client(backend=stage.backend(max_length=1), when_full="wait") as client:
                await client.call("note", ["first"])
                waiting = asyncio.ensure_future(ask(client, "note", ["second"]))
                telling = asyncio.ensure_future(client.call("note", ["third"]))
                done, _ = await asyncio.wait([waiting, telling], timeout=0.3)
                assert not done
                stage.serve({"note": came.append})
                await asyncio.gather(waiting, telling)
                await until(lambda: len(came) == 3)

        run(main)
        assert came[0] == "first"
        assert sorted(came) == ["first", "second", "third"]

    @every_way
    def test_who_waits_in_vain_for_room_is_told_when_the_time_is_up(self, stage: Stage, ask: Any) -> None:
        async def main() -> None:
            bounded = stage.backend(max_length=1)
            async with stage.client(backend=bounded, when_full="wait", timeout=0.4) as client:
                await client.call("mark", ["first"])
                start = time.monotonic()
                with pytest.raises(QueueFull):
                    await ask(client, "mark", ["no"])
                assert 0.3 < time.monotonic() - start < PATIENCE

        run(main)
        assert stage.marks() == ["first"]

    def test_who_waits_for_room_may_be_cancelled(self, stage: Stage) -> None:
        async def main() -> None:
            async with stage.client(backend=stage.backend(max_length=1), when_full="wait") as client:
                await client.call("mark", ["first"])
                future = client.submit("mark", ["no"])
                await asyncio.wait([future], timeout=0.1)
                future.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await future

        run(main)
        assert stage.marks() == ["first"]


def signatures(kind: type) -> dict[str, list[tuple[str, Any, Any, Any]]]:
    """The public methods of a client: name, kind, default and annotation of each parameter."""
    found = {}
    for name, member in inspect.getmembers(kind, inspect.isroutine):
        if not name.startswith("_") or name == "__init__":
            parameters = inspect.signature(member).parameters.values()
            found[name] = [(each.name, each.kind, each.default, each.annotation) for each in parameters]
    return found


NOWHERE = "amqp://127.0.0.1:1/"


def refuse_what_rabbitmq_cannot_do() -> None:
    async def main() -> None:
        async with AsyncRpcClient(backend=NOWHERE) as client:
            with pytest.raises(Unsupported, match="and memory: have it"):
                await client.call("work", idempotency_key="k")
            with pytest.raises(Unsupported, match="and memory: have it; RPC_STORE"):
                await client.call("work", keep=60)
            with pytest.raises(Unsupported, match="and memory: have it"):
                await client.call_and_wait("work", idempotency_key="k")
            with pytest.raises(Unsupported, match="and memory: have it"):
                client.submit("work", idempotency_key="k")

    run(main)
