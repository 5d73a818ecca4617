"""Jobs that nobody waits for: what is known of them, what can be done to them, and where they end."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import redis

from rpc import (
    AsyncRpcClient,
    Cancelled,
    InvalidParams,
    RemoteError,
    RpcClient,
    RpcError,
    RpcReceiver,
    Unsupported,
    job,
)
from rpc.backends import backend_from_url
from rpc.job_info import JobInfo
from rpc.settings import Settings
from rpc.testing.site import eventually


class Shop:
    """Jobs, some of which wait for the test."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), []

    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self, text: str = "no") -> None:
        if not self.go.is_set():
            raise ValueError(text)

    def hold(self) -> str:
        self.go.wait(30)
        return "held"

    async def sleep(self) -> None:
        await asyncio.sleep(60)

    def respond(self, request: Any) -> int:
        request.respond({"said": request.data["x"]})
        return 5

    @property
    def jobs(self) -> dict[str, Any]:
        def respond(request: Any) -> int:
            return self.respond(request)

        return {
            "add": self.add, "fail": self.fail, "hold": self.hold, "sleep": self.sleep,
            "respond": respond,
        }  # fmt: skip


@pytest.fixture
def shop():
    shop = Shop()
    yield shop
    shop.go.set()


@pytest.fixture
def client(any_url):
    with RpcClient(backend=any_url) as client:
        yield client


@pytest.fixture
def serve(any_url, shop):
    running = []

    def serve(jobs: Any = None, **options: Any) -> RpcReceiver:
        settings = Settings(**{"unknown_for": 0.0, **options})
        receiver = RpcReceiver(jobs=jobs or shop.jobs, backend=any_url, settings=settings, concurrency=2)
        thread = threading.Thread(target=receiver.run)
        thread.start()
        running.append((receiver, thread))
        return receiver

    yield serve
    shop.go.set()
    for receiver, thread in running:
        receiver.stop()
        thread.join(30)
        assert not thread.is_alive()


def needs(client: RpcClient, *features: str) -> None:
    for feature in features:
        if feature not in client.backend.features:
            pytest.skip(f"{type(client.backend).__name__} has no feature {feature!r}")


def in_state(client: RpcClient, id: str, state: str) -> JobInfo:
    eventually(lambda: client.job(id).state == state, f"not {state}: {client.job(id)}")
    return client.job(id)


def letters(client: RpcClient) -> list[Any]:
    return client.backend.dead_letters("default")


@pytest.mark.parametrize(("name", "data", "options", "why"), [
    ("fail", {"text": "a\nb"}, {}, "ValueError: a b"), ("nosuch", {}, {}, "MethodNotFound: "),
    ("add", {"a": 1}, {}, "InvalidParams: "), ("add", {"a": "x", "b": 1}, {}, "InvalidParams: "),
    ("add", {"a": 1, "b": 2}, {"ttl": 0.05}, "RpcTimeout: it expired"),
], ids=["failed", "unknown", "wrong arguments", "wrong types", "expired"])  # fmt: skip
def test_what_fails_where_nobody_waits_is_a_dead_letter(client, serve, name, data, options, why):
    sent = time.monotonic()
    id = client.call(name, data, **options)
    if options:
        eventually(lambda: time.monotonic() > sent + options["ttl"])
    serve()
    [letter] = eventually(lambda: letters(client))
    assert (letter.id, letter.why[: len(why)]) == (id, why)
    assert ("in fail" in letter.traceback) == (name == "fail")


def test_what_fails_where_somebody_waits_is_none(client, serve):
    serve()
    for name in "fail", "nosuch":
        with pytest.raises(RpcError):
            client.call_and_wait(name)
    client.call("fail")
    assert len(eventually(lambda: letters(client))) == 1


def test_a_dead_letter_is_done_when_it_is_retried(client, serve, shop):
    needs(client, "inspection", "results")
    serve()
    id = client.call("fail", keep=60)
    dead = in_state(client, id, "dead")
    assert (dead.error, dead.name, dead.queue) == ("ValueError: no", "fail", "default")
    assert "in fail" in dead.traceback
    with pytest.raises(RemoteError, match="no"):
        _ = dead.result
    shop.go.set()
    assert dead.retry()
    assert in_state(client, id, "succeeded").result is None
    assert not client.retry(id)


@pytest.mark.parametrize(
    ("name", "data", "error", "text"),
    [("fail", {}, RemoteError, "ValueError: no"), ("add", {"a": "x", "b": 1}, InvalidParams, "a: ")],
)
def test_what_is_dead_has_its_error_though_nothing_is_kept(client, serve, name, data, error, text):
    needs(client, "inspection")
    serve()
    id = client.call(name, data)
    with pytest.raises(error, match=text) as raised:
        _ = in_state(client, id, "dead").result
    assert type(raised.value) is error


def test_a_death_is_retried_once(client, serve):
    """Whoever knows of the first one alone has not seen why it died again."""
    serve()
    client.call("fail")
    [first] = eventually(lambda: letters(client))
    assert client.backend.revive(first)
    [second] = eventually(lambda: [each for each in letters(client) if each.at != first.at])
    assert not client.backend.revive(first)
    assert not client.backend.drop(first)
    assert [each.at for each in letters(client)] == [second.at]
    assert client.backend.drop(second)


def test_a_setting_says_that_it_is_kept_what_was_cancelled(any_url):
    with RpcClient(backend=any_url, settings=Settings(keep_results=60.0)) as client:
        needs(client, "inspection", "results")
        id = client.call("add", [1, 2])
        assert client.cancel(id)
        assert client.job(id).state == "cancelled"


def test_a_worker_that_does_not_know_a_job_passes_it_on(client, serve, caplog):
    id = client.call("newer", {"a": 1, "b": 2})
    done = []
    older = serve(unknown_for=60.0)
    eventually(lambda: "refused 'newer'" in caplog.text)
    if "inspection" in client.backend.features:
        in_state(client, id, "scheduled")
    serve({"newer": lambda a, b: done.append(a + b)}, unknown_for=60.0)
    older.stop()  # or it might get it each time
    eventually(lambda: done == [3])
    assert not letters(client)


def test_an_unknown_job_is_not_passed_on_beyond_its_time(client, serve):
    serve(unknown_for=60.0)
    assert client.call_and_wait("add", [1, 2]).data == 3
    id = client.call("nosuch", ttl=0.9)  # less than the shortest pause
    [letter] = eventually(lambda: letters(client))
    assert (letter.id, letter.why[:14]) == (id, "MethodNotFound")


def test_what_has_expired_says_so_and_is_done_when_it_is_retried(client, any_url, redis_url, serve):
    with RpcClient(backend=any_url, settings=Settings(store=redis_url)) as client:
        id = client.call("add", {"a": 1, "b": 2}, ttl=0.05, keep=60)
        time.sleep(0.1)  # it is time itself that is tested
        serve(store=redis_url)
        info = in_state(client, id, "expired")
        assert (info.error, info.name) == ("RpcTimeout: it expired before a worker came to it", "add")
        assert [each.dead for each in client.queues() if each.queue == "default"] == [1]
        assert info.retry()
        assert in_state(client, id, "succeeded").result == 3


def test_whoever_waits_for_an_unknown_job_is_told_at_once(client, serve):
    serve(unknown_for=60.0)
    with pytest.raises(RpcError, match="nosuch"):
        client.call_and_wait("nosuch")


@pytest.mark.parametrize(("name", "data", "result"), [
    ("add", {"a": 1, "b": 2}, 3), ("respond", {"x": 1}, {"said": 1}), ("add", [20, 2], 22),
])  # fmt: skip
def test_an_outcome_is_kept(client, serve, name, data, result):
    needs(client, "results")
    receiver = serve()
    id = client.call(name, data, keep=60)
    info = in_state(client, id, "succeeded")
    assert (info.result, info.name, info.queue, info.attempt) == (result, name, "default", 1)
    assert info.worker == receiver.id
    assert info.took is not None
    assert info.at
    assert 0 <= info.took < 30
    assert abs(info.at.timestamp() - time.time()) < 60


def test_jobs_say_themselves_that_their_outcome_is_kept(client, serve):
    needs(client, "results")
    serve({"kept": job(keep=60)(lambda: 7)})
    assert in_state(client, client.call("kept"), "succeeded").result == 7
    assert client.job(client.call_and_wait("kept").id).state == "unknown", "somebody waited for it"


def test_a_setting_says_that_all_outcomes_are_kept(client, serve):
    needs(client, "results")
    serve(keep_results=60.0)
    assert in_state(client, client.call("add", [1, 2]), "succeeded").result == 3


def test_nothing_is_kept_unless_somebody_says_so(client, serve):
    needs(client, "inspection")
    serve()
    id = client.call("add", [1, 2])
    info = in_state(client, id, "unknown")
    with pytest.raises(RpcError, match="keep"):
        _ = info.result


def test_a_job_is_seen_on_its_way(client, serve, shop):
    needs(client, "inspection", "results")
    id = client.call("hold", keep=60)
    assert client.job(id).state == "waiting"
    serve()
    info = in_state(client, id, "running")
    assert (info.name, info.queue) == ("hold", "default")
    assert info.worker
    shop.go.set()
    assert in_state(client, id, "succeeded").result == "held"
    assert client.job("nosuch").state == "unknown"


def test_jobs_are_listed_by_state_and_name(client, serve):
    needs(client, "inspection")
    ids = [client.call("add", [1, 2]), client.call("hold"), client.call("add", [3, 4], queue="low")]
    listed = client.jobs()
    assert sorted(each.id for each in listed) == sorted(ids)
    assert [each.id for each in client.jobs(name="hold")] == [ids[1]]
    assert [each.id for each in client.jobs(queue="low")] == [ids[2]]
    assert client.jobs(state="running") == []
    for state in ("eaten", "succeeded"):
        with pytest.raises(ValueError, match=f"dead, expired, not '{state}'"):
            client.jobs(state=state)  # type: ignore[arg-type]


def test_a_job_that_waits_is_cancelled(client, serve):
    needs(client, "inspection", "results")
    id, kept = client.call("fail"), client.call("fail", keep=60)
    assert client.cancel(id)
    assert client.job(kept).cancel()
    assert [client.job(each).state for each in (id, kept)] == ["unknown", "cancelled"]
    with pytest.raises(Cancelled):
        _ = client.job(kept).result
    assert not client.cancel(id)
    serve()
    assert in_state(client, client.call("add", [1, 2], keep=60), "succeeded").result == 3
    assert not letters(client)


def test_a_scheduled_job_is_cancelled(client):
    needs(client, "inspection")
    id = client.call("add", [1, 2], delay=60)
    info = client.job(id)
    assert info.state == "scheduled"
    assert info.at
    assert 0 < info.at.timestamp() - time.time() < 70
    assert info.cancel()
    assert client.job(id).state == "unknown"


def test_a_coroutine_that_runs_is_cancelled(client, serve):
    needs(client, "inspection", "results")
    serve()
    id = client.call("sleep", keep=60)
    in_state(client, id, "running")
    assert client.cancel(id)
    in_state(client, id, "cancelled")
    assert not letters(client)


def test_queues_are_counted(client, serve):
    client.call("hold")
    client.call("hold")
    eventually(
        lambda: {each.queue: each.waiting for each in client.queues()} == {"high": 0, "default": 2, "low": 0}
    )
    serve()
    eventually(lambda: [each.workers > 0 for each in client.queues()] == [True] * 3)


def test_coroutines_ask_the_same(any_url, serve):
    async def main() -> None:
        async with AsyncRpcClient(backend=any_url) as client:
            assert [each.queue for each in await client.queues()] == ["high", "default", "low"]
            if "inspection" not in client.backend.features:
                return
            id = await client.call("hold", keep=60)
            assert (await client.job(id)).state == "waiting"
            assert [each.id for each in await client.jobs(state="waiting")] == [id]
            assert await client.cancel(id)
            assert not await client.retry(id)

    asyncio.run(main())


def test_outcomes_are_kept_in_a_store_elsewhere(any_url, redis_url, serve):
    serve(store=redis_url)
    with RpcClient(backend=any_url, settings=Settings(store=redis_url)) as client:
        good, bad = client.call("add", [1, 2], keep=60), client.call("fail", keep=60)
        assert in_state(client, good, "succeeded").result == 3
        eventually(lambda: client.job(bad).state == "dead")
        assert not client.cancel(good)
        if "inspection" in client.backend.features:
            slept = client.call("sleep", keep=60)
            in_state(client, slept, "running").cancel()
            in_state(client, slept, "cancelled")
    with RpcClient(backend=redis_url) as other:
        assert other.job(good).result == 3


def test_of_what_a_broker_cannot_show_nothing_false_is_said(amqp_url, redis_url):
    """It lives: that it is over, or that it was not there to be cancelled, would not be true."""
    with RpcClient(backend=amqp_url, settings=Settings(store=redis_url)) as client:
        id = client.call("sleep", delay=60, keep=60)
        info = client.job(id)
        why = "whether it is scheduled, waits or runs, this backend cannot show"
        assert (info.state, info.error) == (
            "unknown",
            f"nothing is kept of {id} in high, default, low: {why}",
        )
        for cancel in info.cancel, lambda: client.cancel(id):
            with pytest.raises(Unsupported, match="no feature 'inspection'"):
                cancel()
        assert not client.retry(id)


def test_what_is_in_another_queue_is_looked_for_there(client):
    needs(client, "inspection")
    id = client.call("sleep", queue="aside", delay=60)
    info = client.job(id)
    assert info.state == "unknown"
    assert info.error.startswith(f"nothing is known of {id} in high, default, low: it is over, and nothing")
    assert not client.cancel(id)
    assert client.job(id, queue="aside").state == "scheduled"
    [aside] = client.queues(queue="aside")
    assert (aside.queue, aside.scheduled) == ("aside", 1)
    assert client.cancel(id, queue="aside")


def test_where_nothing_can_be_looked_at_a_store_is_named() -> None:
    pytest.importorskip("httptools", reason="needs the extra http")
    with RpcClient(backend="http://127.0.0.1:1") as client:
        with pytest.raises(
            Unsupported, match=r"'inspection'; .*; RPC_STORE may name one of them, for what is"
        ):
            client.job("0")
        with pytest.raises(Unsupported, match=r"'inspection'.* have it$"):
            client.jobs()


@pytest.mark.parametrize("closes", [True, False], ids=["URL", "backend"])
def test_a_store_is_closed_by_who_made_it(memory_url, redis_url, closes):
    """By clients of both colours, and by receivers."""
    given = backend_from_url(redis_url)
    with redis.Redis.from_url(redis_url.partition("?")[0]) as admin:
        others = {each["id"] for each in admin.client_list()}

        def connections() -> int:
            return sum(1 for each in admin.client_list() if each["id"] not in others)

        settings = Settings(store=redis_url if closes else given)
        receiver = RpcReceiver(jobs={"add": lambda a, b: a + b}, backend=memory_url, settings=settings)
        thread = threading.Thread(target=receiver.run)
        thread.start()
        client = RpcClient(backend=memory_url, settings=settings)
        id = client.call("add", [1, 2], keep=60)
        in_state(client, id, "succeeded")
        used = connections()
        assert used > 0
        other = AsyncRpcClient(backend=memory_url, settings=settings)  # nor is it collected before the end

        async def main() -> None:
            async with other:
                assert (await other.job(id)).result == 3
                assert connections() == used + 1 or not closes

        asyncio.run(main())
        eventually(lambda: connections() == used or not closes)
        client.close()
        eventually(lambda: connections() == used - 1 or not closes)
        receiver.stop()
        thread.join(30)
        if not closes:
            assert connections() > 0
            given.close()
        eventually(lambda: connections() == 0)


def test_what_cannot_be_kept_is_refused(amqp_url):
    with RpcClient(backend=amqp_url) as client, pytest.raises(Unsupported, match="RPC_STORE"):
        client.call("add", [1, 2], keep=60)
    with pytest.raises(Unsupported, match="RPC_STORE"):
        RpcReceiver(jobs={"kept": job(keep=60)(lambda: 7)}, backend=backend_from_url(amqp_url))


@pytest.mark.parametrize("keep", [-1, float("inf"), float("nan")])
def test_a_time_to_keep_is_a_number_of_seconds(keep):
    with RpcClient(backend="memory://") as client, pytest.raises(ValueError, match="keep"):
        client.call("add", keep=keep)
    with pytest.raises(ValueError, match="keep"):
        job(keep=keep)
