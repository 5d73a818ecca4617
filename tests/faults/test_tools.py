"""The tools of this suite: an oracle that cannot see a loss, or a proxy that loses nothing, would prove
nothing"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import proxy as proxies
from . import table
from .broker import Redis
from .load import ask, tell
from .oracle import ACCEPTED, ANSWERED, TIMED_OUT, WRONG, Call, Figures, Ledger, Oracle
from .proxy import Proxy
from .stage import Stage
from .wire import Frames, of_redis

pytestmark = pytest.mark.only("redis")

EXAMPLES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$4\r\n\r\n\r\n\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n",
]


def test_the_table_is_put_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "faults.md"
    marks = "<!-- figures of {0} -->\nold {0}\n<!-- end of {0} -->\n"
    page.write_text(f"before\n{marks.format('redis')}between\n{marks.format('rq')}after\n")
    monkeypatch.setattr(table, "PAGE", page)
    figures = Figures(sent=1200, executed=1200, errors=Counter(QueueFull=3), faults=Counter(SIGKILL=7))
    rows = [
        table.Row("kill", "Workers die", figures=figures.as_row()),
        table.Row("gevent", "Greenlets", "skipped", "needs gevent", Figures(sent=1).as_row()),
        table.Row("crash", "Redis dies", "failed", figures=figures.as_row()),
    ]
    table.publish(rows, "redis", "the versions")
    text = page.read_text()
    assert "| kill | Workers die (7 SIGKILL) | 1,200 | 1,200 | 0 | 0 | 0 | 0 | 0 | 3 QueueFull |" in text
    assert "| gevent | Greenlets: not run, needs gevent | | |" in text
    assert "| crash | Redis dies (7 SIGKILL) **failed** |" in text
    assert "old rq" in text
    assert "old redis" not in text
    again = table.Row("crash", "Redis dies", figures=figures.as_row())
    table.publish([again], "redis", "other versions", whole=False)
    text = page.read_text()
    assert "| crash | Redis dies (7 SIGKILL) | 1,200 |" in text
    assert "| kill | Workers die (7 SIGKILL) |" in text
    assert text.count("the versions") == text.count("| scenario |") == text.count("| crash |") == 1
    assert "other versions" not in text


@given(st.lists(st.sampled_from(EXAMPLES)), st.data())
def test_frames_are_found_however_they_are_cut(frames: list[bytes], data: st.DataObject) -> None:
    stream, found, at = b"".join(frames), list[bytes](), 0
    cutter = Frames(of_redis)
    while at < len(stream):
        end = at + data.draw(st.integers(1, len(stream) - at))
        for frame in cutter.feed(stream[at:end]):
            assert stream[at:end][max(0, frame.start) :].startswith(frame.data[max(0, -frame.start) :])
            found.append(frame.data)
        at = end
    assert found == frames


def test_the_oracle_knows_what_was_lost_repeated_wrong_and_late(stage: Stage) -> None:
    oracle, ledger = stage.oracle, Ledger(stage.oracle.path)
    for job in "answered", "told":
        ledger.note(job, 1, "begin")
        ledger.note(job, 1, "end")
    for what in "begin", "end":  # one process has it twice at a time
        ledger.note("repeated", 1, what)
        ledger.note("repeated", 2, what)
    ledger.note("begun", 1, "begin")
    ledger.note("late", 1, "begin")
    outcomes = {
        "answered": ANSWERED,
        "repeated": ANSWERED,
        "told": ACCEPTED,
        "begun": ACCEPTED,
        "never": ACCEPTED,
        "timed-out": TIMED_OUT,
        "wrong": WRONG,
        "refused": "QueueFull",
    }
    oracle.calls = [Call(job, 1.0, False, 2.0, outcome) for job, outcome in outcomes.items()]
    oracle.calls += [Call("late", 1.0, True, 2.0, TIMED_OUT), Call("hangs", 1.0)]
    assert {call.job for call in oracle.lost()} == {"begun", "never", "timed-out"}
    assert [call.job for call in oracle.done_too_late()] == ["late"]
    assert [call.job for call in oracle.done_again()] == ["repeated"]
    assert oracle.hung(1.0)
    figures = oracle.figures()
    assert (figures.sent, figures.executed, figures.lost, figures.duplicated) == (10, 5, 3, 1)
    assert (figures.answered, figures.wrong, figures.hung) == (2, 1, 1)
    assert figures.errors == {TIMED_OUT: 2, "QueueFull": 1}
    assert set(oracle.unexplained({})) == {"repeated"}
    assert oracle.unexplained({os.getpid(): 1.5}) == {}  # when its worker died it was not answered
    assert set(oracle.unexplained({os.getpid(): 2.5})) == {"repeated"}


def test_the_oracle_knows_of_copies(tmp_path: Path) -> None:
    oracle, ledger = Oracle(tmp_path / "ledger"), Ledger(tmp_path / "ledger")
    for _ in range(2):
        ledger.note("copied", 2, "begin")
    assert set(oracle.unexplained({})) == {"copied"}
    assert oracle.unexplained({}, copies=True) == {}


def test_the_oracle_sees_the_loss_of_a_backend_that_gives_up(stage: Stage) -> None:
    url = stage.url(max_deliveries=1)
    worker, client = stage.worker(url=url), stage.client(url=url)
    call = tell(stage, client, "die", times=99)
    assert worker.wait() == -signal.SIGKILL
    stage.worker(url=url)
    ask(stage, client)
    assert stage.oracle.lost() == [call]


@pytest.fixture
def way(stage: Stage) -> Iterator[tuple[Proxy, redis.Redis]]:
    """A proxy, and a client behind it that tries nothing again."""
    proxy = stage.proxy(counting=True)
    with redis.Redis(port=proxy.port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0), protocol=2) as client:
        client.ping()
        yield proxy, client


Way = tuple[Proxy, redis.Redis]


@pytest.mark.parametrize(("where", "executed"), [("up", 1), ("down", 2)])
def test_the_proxy_loses_the_one_command_or_reply_that_it_is_told_to(
    stage: Stage, way: Way, where: proxies.Way, executed: int
) -> None:
    proxy, client = way
    proxy.lose(where, 3)
    pipe = client.pipeline(transaction=False)
    assert [client.incr("x"), client.incr("y")] == [1, 1]
    pipe.incr("x")
    pipe.incr("y")
    with pytest.raises(redis.ConnectionError):
        pipe.execute()
    assert not proxy.armed
    assert stage.redis.admin.get("x") == b"%d" % executed
    assert client.ping()


TROUBLES: dict[str, tuple[Callable[[Proxy], object], str]] = {
    "cut": (Proxy.cut, "reset"),
    "hole down": (lambda proxy: proxy.holes.add("down"), "nothing"),
    "hole up": (lambda proxy: proxy.holes.add("up"), "nothing"),
    "freeze": (Proxy.freeze, "nothing"),
    "delay": (lambda proxy: setattr(proxy, "delay", 5), "nothing"),
    "drip": (lambda proxy: setattr(proxy, "drip", 0.001), "an echo"),
    "slow drip": (lambda proxy: setattr(proxy, "drip", 5), "nothing"),
    "garble down": (lambda proxy: proxy.garble("down"), "something else"),
    "garble up": (lambda proxy: proxy.garble("up"), "something else, or nothing"),
}


def heard(connection: socket.socket) -> str:
    """What comes of an ECHO."""
    echo = b"$5\r\nhello\r\n"
    try:
        connection.sendall(b"*2\r\n$4\r\nECHO\r\n" + echo)
        got = b""
        while len(got) < len(echo) and (more := connection.recv(100)):
            got += more
    except TimeoutError:
        return "nothing"
    except ConnectionError:
        return "reset"
    return "an echo" if got == echo else "something else"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_proxy_makes_trouble_and_heals(stage: Stage, trouble: str) -> None:
    proxy, (make, result) = stage.proxy(), TROUBLES[trouble]
    where = ("127.0.0.1", proxy.port)
    with socket.create_connection(where, timeout=0.5) as connection:
        assert heard(connection) == "an echo"
        make(proxy)
        assert heard(connection) in result  # Redis may wait for the rest of what is garbled
    proxy.heal()
    with socket.create_connection(where, timeout=5) as connection:
        assert heard(connection) == "an echo"


def test_the_proxy_refuses_and_moves(stage: Stage) -> None:
    proxy = stage.proxy()
    proxy.refusing = True
    with redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()
        proxy.heal()
        assert client.ping()
    with Redis(stage.directory / "other") as other:
        proxy.target = other.port
        with redis.Redis(port=proxy.port) as client:
            client.set("here", 1)
        assert other.admin.exists("here")


def test_a_stopped_worker_is_relieved_like_another(stage: Stage) -> None:
    fleet = stage.fleet(2)
    stage.idle(2)
    fleet.stop(3600)
    assert [fleet.relieve(), fleet.relieve()] == [0, 0]
