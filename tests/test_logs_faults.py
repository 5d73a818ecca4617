"""What programs do to log records, and to the process that logs them, that nobody means to do."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from in_memory import LONG, until
from test_logs import Stub

from rpc.core.codecs import ACCEPTED
from rpc.core.events import decode_event
from rpc.core.log_batches import Heard
from rpc.core.log_entries import LogEntry, LoggedException
from rpc.logs import RpcLogHandler

MEGA = 1024 * 1024
ERROR = ValueError("no tea")


class Program:
    """Has a logger, and what a listener hears of it."""

    def __init__(self, handler: RpcLogHandler, stub: Stub) -> None:
        self.handler, self.stub = handler, stub
        self.log = logging.Logger("tests")  # with no handler but this one
        self.log.addHandler(handler)

    def heard(self) -> list[LogEntry]:
        assert self.handler.flush(LONG)
        heard = Heard()
        events = [decode_event(message, ACCEPTED) for message in self.stub.sent]
        return [entry for event in events for entry in heard.entries(event)]


@pytest.fixture
def program() -> Iterator[Program]:
    stub: Any = Stub()
    with closing(RpcLogHandler(stub)) as handler:
        yield Program(handler, stub)


class Endless(BaseException):
    """Ends what else nothing does."""


class Talkative:
    """Logs something while its text is made."""

    def __init__(self, talk: Callable[[Talkative], object]) -> None:
        self.talk, self.times = talk, 0

    def __str__(self) -> str:
        self.times += 1
        if self.times > 1000:
            raise Endless
        self.talk(self)
        return "talkative"


def test_an_object_whose_text_logs_itself_ends_and_what_is_dropped_is_counted(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    it = Talkative(lambda self: program.log.info("text of %s", self))
    program.log.info("%s is logged", it)
    program.log.info("after")
    first, *entries = program.heard()
    assert first.extra["missing"] > 0
    assert len(entries) + first.extra["missing"] == it.times + 2
    assert [each.message for each in entries[-2:]] == ["talkative is logged", "after"]
    assert capsys.readouterr().err == ""


def test_an_object_whose_text_logs_something_else_loses_nothing(program: Program) -> None:
    for _ in range(3):
        program.log.info("it is %s", Talkative(lambda _: program.log.debug("its text is made")))
    heard = {each.message for each in program.heard()}
    assert heard == {"it is talkative", "its text is made"}


BY_HAND: list[tuple[dict[Any, Any], dict[str, Any]]] = [
    ({"created": 1.7e12}, {}),
    ({"created": -1.0}, {}),
    ({"created": float("nan")}, {}),
    ({"created": "today"}, {}),
    ({"created": None}, {}),
    ({"created": 1_700_000_000}, {"time": 1.7e9, "problem": ""}),
    ({"lineno": "12"}, {"line": 12, "problem": "it was made to fit: lineno was 12"}),
    ({"lineno": -3}, {"line": 0, "problem": "it was made to fit: lineno was -3"}),
    ({"lineno": None}, {"line": 0, "problem": ""}),
    ({"levelno": 30.0, "levelname": "WARNING"}, {"level_number": 30, "problem": ""}),
    ({"levelno": float("nan")}, {"level_number": 0}),
    ({"levelno": -5}, {"level_number": 0}),
    ({"levelno": 2**70}, {"level_number": 2**53 - 1}),
    ({"levelno": 30, "levelname": None}, {"level": "WARNING"}),
    ({"levelname": 30}, {"level": "30"}),
    ({"name": None}, {"logger": "", "problem": ""}),
    ({"pathname": Path("a.py")}, {"path": "a.py"}),
    ({"funcName": 7}, {"function": "7"}),
    ({"threadName": 7}, {"thread": "7"}),
    ({"taskName": 7}, {"task": "7"}),
    ({"stack_info": 7}, {"stack": "7"}),
    ({"exc_text": 7}, {"exception": LoggedException("", "", "7")}),
    (
        {"exc_info": ERROR},
        {"exception": LoggedException("ValueError", "no tea", "ValueError: no tea")},
    ),
    ({"exc_info": True}, {"exception": None}),
    ({"exc_info": ("x", "y", "z")}, {"exception": None}),
    ({7: "seven"}, {"extra": {"7": "seven"}}),
]


@pytest.mark.parametrize(("attributes", "expected"), BY_HAND)
def test_a_record_made_by_hand_is_sent_as_far_as_that_can_be(
    program: Program,
    capsys: pytest.CaptureFixture[str],
    attributes: dict[Any, Any],
    expected: dict[str, Any],
) -> None:
    begun = time.time()
    made = {"name": "tests", "msg": "by %s", "args": ("hand",), "levelname": "INFO", "levelno": 20}
    record = logging.makeLogRecord({**made, **attributes})
    program.handler.handle(record)
    [entry] = program.heard()
    assert entry.message == "by hand"
    assert {name: getattr(entry, name) for name in expected} == expected
    assert "problem" in expected or entry.problem.startswith("it was made to fit: ") or 7 in attributes
    assert "time" in expected or begun <= entry.time <= time.time()
    assert {**vars(record), **attributes} == vars(record), "it is the other handlers', too"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["message", "argument", "list", "extra", "traceback"])
def test_long_records_take_no_more_memory_than_there_is_for_them(
    program: Program, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("rpc.logs.MOST_KEPT", 2 * MEGA)
    program.stub.is_there.clear()
    program.log.info("the first")
    until(lambda: program.stub.attempts > 0)
    tracemalloc.start()
    try:
        for _ in range(60):
            # Half of them are as long as they can be without being shortened.
            for text in ("x" * MEGA, "x" * 100_000):
                log_within(program.log, where, text)
        assert tracemalloc.get_traced_memory()[0] < 5 * MEGA
    finally:
        tracemalloc.stop()
    program.log.info("the last")
    program.stub.is_there.set()
    heard = program.heard()
    assert sum(each.extra.get("missing", 1) for each in heard) == 122
    assert heard[-1].message == "the last"
    assert len(heard) > 10
    assert any(each.problem.startswith("it was shortened") for each in heard)


def log_within(log: logging.Logger, where: str, text: str) -> None:
    if where == "message":
        log.info(text)
    elif where == "argument":
        log.info("%.10s", text)
    elif where == "list":
        log.info("%.10s", [text])
    elif where == "extra":
        log.info("it has an extra", extra={"long": text})
    else:
        log.error("it failed", exc_info=ValueError(text))


FORKED = """
import logging, os, socket, sys, threading
from rpc.logs import RpcLogHandler

is_at_it, may_go_on = threading.Event(), threading.Event()

def pause():
    is_at_it.set()
    may_go_on.wait()

class Pausing:
    def find_spec(self, name, *others):
        if name == "encodings.idna":
            pause()

def gethostname():
    pause()
    return "here"

if sys.argv[2] == "imports":
    sys.meta_path.insert(0, Pausing())
else:
    socket.gethostname = gethostname
handler = RpcLogHandler(sys.argv[1])
log = logging.Logger("tests")
log.addHandler(handler)
log.warning("parent")
while not is_at_it.is_set() and not handler.flush(0.05):
    pass
child = os.fork()
may_go_on.set()
if child == 0:
    # The thread id of the parent's sender is taken: it is by that that a lock knows its owner.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    log.warning("child")
    os._exit(0 if handler.flush(10) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.redis
@pytest.mark.parametrize("sender", ["imports", "looks up its host"])
def test_a_child_forked_while_the_first_record_is_being_sent_sends_its_own(
    redis_url: str, sender: str
) -> None:
    assert subprocess.run([sys.executable, "-c", FORKED, redis_url, sender], timeout=60).returncode == 0


def test_a_handler_that_cannot_be_made_says_so_once() -> None:
    code = "from rpc.logs import RpcLogHandler; RpcLogHandler('nonsense://x')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "SettingsError" in said
    assert said.count("Traceback") == 1
