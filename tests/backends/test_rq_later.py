"""rq on Redis: what is delayed is among rq's scheduled jobs, and what has a key is remembered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
import redis
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus
from rq.registry import ScheduledJobRegistry, clean_registries
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from rpc.errors import Cancelled
from rpc.inspection import Inspection
from rpc.testing import RedisServer
from rpc.testing.site import ONCE, Site, eventually
from rpc.transport import Delivery, Message

pytestmark = pytest.mark.redis


@pytest.fixture
def site(rpc_redis: RedisServer) -> Iterator[Site]:
    with Site(f"rq+{rpc_redis.url}?lease=2") as site:
        yield site


@pytest.fixture
def admin(rpc_redis: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(rpc_redis.url) as admin:
        yield admin


def rqs_name(site: Site) -> str:
    return f"rpc.{site.name()}"


def scheduled(site: Site, admin: redis.Redis) -> list[str]:
    registry: Any = ScheduledJobRegistry
    return list(registry(rqs_name(site), connection=admin).get_job_ids(cleanup=False))


def job_of(id: str, admin: redis.Redis) -> Job:
    return Job.fetch(id, connection=admin, serializer=JSONSerializer)


def test_rq_shows_what_is_delayed_until_it_is_due(site: Site, admin: redis.Redis) -> None:
    before = time.time()
    site.tell(b"log:x", delay="0.5")
    (id,) = scheduled(site, admin)
    assert job_of(id, admin).get_status() is JobStatus.SCHEDULED
    score = admin.zscore(ScheduledJobRegistry(rqs_name(site), connection=admin).key, id)  # type: ignore[no-untyped-call]
    assert isinstance(score, float)
    assert before + 0.49 < score < time.time() + 0.6
    there = Queue(rqs_name(site), connection=admin, serializer=JSONSerializer)
    clean_registries(there)
    assert there in Queue.all(connection=admin, serializer=JSONSerializer)
    site.serve()
    eventually(lambda: site.log.lines() == ["toy x"])
    assert scheduled(site, admin) == []


def test_rq_shows_what_is_tried_again_and_forgets_what_was_withdrawn(site: Site, admin: redis.Redis) -> None:
    def handler(delivery: Delivery) -> None:
        site.log.write(f"attempt {delivery.message.attempt}")
        delivery.postpone(60, delivery.message.replace(attempt=2))

    site.serve(handler)
    replies = site.ask(b"x", ttl=90)
    (id,) = eventually(lambda: scheduled(site, admin))
    assert job_of(id, admin).get_status() is JobStatus.SCHEDULED
    assert 60 < admin.ttl(f"rq:job:{id}") <= 95
    replies.close()
    assert scheduled(site, admin) == []
    assert not admin.exists(f"rq:job:{id}")


def test_rqs_own_scheduler_may_do_it(site: Site, admin: redis.Redis) -> None:
    site.tell(b"log:x", delay="0.1")
    (id,) = scheduled(site, admin)
    scheduler = RQScheduler([rqs_name(site)], connection=admin, serializer=JSONSerializer)
    scheduler.acquire_locks()

    def is_moved() -> bool:
        scheduler.enqueue_scheduled_jobs()
        return not scheduled(site, admin)

    eventually(is_moved)
    assert job_of(id, admin).get_status() is JobStatus.QUEUED
    scheduler.release_locks()
    site.serve()
    eventually(lambda: site.log.lines() == ["toy x"])


def test_what_has_expired_while_it_was_scheduled_is_not_queued(site: Site, admin: redis.Redis) -> None:
    site.tell(b"log:expired", delay="0.1", ttl="60")
    (id,) = scheduled(site, admin)
    admin.delete(f"rq:job:{id}")  # as Redis does then
    site.serve()
    eventually(lambda: scheduled(site, admin) == [])
    site.tell(b"log:x")
    eventually(lambda: site.log.lines() == ["toy x"])


def test_what_its_caller_leaves_in_the_middle_of_an_attempt_is_not_tried_again(site: Site) -> None:
    """Even if its worker postpones it before it hears of that."""
    left = threading.Event()

    def handler(delivery: Delivery) -> None:
        left.wait(site.patience)
        with pytest.raises(Cancelled):
            delivery.postpone(0.01, delivery.message.replace(attempt=2))
        site.log.write("refused")

    site.serve(handler)
    replies = site.ask(b"x")
    entries = cast("Inspection", site.client).entries
    eventually(lambda: [each.state for each in entries(site.name())] == ["running"])
    replies.close()
    left.set()
    eventually(lambda: site.log.lines() == ["refused"])
    eventually(lambda: [*entries(site.name())] == [])


def test_a_deleted_queue_takes_along_what_is_scheduled_for_it(site: Site, admin: redis.Redis) -> None:
    site.tell(b"log:x", delay="60")
    (id,) = scheduled(site, admin)
    client: Any = site.client
    client.discard(site.name())
    assert scheduled(site, admin) == []
    assert not admin.exists(f"rq:job:{id}")


def test_a_worker_leaves_no_trace_of_what_it_postponed(site: Site, admin: redis.Redis) -> None:
    def handler(delivery: Delivery) -> None:
        delivery.forbid_redelivery()
        delivery.postpone(60, delivery.message.replace(attempt=2))

    server, thread = site.serve(handler)
    site.tell(b"x")
    (id,) = eventually(lambda: scheduled(site, admin))
    fields = admin.hgetall(f"rq:job:{id}")
    assert not {b"rpc_deliveries", b"rpc_once", b"rpc_lost"} & fields.keys()
    (worker,) = SimpleWorker.all(connection=admin)
    eventually(lambda: worker.get_current_job_id() is None)
    server.stop()
    thread.join(site.patience)
    assert admin.keys(f"rq:execution:{id}:*") == []  # others have this server, too


def test_a_key_is_remembered_for_its_window_and_no_longer(site: Site, admin: redis.Redis) -> None:
    site.serve()
    brief = site.backend(idempotency_window=0.3)
    for number in range(2):
        brief.send(site.queue(), Message(b"log:brief", {"id": f"{site.name()}-{number}", **ONCE}))
    assert all(admin.pttl(key) > 0 for key in admin.keys("rpc:once:*"))
    eventually(lambda: not admin.keys("rpc:once:*"))
    brief.send(site.queue(), Message(b"log:again", {"id": f"{site.name()}-2", **ONCE}))
    eventually(lambda: site.log.lines() == ["toy brief", "toy again"])


# What others put there.


@pytest.mark.parametrize("kind", ["string", "hash"])
def test_what_is_of_another_type_where_we_write_makes_room(site: Site, admin: redis.Redis, kind: str) -> None:
    site.tell(b"log:x", **ONCE)
    (once,) = (key.decode() for key in admin.keys(f"rpc:once:{site.name()}:*"))
    for key in f"rq:scheduled:{rqs_name(site)}", f"rpc:later:{site.name()}", once, f"{once}:w":
        admin.delete(key)
        if kind == "string" and key != once:
            admin.set(key, "x")
        else:
            admin.hset(key, "x", "y")
    replies = [site.ask(b"log:y", delay="0.1", **ONCE) for _ in range(2)]
    site.serve()
    assert [each.receive(site.patience).body for each in replies] == [b"logged"] * 2
    assert site.log.lines() == ["toy x", "toy y"]
    admin.delete(f"rpc:later:{site.name()}")
    admin.set(f"rpc:later:{site.name()}", "x")
    site.tell(b"log:z", delay="0.1")
    eventually(lambda: "toy z" in site.log.lines())


def test_what_is_scheduled_by_others_is_left_in_the_queue(site: Site, admin: redis.Redis) -> None:
    theirs = Queue(rqs_name(site), connection=admin).enqueue_in(timedelta(), "os.getpid")
    admin.zadd(f"rq:scheduled:{rqs_name(site)}", {"gone": 0, b"\xff\n": 1})
    site.serve()
    site.tell(b"log:x", delay="0.1")
    eventually(lambda: site.log.lines() == ["toy x"])
    assert scheduled(site, admin) == []
    assert theirs.get_status(refresh=True) is JobStatus.QUEUED
