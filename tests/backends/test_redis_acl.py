"""The users of docs/redis.md may do what is necessary, and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from rpc import AsyncRpcClient, RemoteError, RpcTimeout, WorkerLost
from rpc.backends.redis import scripts
from rpc.testing import RedisServer, start_redis
from rpc.transport import Message, topic

from .redis_jobs import Bench
from .rq_jobs import PATIENCE, eventually

pytestmark = [pytest.mark.redis, pytest.mark.real_redis]

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
LINES = dict(re.findall(r"^user (rpc-\w+) (.*)$", PAGE, re.MULTILINE))
CONNECTING = "client|setname client|id client|reply script|load evalsha eval time"
SAID = {
    "rpc-client": f"{CONNECTING} blmove lrange lrem rpush set get del zadd pexpire exists hgetall "
    "xadd xread unlink lpop zrange zrem lindex llen zcard hget",
    "rpc-worker": f"{CONNECTING} client|unblock blmove bzpopmin lmove llen lrange lpop rpush set get del "
    "pexpire exists hgetall hdel xadd xread xrange xrevrange xreadgroup xdel unlink xsetid scan hsetnx mget",
}
"""What each says itself."""
RUN = {
    "rpc-client": (
        *("SEND", "SEND_MANY", "SEND_ONCE", "SEND_LATER", "REVIVE", "WITHDRAW", "BROADCAST", "MEND"),
        *("FORGET", "KEEP", "CANCEL"),
    ),
    "rpc-worker": (
        *("NEXT", "BEGIN", "ACK", "FINISH", "CHANGE", "POSTPONE", "BURY", "RECOVER", "PROMOTE", "RELEASE"),
        *("SIGN_ON", "JOIN", "KEEP", "GONE", "AGO", "LOCK", "UNLOCK", "MEND"),
    ),
}
"""The scripts that each runs."""
PREFIX = "shop"
SCRIPTS = {name: text for name, text in vars(scripts).items() if name.isupper() and "-- KEYS" in str(text)}


@pytest.mark.parametrize("user", LINES)
def test_the_page_names_the_commands_of_the_code(user: str) -> None:
    in_scripts = {
        command.lower()
        for name in RUN[user]
        for command in re.findall(r"(?:redis\.p?call|own)\(\s*'(\w+', '(?:CREATE|SETID)|\w+)'", SCRIPTS[name])
    }
    in_scripts = {command.replace("', '", "|") for command in in_scripts}
    assert set(re.findall(r"\+(\S+)", LINES[user])) == {*SAID[user].split(), *in_scripts}


def test_every_script_is_run_by_one_of_them() -> None:
    assert set(SCRIPTS) == {name for names in RUN.values() for name in names}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start_redis() as server:
        yield server


def url(server: RedisServer, user: str) -> str:
    return server.url.replace("//", f"//{user}:secret@")


@pytest.mark.slow
def test_with_these_users_all_of_it_works(server: RedisServer, tmp_path: Path) -> None:
    """With a prefix of one's own: no key begins with another one."""
    bench = Bench(server, tmp_path / "log", prefix=PREFIX)
    try:
        if int(bench.admin.info("server")["redis_version"].split(".")[0]) < 7:
            pytest.skip("needs a real Redis, of version 7")
        for user, rules in LINES.items():
            theirs = rules.replace("~rpc:*", f"~{PREFIX}:*")
            bench.admin.execute_command("ACL SETUSER", user, *theirs.split())
        bench.url = url(server, "rpc-worker") + f"?lease=1&prefix={PREFIX}"
        bench.client = bench.make_client(backend=url(server, "rpc-client") + f"?prefix={PREFIX}")
        exercised(bench)
        assert denied(bench.admin) == []
        for user in LINES:
            with (
                redis.Redis.from_url(url(server, user)) as client,
                pytest.raises(NoPermissionError),
            ):
                client.flushall()
    finally:
        bench.close()


@pytest.mark.parametrize("may_eval", [True, False])
def test_after_a_script_flush_their_calls_go_on(server: RedisServer, tmp_path: Path, may_eval: bool) -> None:
    """Scripts are sent as text then, or loaded again by users who may not do that."""
    bench = Bench(server, tmp_path / "log")
    try:
        for user, rules in LINES.items():
            mine = [rule for rule in rules.split() if may_eval or rule != "+eval"]
            bench.admin.execute_command("ACL SETUSER", user, *mine)
        bench.url = url(server, "rpc-worker")
        client = bench.client = bench.make_client(backend=url(server, "rpc-client"))
        bench.serve()
        for number in range(3):
            assert client.call_and_wait("fast", [number]).data == number
            in_a_loop = asyncio.run(asked(url(server, "rpc-client"), bench.admin))
            assert in_a_loop == [1, 2]
            assert client.backend.acquire("lock", str(number), 10.0) == (number == 0)
            bench.admin.script_flush()
    finally:
        bench.close()


async def asked(url: str, admin: Any) -> list[int]:
    """What two calls answer, with a SCRIPT FLUSH between them."""
    async with AsyncRpcClient(backend=url, timeout=PATIENCE) as client:
        first = (await client.call_and_wait("fast", [1])).data
        admin.script_flush()
        return [first, (await client.call_and_wait("fast", [2])).data]


def denied(admin: Any) -> list[str]:
    return [f"{entry['username']}: {entry['object']}" for entry in admin.acl_log()]


def exercised(bench: Bench) -> None:
    """Everything that there is, in small and in large."""
    worker, client = bench.spawn("Listeners"), bench.client
    client.publish("boom")
    eventually(lambda: {"alone", "team", "durable", "tick"} <= {*bench.lines()})
    assert client.describe()
    with pytest.raises(RpcTimeout, match="no worker serves queue 'other'"):
        client.call_and_wait("fast", ["x"], queue="other", timeout=0.1)
    shelf: Any = client.backend
    (subscription,) = shelf.subscribed()
    assert not shelf.unsubscribe(subscription, unused=True)
    shelf.unsubscribe(subscription)
    client.publish("boom")
    shelf.send(topic("boom"), Message(b"no event"))
    for text in "small", "x" * 100_000:
        assert client.call_and_wait("flaky", [text]).data == text
        client.call("fast", [text], delay=0.1)
        client.call("fast", [text], ttl=30)
        for _ in range(2):
            assert client.call_and_wait("fast", [text], idempotency_key=text[:5]).data == text
            client.call("fast", [text], idempotency_key=text[:5])
        with pytest.raises(RemoteError, match="each time"):
            client.call_and_wait("hopeless", [text])
        assert client.call_and_wait("once", [text]).data == text
        (letter,) = bench.letters()
        assert bench.shelf.revive(letter)
        (letter,) = eventually(bench.letters)
        assert bench.shelf.drop(letter)
    first = client.submit("slow", [1], idempotency_key="slow")
    eventually(lambda: "slow 1" in bench.lines())
    second = client.submit("slow", [2], idempotency_key="slow")
    others = [client.submit("fast", [n], order_key=None if n % 2 else 1) for n in range(20)]
    worker.kill()
    bench.release()
    worker = bench.spawn()
    assert first.result(PATIENCE).data == second.result(PATIENCE).data == 1
    assert [other.result(PATIENCE).data for other in others] == list(range(20))
    lost = client.submit("poison", timeout=60)
    for _ in range(3):
        worker.wait(PATIENCE)
        worker = bench.spawn()
    with pytest.raises(WorkerLost):
        lost.result(PATIENCE)
    client.submit("fast", [0]).cancel()
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
