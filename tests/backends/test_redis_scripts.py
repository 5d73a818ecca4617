"""Each Lua script of the native Redis backend: what there is, what it is told, what it answers, what there is
then.

A state is a dict of keys. What a key holds shows its type: `str`, `list`, `dict` (a hash), `Z` (a sorted
set), `X` (a stream: the fields of each entry). `key~60` ends after so many seconds, by tens; `stream|group`
is how much a group has not read. The server's time is written as NOW, and as NOW+5 some seconds later.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import pytest
import redis

from rpc.backends.redis import scripts
from rpc.backends.redis.evaluation import evaluated
from rpc.testing import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.real_redis]

SOON = 9_999_999_999_999
"""When what has not expired was sent: later than now."""


class Z(dict[str, Any]):
    """A sorted set: the score of each member."""


class X(list[dict[str, str]]):
    """A stream."""


State = dict[str, Any]


class Case(NamedTuple):
    """`answer` may be a function that says whether it is right; `then` is only what differs from before, and
    None for what has gone."""

    name: str
    script: str
    keys: str
    arguments: list[Any]
    before: State
    answer: Any
    then: State


def unsent(id: str = "i", kind: str = "k", *, frame: str = "frame", **rest: Any) -> str:
    """A record without its time."""
    keys = f"{rest.get('once', '')}.{rest['order']}" if "order" in rest else rest.get("once", "")
    fields = [id, str(rest.get("inbox", "")), keys, str(rest.get("ttl", "")), frame]
    return "\n".join([f"{kind}{rest.get('deaths', '')}", *fields])


def record(*args: Any, sent: Any = SOON, **rest: Any) -> str:
    """A record as it lies in a list."""
    return f"{sent} {unsent(*args, **rest)}"


def reply(id: str, frame: str = "reply", number: int = 1) -> str:
    """An entry of an inbox."""
    return f"{number}\n{id}\n{frame}"


def at(key: str) -> str:
    """What the cases call by a short name."""
    return key if ":{" in key else f"rpc:{{t}}:{key}"


IN, IN2, THEIRS = "rpc:{t}:in:1", "rpc:{t}:in:2", "shop:{t}:in:1"
WOKEN = {"w~60": Z({"1": 0})}
KNOWN = {"q:t:i~10": ""}
IT, A, B = record(), record("a"), record("b")
LARGE = record(kind="K", frame="")
OLD = record("old", "w", ttl=5, sent=1)
EXPIRED = f"NOW\nRpcTimeout: it expired before a worker came to it\n{OLD}"
KEYED, LATER_KEYED = record(kind="a", once="e"), unsent(kind="a", once="e")
DUE = {"c~3600": X([{"due": ""}])}
FIRST, NEXT, LAST = (record(id, order="f") for id in "xyz")
"""Of one order key."""


def send(what: str = IT, most: int = 0, again: int = 0) -> list[Any]:
    return ["i", what, 10_000, most, 2, again]


SEND, MANY, ONCE, LATER = scripts.SEND, scripts.SEND_MANY, scripts.SEND_ONCE, scripts.SEND_LATER
CASES = [
    # What is sent.
    Case("into an empty queue", SEND, "q w q:t:i", send(), {}, 1, {"q": [IT], **WOKEN, **KNOWN}),
    Case("behind others", SEND, "q w q:t:i", send(), {"q": [A]}, 1, {"q": [A, IT], **KNOWN}),
    Case("again", SEND, "q w q:t:i", send(), {"q": [IT], **KNOWN}, 0, {}),
    Case("again, and it was answered", SEND, f"q w q:t:i {IN}", send(again=1), {IN: [reply("i")]}, 0, {}),
    Case("again, and its token is missing", SEND, "q w q:t:i", send(again=1), {"q": [A, IT, B]}, 0, KNOWN),
    Case("again, and its token is missing, and a worker has it", SEND, "q w q:t:i", send(again=1),
         {"q": [A], "q:workers": {"x": "1", "y": "2"}, "q:taken:x:0": [B], "q:taken:y:1": [IT]}, 0, KNOWN),
    Case("again, and it is not there", SEND, "q w q:t:i", send(again=1),
         {"q": [A], "q:workers": {"x": "1", "y": "none"}, "q:taken:x:0": [B]}, 1, {"q": [A, IT], **KNOWN}),
    Case("again, and what workers have is something else", SEND, "q w q:t:i", send(again=1),
         {"q:workers": {"x": "1"}, "q:taken:x:0": "text"}, 1, {"q": [IT], **WOKEN, **KNOWN}),
    Case("what was in the inbox goes", SEND, f"q w q:t:i {IN}", send(), {IN: [reply("a")]}, 1, {"q": [IT],
         **WOKEN, **KNOWN, IN: None}),
    Case("no room", SEND, "q w q:t:i", send(most=1), {"q": [A]}, -1, {}),
    Case("no room: the caller is told", SEND, f"q w q:t:i {IN}", send(most=1), {"q": [A], IN: [reply("a")]},
         -1, {IN: None, f"{IN}~60": [reply("i", "", -1)]}),
    Case("no room for it again", SEND, "q w q:t:i", send(most=1), {"q": [IT], **KNOWN}, 0, {}),
    Case("no room: its body goes", SEND, "q w q:t:i", send(LARGE, most=1), {"q": [A], "q:b:i~60": "body"}, -1,
         {"q:b:i~60": None}),
    Case("no room: what looks like another's body stays", SEND, "q w q:t:i",
         send(record(frame="K\na\n"), most=1), {"q": [A], "q:b:a": "body"}, -1, {}),
    Case("what has expired takes no room", SEND, "q w q:t:i", send(most=1), {"q": [OLD]}, 1, {"q": [IT],
         **WOKEN, **KNOWN, "q:dead": [EXPIRED]}),
    Case("what has expired, and was waited for, leaves nothing", SEND, "q w q:t:i", send(most=1),
         {"q": [record("old", "w", ttl=5, sent=1, inbox=IN)]}, 1, {"q": [IT], **WOKEN, **KNOWN}),
    Case("what was withdrawn takes no room", SEND, "q w q:t:i", send(most=1),
         {"q": [record("a", "w", ttl=99, inbox=IN)], "q:t:a~10": "left"}, 1, {"q": [IT], **WOKEN, **KNOWN}),
    Case("what is forgotten by its caller takes no room", SEND, "q w q:t:i", send(most=1),
         {"q": [record("a", "A", once="e")], "q:b:a": "body", "q:o:e": "ra", "q:o:e:w": {"b": IN}}, 1,
         {"q": [IT], **WOKEN, **KNOWN, "q:b:a": None, "q:o:e": None, "q:o:e:w": None}),
    Case("what is waited for takes room", SEND, "q w q:t:i", send(most=1), {"q": [record("a", "a")],
         "q:t:a~10": ""}, -1, {}),
    Case("what is no record takes room", SEND, "q w q:t:i", send(most=1), {"q": ["\n\n"]}, -1, {}),
    Case("again, and what has expired leaves", SEND, "q w q:t:i", send(), {"q": [OLD, IT], **KNOWN}, 0,
         {"q": [IT], "q:dead": [EXPIRED]}),
    Case("the body of what is kept has no end", SEND, "q w q:t:i", send(LARGE), {"q:b:i~60": "body"}, 1,
         {"q": [LARGE], **WOKEN, **KNOWN, "q:b:i~60": None, "q:b:i": "body"}),
    Case("the body of what expires has one", SEND, "q w q:t:i", send(record(kind="W", ttl=9)),
         {"q:b:i~60": "body"}, 1, {"q": [record(kind="W", ttl=9)], **WOKEN, **KNOWN}),
    Case("several", MANY, "q w", [0, "", 0, 2, "a", A, 10_000, "b", B, 10_000], {}, [1, 1], {"q": [A, B],
         **WOKEN, "q:t:a~10": "", "q:t:b~10": ""}),
    Case("several, one of them again", MANY, "q w", [0, "", 0, 2, "a", A, 10_000, "b", B, 10_000],
         {"q:t:a~10": ""}, [0, 1], {"q": [B], **WOKEN, "q:t:b~10": ""}),
    Case("several, and room for one", MANY, f"q w {IN}",
         [0, "", 1, 2, "a", A, 10_000, "b", record("b", inbox=IN), 10_000, "i", IT, 10_000], {},
         [1, -1, -1], {"q": [A], **WOKEN, "q:t:a~10": "", "q:t:b~10": "", f"{IN}~60": [reply("b", "", -1)]}),
    Case("what was read goes", MANY, f"q w {IN}", [2, "1\nb\n", 0, 2],
         {IN: [reply("a"), reply("b"), reply("i")]}, [], {IN: [reply("i")]}),
    Case("what was not read stays", MANY, f"q w {IN}", [2, "1\nb\n", 0, 2], {IN: [reply("b"), reply("i")]},
         [], {}),
    # With an idempotency key.
    Case("the first", ONCE, "q w q:t:i q:o:e", ["i", KEYED, 10_000, 0, 2, 0, 60_000], {}, 1, {"q": [KEYED],
         **WOKEN, **KNOWN, "q:o:e~60": "qi"}),
    Case("the first, again", ONCE, "q w q:t:i q:o:e", ["i", KEYED, 10_000, 0, 2, 0, 60_000],
         {"q:o:e~60": "ri", **KNOWN}, 0, {}),
    Case("another one while the first waits", ONCE, f"q w q:t:i q:o:e {IN}",
         ["i", record(kind="A", once="e", frame=""), 20_000, 0, 2, 0, 60_000], {"q:o:e~60": "qa",
         "q:t:a~10": "", "q:b:i": "body"}, 0, {"q:o:e:w~60": {"i": IN}, "q:t:a~10": None, "q:t:a~20": "",
         "q:b:i": None}),
    Case("another one while the first runs", ONCE, "q w q:t:i q:o:e", ["i", KEYED, 10_000, 0, 2, 0, 60_000],
         {"q:o:e~60": "ra", "q:t:a~30": ""}, 0, {}),
    Case("another one after the first", ONCE, f"q w q:t:i q:o:e {IN}", ["i", KEYED, 10_000, 0, 2, 0, 60_000],
         {"q:o:e~60": "dreply"}, 0, {f"{IN}~60": [reply("i")]}),
    Case("another one, whose first has expired", ONCE, "q w q:t:i q:o:e",
         ["i", KEYED, 10_000, 0, 2, 0, 60_000], {"q:o:e~60": "qa"}, 1, {"q": [KEYED], **WOKEN, **KNOWN,
         "q:o:e~60": "qi"}),
    Case("no room for the first", ONCE, f"q w q:t:i q:o:e {IN}", ["i", KEYED, 10_000, 1, 2, 0, 60_000],
         {"q": [A]}, -1, {f"{IN}~60": [reply("i", "", -1)]}),
    Case("the first, later", ONCE, "q w q:t:i q:o:e", ["i", LATER_KEYED, 10_000, 0, 2, 0, 60_000, 5000], {},
         1, {"q:delayed": Z({record(kind="a", once="e", sent="NOW"): "NOW+5"}), "q:control~3600":
         DUE["c~3600"], **KNOWN, "q:o:e~60": "qi"}),
    Case("later, and the first waits", ONCE, "q w q:t:i q:o:e",
         ["i", LATER_KEYED, 10_000, 0, 2, 0, 60_000, 5000], {"q:o:e~60": "qa", "q:t:a~30": ""}, 0, {}),
    Case("later, and no room for the first", ONCE, "q w q:t:i q:o:e",
         ["i", LATER_KEYED, 10_000, 2, 2, 0, 60_000, 5000], {"q": [A], "q:delayed": Z({B: SOON})}, -1, {}),
    # Later.
    Case("later", LATER, "q d q:t:i c", ["i", unsent(), 10_000, 0, 2, 0, 5000], {}, 1,
         {"d": Z({record(sent="NOW"): "NOW+5"}), **DUE, **KNOWN}),
    Case("later, again", LATER, "q d q:t:i c", ["i", unsent(), 10_000, 0, 2, 0, 5000], KNOWN, 0, {}),
    Case("later, and large", LATER, "q d q:t:i c", ["i", unsent(kind="K", frame=""), 10_000, 0, 2, 0, 5000],
         {"q:b:i~60": "body"}, 1, {"d": Z({record(kind="K", frame="", sent="NOW"): "NOW+5"}), **DUE, **KNOWN,
         "q:b:i~60": None, "q:b:i": "body"}),
    Case("later, and no room", LATER, f"q d q:t:i c {IN}", ["i", unsent(), 10_000, 2, 2, 1, 5000], {"q": [A],
         "d": Z({B: SOON})}, -1, {f"{IN}~60": [reply("i", "", -1)]}),
    Case("what is due", scripts.PROMOTE, "d q w", [], {"d": Z({A: 1, B: 2, IT: SOON}), "q": [OLD]},
         lambda left: left > 0, {"d": Z({IT: SOON}), "q": [OLD, A, B], **WOKEN}),
    Case("nothing is due", scripts.PROMOTE, "d q w", [], {"w": Z({"1": 0})}, -1, {"w": None, **WOKEN}),
    # Taking.
    Case("one of two", scripts.NEXT, "q p w", [1, 0], {"q": [A, B]}, [0, A], {"q": [B], "p": [A], **WOKEN}),
    Case("all that is there", scripts.NEXT, "q p w", [8, 0], {"q": [A, B]}, [0, A, 0, B], {"q": None,
         "p": [A, B]}),
    Case("the first queue first", scripts.NEXT, "q p w q2 p2 w2", [2, 0], {"q": [A], "q2": [B, IT]},
         [0, A, 1, B], {"q": None, "p": [A], "q2": [IT], "p2": [B], "w2~60": Z({"1": 0})}),
    Case("what may have killed is taken alone", scripts.NEXT, "q p w", [8, 0], {"q": [record(deaths=1), A]},
         [0, record(deaths=1)], {"q": [A], "p": [record(deaths=1)], **WOKEN}),
    Case("what may have killed is left for later", scripts.NEXT, "q p w", [8, 0],
         {"q": [A, record(deaths=1)]}, [0, A], {"q": [record(deaths=1)], "p": [A], **WOKEN}),
    Case("nothing is taken beside what may have killed", scripts.NEXT, "q p w", [8, 1], {"q": [A],
         "p": [record(deaths=1)]}, [], {}),
    Case("beside what was just taken", scripts.NEXT, "q p w", [8, 1], {"q": [A], "p": [B]}, [0, A],
         {"q": None, "p": [B, A]}),
    Case("it is wanted", scripts.BEGIN, "q:t:i", ["i"], KNOWN, lambda left: 9000 < left <= 10_000, {}),
    Case("nobody wants it", scripts.BEGIN, "q:t:i q:o:e", ["i"], {"q:o:e~60": "qi"}, -2, {}),
    Case("the first runs", scripts.BEGIN, "q:t:i q:o:e", ["i"], {"q:t:i": "", "q:o:e~60": "qi"}, -1,
         {"q:o:e~60": "ri"}),
    Case("the key is another one's", scripts.BEGIN, "q:t:i q:o:e", ["i"], {"q:t:i": "", "q:o:e~60": "qa"}, -1,
         {}),
    # Ends.
    Case("several are done, in any order", scripts.ACK, "p",
         [60_000, B, "", "", A, IN, reply("a"), IT, IN, reply("i")], {"p": [A, IT, B, OLD]}, 3,
         {"p": [OLD], f"{IN}~60": [reply("a"), reply("i")]}),
    Case("what others have is answered all the same", scripts.ACK, "p",
         [60_000, A, IN, reply("a"), IT, IN2, reply("i")], {"p": [IT]}, 1, {"p": None,
         f"{IN}~60": [reply("a")], f"{IN2}~60": [reply("i")]}),
    Case("a reply is kept for as long as is said", scripts.ACK, "p", [600_000, A, IN, reply("a")],
         {"p": [A]}, 1, {"p": None, f"{IN}~600": [reply("a")]}),
    Case("the first is done, and all are answered", scripts.FINISH, "p q",
         [record(kind="a", inbox=IN, once="e"), 2, "reply", 0],
         {"p": [record(kind="a", inbox=IN, once="e")], "q:o:e~60": "ri", "q:o:e:w": {"b": IN2}}, 1,
         {"p": None, "q:o:e~60": "dreply", "q:o:e:w": None,
         f"{IN}~60": [reply("i", number=2)], f"{IN2}~60": [reply("b", number=2)]}),
    Case("the first was not wanted", scripts.FINISH, "p q", [KEYED, 0, "", 0], {"p": [KEYED],
         "q:o:e~60": "ri"}, 1, {"p": None, "q:o:e~60": None}),
    Case("what others have is not done here", scripts.FINISH, "p q", [KEYED, 1, "reply", 0],
         {"q:o:e~60": "ri"}, 0, {}),
    Case("the key has come to another one", scripts.FINISH, "p q", [KEYED, 1, "reply", 0], {"p": [KEYED],
         "q:o:e~60": "qa"}, 1, {"p": None}),
    Case("what is done needs no body", scripts.FINISH, "p q", [LARGE, 1, "", 0], {"p": [LARGE],
         "q:b:i": "body"}, 1, {"p": None, "q:b:i": None}),
    Case("it is changed", scripts.CHANGE, "p", [A, B], {"p": [A, IT]}, 1, {"p": [IT, B]}),
    Case("it was changed before", scripts.CHANGE, "p", [A, B], {"p": [IT, B]}, 1, {}),
    Case("what others have is not changed", scripts.CHANGE, "p", [A, B], {"p": [IT]}, 0, {}),
    Case("it is postponed", scripts.POSTPONE, "p d c", [A, unsent(), 5000], {"p": [A]}, 1, {"p": None,
         "d": Z({record(sent="NOW"): "NOW+5"}), **DUE}),
    Case("what was cancelled is not postponed", scripts.POSTPONE, "p d c q:c:i", [IT, unsent(), 5000],
         {"p": [IT], "q:c:i~60": ""}, 2, {}),
    Case("who has it is told that it was cancelled", scripts.CANCEL, "q:c:a c p p2", ["a", 9],
         {"p": [IT, "x"], "p2": [B, A]}, 1, {"q:c:a~3600": "", "c~3600": X([{"cancelled": "a"}])}),
    Case("what nobody has is not cancelled", scripts.CANCEL, "q:c:a c p p2", ["a", 9], {"p": [IT]}, 0, {}),
    Case("what is buried may be tried again", scripts.BURY, "p q dead", [A, "why", 1, "", 0],
         {"p": [A], "q:c:a~60": ""}, 1, {"p": None, "dead": [f"NOW\nwhy\n{A}"], "q:c:a~60": None}),
    Case("what others have is not postponed", scripts.POSTPONE, "p d c", [A, unsent(), 5000], {"p": [B]}, 0,
         {}),
    Case("its last reply is kept", scripts.FINISH, "p q", [A, 1, "reply", 60_000], {"p": [A]}, 1,
         {"p": None, "q:r:a~60": "reply"}),
    Case("what others have is not kept here", scripts.FINISH, "p q", [A, 1, "reply", 60_000], {}, 0, {}),
    Case("it is buried, and its last reply kept", scripts.BURY, "p q dead", [A, "why", 1, "reply", 60_000],
         {"p": [A]}, 1, {"p": None, "dead": [f"NOW\nwhy\n{A}"], "q:r:a~60": "reply"}),
    Case("it is withdrawn", scripts.WITHDRAW, "q d", [A], {"q": [A, B]}, 1, {"q": [B]}),
    Case("it is withdrawn before it is due", scripts.WITHDRAW, "q d", [LARGE], {"d": Z({LARGE: 5, B: 6}),
         "q:b:i": "body"}, 1, {"d": Z({B: 6}), "q:b:i": None}),
    Case("what has begun is not withdrawn", scripts.WITHDRAW, "q d", [A], {"q": [B]}, 0, {}),
    Case("what is withdrawn gives its key back", scripts.WITHDRAW, "q d", [KEYED], {"q": [KEYED],
         "q:o:e~60": "qi", "q:o:e:w~60": {"b": IN}}, 1, {"q": None, "q:o:e~60": None, "q:o:e:w~60": None}),
    Case("it is buried", scripts.BURY, "p q dead", [record(inbox=IN), "why", 1, "reply", 0],
         {"p": [record(inbox=IN)], "dead": [f"1\nno\n{A}"]}, 1, {"p": None, f"{IN}~60": [reply("i")],
         "dead": [f"NOW\nwhy\n{record(inbox=IN)}", f"1\nno\n{A}"]}),
    Case("a buried body ends", scripts.BURY, "p q dead", [LARGE, "why", 1, "", 0], {"p": [LARGE],
         "q:b:i": "body"}, 1, {"p": None, "dead": [f"NOW\nwhy\n{LARGE}"], "q:b:i": None,
         "q:b:i~604800": "body"}),
    Case("what others have is not buried", scripts.BURY, "p q dead", [A, "why", 1, "reply", 0], {"p": [B]}, 0,
         {}),
    Case("what is not begun goes back", scripts.RELEASE, "q w",
         [at("p"), A, at("p2"), B, at("p"), OLD], {"q": [IT],
         "p": [A], "p2": [B]}, None, {"q": [A, B, IT], "p": None, "p2": None, **WOKEN}),
    # Workers that die.
    Case("a worker signs on", scripts.SIGN_ON, "a q:workers q2:workers", ["me", 10_000, 60_000, 1, 3],
         {"q:workers": {"other": "2"}}, [1], {"a~10": "1", "q:workers": None, "q:workers~60": {"other": "2",
         "me": "1"}, "q2:workers~60": {"me": "3"}}),
    Case("who lives keeps what it has", scripts.RECOVER, "a p q w dead", [0, 1, 3, "lost", "why"],
         {"a~10": "1", "p": [A]}, None, {}),
    Case("what the dead had is next", scripts.RECOVER, "a p q w dead", [0, 1, 3, "lost", "why"],
         {"p": [A, record("b", deaths=1)], "q": [IT]}, [2, 0], {"p": None,
         "q": [record("a", deaths=1), record("b", deaths=2), IT], **WOKEN}),
    Case("the dead are forgotten with their last page", scripts.RECOVER, "a p q w dead q:workers",
         [0, 1, 3, "lost", "why", "x"], {"p": [A], "q:workers": {"x": "2", "y": "1"}}, [1, 0], {"p": None,
         "q": [record("a", deaths=1)], "q:workers": {"y": "1"}, **WOKEN}),
    Case("who lives again is not forgotten", scripts.RECOVER, "a p q w dead q:workers",
         [0, 1, 3, "lost", "why", "x"], {"a~10": "1", "q:workers": {"x": "2"}}, None, {}),
    Case("to be handed back is no death", scripts.RECOVER, "a p q w dead", [1, 0, 3, "lost", "why"],
         {"a~10": "1", "p": [A, record("b", deaths=2)]}, [2, 0], {"p": None, "q": [A, record("b", deaths=2)],
         **WOKEN}),
    Case("who kills too many is given up", scripts.RECOVER, "a p q w dead", [0, 1, 3, "lost", "why"],
         {"p": [record("b", deaths=2, inbox=IN)]}, [0, 1], {"p": None, f"{IN}~60": [reply("b", "lost", 0)],
         "dead": [f"NOW\nwhy\n{record('b', deaths=2, inbox=IN)}"]}),
    Case("a key of what is given up is free", scripts.RECOVER, "a p q w dead", [0, 1, 1, "lost", "why"],
         {"p": [KEYED], "q:o:e": "ri", "q:o:e:w": {"b": IN}}, [0, 1], {"p": None,
         "dead": [f"NOW\nwhy\n{KEYED}"], "q:o:e": None, "q:o:e:w": None,
         f"{IN}~60": [reply("b", "lost", 0)]}),
    Case("what may not be done twice is given up", scripts.RECOVER, "a p q w dead", [1, 0, 3, "lost", "why"],
         {"p": [record(deaths=scripts.FORBIDDEN)]}, [0, 1], {"p": None,
         "dead": [f"NOW\nwhy\n{record(deaths=scripts.FORBIDDEN)}"]}),
    Case("what cannot be read is given up", scripts.RECOVER, "a p q w dead", [0, 1, 1, "lost", "why"],
         {"p": ["garbage", "1 k\nx", A]}, [0, 3], {"p": None,
         "dead": ["NOW\nit cannot be read\ngarbage", "NOW\nwhy\n1 k\nx", f"NOW\nwhy\n{A}"]}),
    Case("a letter is revived", scripts.REVIVE, "dead q w", [f"1\nno\n{A}", unsent("a")],
         {"dead": [f"1\nno\n{A}"]}, 1, {"dead": None, "q": [record("a", sent="NOW")], **WOKEN}),
    Case("a large letter is revived", scripts.REVIVE, "dead q w",
         [f"1\nno\n{LARGE}", unsent(kind="K", frame="")], {"dead": [f"1\nno\n{LARGE}"], "q:b:i~600": "body"},
         1, {"dead": None, "q": [record(kind="K", frame="", sent="NOW")], **WOKEN, "q:b:i~600": None,
         "q:b:i": "body"}),
    Case("a letter is dropped", scripts.REVIVE, "dead q w", [f"1\nno\n{LARGE}"], {"dead": [f"1\nno\n{LARGE}"],
         "q:b:i~600": "body"}, 1, {"dead": None, "q:b:i~600": None}),
    Case("a letter that is gone", scripts.REVIVE, "dead q w", [f"1\nno\n{A}", unsent("a")], {"q:b:a": "body"},
         0, {}),
    # With an order key.
    Case("the first of its key", SEND, "q w q:t:i", send(record(order="f")), {"q": [A]}, 1, {**KNOWN,
         "q": [A, record(order="f")], "q:order": {"f": "i"}}),
    Case("one behind it", SEND, "q w q:t:i", send(record(order="f")), {"q": [FIRST], "q:order": {"f": "x"}},
         1,
         {**KNOWN, "q:order": {"f": "x", "": "1"}, "q:k:f": [record(order="f")]}),
    Case("one of another key", SEND, "q w q:t:i", send(record(order="e")), {"q": [FIRST],
         "q:order": {"f": "x",
         "": "1"}, "q:k:f": [NEXT]}, 1, {**KNOWN, "q": [FIRST, record(order="e")], "q:order": {"f": "x",
         "e": "i", "": "1"}}),
    Case("one behind it, again, and its token is missing", SEND, "q w q:t:i", send(record(order="f"),
         again=1),
         {"q": [FIRST], "q:order": {"f": "x", "": "1"}, "q:k:f": [record(order="f")]}, 0, KNOWN),
    Case("the first, again, and it came to nothing", SEND, "q w q:t:i", send(record(order="f"), again=1),
         {"q": "x", "q:order": {"f": "i"}, **KNOWN}, 1, {"q": [record(order="f")], "q:refused~604800": "x",
         **WOKEN}),
    Case("what waits behind takes room", SEND, "q w q:t:i", send(most=2), {"q": [FIRST], "q:order": {"f": "x",
         "": "1"}, "q:k:f": [NEXT]}, -1, {}),
    Case("the first has expired: the next one comes", SEND, "q w q:t:i", send(most=2),
         {"q": [record("x", "w", ttl=5, sent=1, inbox=IN, order="f")], "q:order": {"f": "x", "": "2"},
         "q:k:f": [NEXT, LAST]}, -1, {"q": [NEXT], "q:order": {"f": "y", "": "1"}, "q:k:f": [LAST],
         "q:wakeup~60": Z({"1": 0})}),
    Case("several of one key", MANY, "q w", [0, "", 0, 2, "x", FIRST, 10_000, "y", NEXT, 10_000, "a", A,
         10_000],
         {}, [1, 1, 1], {"q": [FIRST, A], **WOKEN, "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT],
         "q:t:x~10": "", "q:t:y~10": "", "q:t:a~10": ""}),
    Case("one behind it, with an idempotency key", ONCE, "q w q:t:i q:o:e",
         ["i", record(kind="a", once="e", order="f"), 10_000, 0, 2, 0, 60_000], {"q:order": {"f": "x"}}, 1,
         {**KNOWN, "q:o:e~60": "qi", "q:order": {"f": "x", "": "1"},
         "q:k:f": [record(kind="a", once="e", order="f")]}),
    Case("later, and what waits behind takes room", LATER, "q d q:t:i c", ["i", unsent(), 10_000, 2, 2, 1,
         5000],
         {"q": [FIRST], "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, -1, {}),
    Case("due, behind others", scripts.PROMOTE, "d q w", [], {"d": Z({NEXT: 1}), "q:order": {"f": "x"}}, -1,
         {"d": None, "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT], **WOKEN}),
    Case("due, to be tried again", scripts.PROMOTE, "d q w", [], {"d": Z({FIRST: 1}), "q:order": {"f": "x",
         "": "1"}, "q:k:f": [NEXT]}, -1, {"d": None, "q": [FIRST], **WOKEN}),
    Case("what was the first is nowhere: the next one comes", scripts.PROMOTE, "d q w", [],
         {"q:workers": {"x":
         "1"}, "q:order": {"f": "x", "e": "o", "": "1"}, "q:k:f": [NEXT]}, -1, {"q": [NEXT],
         "q:order": {"f": "y"},
         "q:k:f": None, "q:wakeup~60": Z({"1": 0})}),
    Case("what is the first is held: the next one waits", scripts.PROMOTE, "d q w", [],
         {"q:workers": {"x": "1"},
         "q:taken:x:0": [FIRST], "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, -1, {}),
    Case("it is done: the next one comes last", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [FIRST],
         "q": [A, B], "q:order": {"f": "x", "e": "o", "": "2"}, "q:k:f": [NEXT, LAST]}, 1, {"p": None,
         "q": [A, B, NEXT], "q:order": {"f": "y", "e": "o", "": "1"}, "q:k:f": [LAST]}),
    Case("several are done", scripts.FINISH, "p q", [FIRST, 1, "", 0, LARGE, 1, "", 0, B, 1, "reply", 60_000,
         A, 1,
         "", 0], {"p": [LARGE, FIRST, B], "q:b:i": "body", "q": [IT], "q:order": {"f": "x", "": "1"},
         "q:k:f": [NEXT]}, 3, {"p": None, "q": [IT, NEXT], "q:order": {"f": "y"}, "q:k:f": None,
         "q:b:i": None,
         "q:r:b~60": "reply"}),
    Case("it is done: the next one wakes up", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [FIRST],
         "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, 1, {"p": None, "q": [NEXT], "q:order": {"f": "y"},
         "q:k:f": None, "q:wakeup~60": Z({"1": 0})}),
    Case("it is done: there is no other", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [FIRST],
         "q:order": {"f": "x"}}, 1, {"p": None, "q:order": None}),
    Case("others have it: the next one waits", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [A],
         "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, 0, {}),
    Case("it was not the first any more", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [FIRST],
         "q:order": {"f": "y", "": "1"}, "q:k:f": [LAST]}, 1, {"p": None}),
    Case("what is no record is passed on with the next one", scripts.FINISH, "p q", [FIRST, 1, "", 0],
         {"p": [FIRST], "q:order": {"f": "x", "": "2"}, "q:k:f": ["junk", NEXT]}, 1, {"p": None,
         "q:k:f": None,
         "q": ["junk", NEXT], "q:order": {"f": "y"}, "q:wakeup~60": Z({"1": 0})}),
    Case("what is no number is forgotten", SEND, "q w q:t:i", send(record(order="f")), {"q": [FIRST],
         "q:order": {"f": "x", "": "many"}}, 1, {**KNOWN, "q:order": {"f": "x"},
         "q:k:f": [record(order="f")]}),
    Case("it is forgotten who was the first", scripts.FINISH, "p q", [FIRST, 1, "", 0], {"p": [FIRST],
         "q:order": "text", "q:k:f": [NEXT]}, 1, {"p": None, "q": [NEXT], "q:order": {"f": "y"},
         "q:k:f": None,
         "q:order:refused~604800": "text", "q:wakeup~60": Z({"1": 0})}),
    Case("it is buried: the next one comes", scripts.BURY, "p q dead", [FIRST, "why", 1, "", 0],
         {"p": [FIRST],
         "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, 1, {"p": None, "q": [NEXT], "q:order": {"f": "y"},
         "q:k:f": None, "dead": [f"NOW\nwhy\n{FIRST}"], "q:wakeup~60": Z({"1": 0})}),
    Case("it is postponed: the next one waits", scripts.POSTPONE, "p d c", [FIRST, unsent("x", order="f"),
         5000],
         {"p": [FIRST], "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]}, 1, {"p": None, **DUE,
         "d": Z({record("x", order="f", sent="NOW"): "NOW+5"})}),
    Case("what the dead had is next, before what follows", scripts.RECOVER, "a p q w dead",
         [0, 1, 3, "lost", "why"], {"p": [FIRST], "q": [A], "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]},
         [1, 0], {"p": None, "q": [record("x", order="f", deaths=1), A], **WOKEN}),
    Case("what kills too many is given up: the next one comes", scripts.RECOVER, "a p q w dead",
         [0, 1, 1, "lost", "why"], {"p": [FIRST], "q": [A], "q:order": {"f": "x", "": "1"}, "q:k:f": [NEXT]},
         [0, 1], {"p": None, "q": [A, NEXT], "q:order": {"f": "y"}, "q:k:f": None,
         "dead": [f"NOW\nwhy\n{FIRST}"]}),
    Case("the first is withdrawn", scripts.WITHDRAW, "q d", [FIRST], {"q": [FIRST], "q:order": {"f": "x",
         "": "1"}, "q:k:f": [NEXT]}, 1, {"q": [NEXT], "q:order": {"f": "y"}, "q:k:f": None,
         "q:wakeup~60": Z({"1": 0})}),
    Case("one behind is withdrawn", scripts.WITHDRAW, "q d", [NEXT], {"q": [FIRST], "q:order": {"f": "x",
         "": "2"}, "q:k:f": [NEXT, LAST]}, 1, {"q:order": {"f": "x", "": "1"}, "q:k:f": [LAST]}),
    Case("what is to be lined up later is withdrawn", scripts.WITHDRAW, "q d", [NEXT], {"d": Z({NEXT: 5}),
         "q": [FIRST], "q:order": {"f": "x"}}, 1, {"d": None}),
    Case("what is held is not withdrawn", scripts.WITHDRAW, "q d", [FIRST], {"q:order": {"f": "x", "": "1"},
         "q:k:f": [NEXT]}, 0, {}),
    Case("a letter is revived behind others", scripts.REVIVE, "dead q w", [f"1\nno\n{FIRST}",
         unsent("x", order="f")], {"dead": [f"1\nno\n{FIRST}"], "q": [NEXT], "q:order": {"f": "y"}}, 1,
         {"dead": None, "q:order": {"f": "y", "": "1"}, "q:k:f": [record("x", order="f", sent="NOW")],
         **WOKEN}),
    # Topics.
    Case("an event", scripts.BROADCAST, "t s", ["frame", 100, 60_000, 0, 0], {}, [[], []],
         {"t~60": X([{"m": "frame"}])}),
    Case("an event that is to be kept", scripts.BROADCAST, "t s", ["frame", 100, 60_000, 0, 0],
         {"s": Z({"gone": 1, "team": SOON})}, [["team"], ["gone"]], {"s": Z({"team": SOON})}),
    Case("an event that is kept", scripts.BROADCAST, "t s", ["frame", 100, 60_000, 1, 0],
         {"s": Z({"team": SOON})}, [[], []], {"t~60": X([{"m": "frame"}])}),
    Case("an event, again", scripts.BROADCAST, "t s", ["frame", 100, 60_000, 1, 10_000],
         {"t~60": X([{"m": "frame"}, {"m": "other"}])}, [[], []], {}),
    Case("another event", scripts.BROADCAST, "t s", ["frame", 100, 60_000, 1, 10_000],
         {"t~60": X([{"m": "other"}])}, [[], []], {"t~60": X([{"m": "other"}, {"m": "frame"}])}),
    Case("a subscription is kept", scripts.KEEP, "s", ["team", 30_000], {"s": Z({"other": 5})}, None,
         {"s": None, "s~60": Z({"other": 5, "team": "NOW+30"})}),
    Case("who has gone", scripts.GONE, "s", [], {"s": Z({"a": 1, "b": 2, "team": SOON})}, ["a", "b"],
         {"s": Z({"team": SOON})}),
    Case("until when a subscription is kept", scripts.FORGET, "s", ["team"], {"s": Z({"a": 1, "team": 2})},
         "2", {"s": Z({"a": 1, "team": 2})}),
    Case("one that is not there", scripts.FORGET, "s", ["team", ""], {}, "", {}),
    Case("one that nobody serves", scripts.FORGET, "s", ["team", "2"], {"s": Z({"a": 1, "team": 2})}, "",
         {"s": Z({"a": 1})}),
    Case("one that is served again", scripts.FORGET, "s", ["team", "2"], {"s": Z({"team": 3})}, "3",
         {"s": Z({"team": 3})}),
    Case("how long it is ago", scripts.AGO, "t", [5_000], {},
         lambda answer: abs(time.time() * 1000 - 5_000 - int(answer)) < 60_000, {}),
    Case("a new group hears what comes from now on", scripts.JOIN, "t m", ["g", "$", 10_000],
         {"t": X([{"m": "1"}])}, 1, {"t|g": 0, "m~10": "1"}),
    Case("a group that was lost hears all", scripts.JOIN, "t m", ["g", "0", 10_000], {"t": X([{"m": "1"}])},
         1, {"t|g": 1, "m~10": "1"}),
    Case("a group with members goes on where it was", scripts.JOIN, "t m", ["g", "$", 10_000],
         {"t": X([{"m": "1"}, {"m": "2"}]), "t|g": 1, "m~10": "1"}, 1, {}),
    Case("a group without members begins anew", scripts.JOIN, "t m", ["g", "$", 10_000],
         {"t": X([{"m": "1"}, {"m": "2"}]), "t|g": 1}, 1, {"t|g": 0, "m~10": "1"}),
    # Locks.
    Case("a lock is had", scripts.LOCK, "l", ["me", 10_000], {}, 1, {"l~10": "me"}),
    Case("a lock is kept", scripts.LOCK, "l", ["me", 20_000], {"l~10": "me"}, 1, {"l~10": None,
         "l~20": "me"}),
    Case("what others wrote is no lock", scripts.LOCK, "l", ["me", 10_000], {"l": ["x"]}, 1,
         {"l": None, "l~10": "me"}),
    # What anybody may have put there.
    Case("what is no list makes room for a message", SEND, "q w q:t:i", send(), {"q": "x"}, 1,
         {"q": [IT], "q:refused~604800": "x", **WOKEN, **KNOWN}),
    Case("what may have come to nothing is sent again", SEND, f"q w q:t:i {IN}", send(again=1),
         {"q": "x", **KNOWN}, 1, {"q": [IT], "q:refused~604800": "x", **WOKEN}),
    Case("what is no set makes room", SEND, "q w q:t:i", send(), {"w": ["x"]}, 1,
         {"q": [IT], "w": None, "w:refused~604800": ["x"], **WOKEN, **KNOWN}),
    Case("what is no token", SEND, "q w q:t:i", send(), {"q": [OLD], "q:t:old~20": ["x"]}, 1,
         {"q": [OLD, IT], **KNOWN}),
    Case("what is no stream makes room", LATER, "q d q:t:i c", ["i", unsent(), 10_000, 0, 2, 0, 5000],
         {"c": "x"}, 1, {"d": Z({record(sent="NOW"): "NOW+5"}), "c": None, "c:refused~604800": "x", **DUE,
         **KNOWN}),
    Case("a reply goes to no list of others", scripts.ACK, "p", [60_000, A, "theirs", reply("a")],
         {"p": [A], "theirs": ["1"]}, 1, {"p": None}),
    Case("a reply goes to no inbox of others", scripts.ACK, "p", [60_000, A, THEIRS, reply("a"), IT, IN,
         reply("i")], {"p": [A, IT]}, 2, {"p": None, f"{IN}~60": [reply("i")]}),
    Case("a reply with another prefix", scripts.ACK, "shop:{t}:p", [60_000, A, THEIRS, reply("a")],
         {"shop:{t}:p": [A]}, 1, {"shop:{t}:p": None, f"{THEIRS}~60": [reply("a")]}),
    Case("what is no inbox makes room for a reply", scripts.ACK, "p", [60_000, A, IN, reply("a")],
         {"p": [A], IN: "x"}, 1, {"p": None, IN: None, f"{IN}~60": [reply("a")]}),
    Case("what names a list of others is buried alone", scripts.BURY, "p q dead",
         [record(inbox="theirs"), "why", 1, "reply", 0], {"p": [record(inbox="theirs")], "theirs": ["1"]}, 1,
         {"p": None, "dead": [f"NOW\nwhy\n{record(inbox='theirs')}"]}),
    Case("what is no state of a key", scripts.BEGIN, "t o", ["i"], {"t": "", "o": ["x"]}, -1, {}),
    Case("who has no end does not live", scripts.RECOVER, "alive p q w dead", [0, 1, 3, "lost", "why"],
         {"alive": "1", "p": [A]}, [1, 0], {"p": None, "q": [record("a", deaths=1)], **WOKEN}),
    Case("a key of another type makes room", scripts.MEND, "k", ["list", 60_000], {"k": "x"}, "string",
         {"k": None, "k:refused~60": "x"}),
    Case("a key of ours stays", scripts.MEND, "k", ["list", 60_000], {"k": ["x"]}, None, {}),
    Case("a lock is another's", scripts.LOCK, "l", ["me", 10_000], {"l~20": "you"}, 0, {}),
    Case("a lock is given back", scripts.UNLOCK, "l", ["me"], {"l~10": "me"}, None, {"l~10": None}),
    Case("a lock is not given back by others", scripts.UNLOCK, "l", ["me"], {"l~10": "you"}, None, {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def admin(rpc_redis: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(rpc_redis.url, decode_responses=True) as admin:
        yield admin


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_script(admin: Any, case: Case) -> None:
    admin.flushall()
    for key, value in sorted(case.before.items()):
        put(admin, *at(key).partition("~")[::2], value)
    answer = evaluated(admin, case.script, [at(key) for key in case.keys.split()], *case.arguments)
    expected = {at(key): value for key, value in {**case.before, **case.then}.items() if value is not None}
    assert case.answer(answer) if callable(case.answer) else answer == case.answer
    assert found(admin) == expected


def test_each_script_has_cases() -> None:
    all_of_them = {name for name, text in vars(scripts).items() if name.isupper() and "-- KEYS" in str(text)}
    by_text = {text: name for name, text in vars(scripts).items() if name in all_of_them}
    assert {by_text[case.script] for case in CASES} == all_of_them


def put(admin: Any, key: str, seconds: str, value: Any) -> None:
    if "|" in key:
        stream, _, group = key.partition("|")
        ids = ["0", *(id for id, _ in admin.xrange(stream))]
        admin.xgroup_create(stream, group, ids[len(ids) - 1 - value])
    elif isinstance(value, str):
        admin.set(key, value)
    elif isinstance(value, X):
        for fields in value:
            admin.xadd(key, fields)
    elif isinstance(value, list):
        admin.rpush(key, *value)
    elif isinstance(value, Z):
        admin.zadd(key, value)
    else:
        admin.hset(key, mapping=value)
    if seconds:
        admin.expire(key, int(seconds))


def found(admin: Any) -> State:
    """All that is there."""
    now, state = time.time(), State()
    for key in admin.scan_iter(count=1000):
        left = admin.pttl(key)
        name = key if left == -1 else f"{key}~{10 * ceil(left / 10_000)}"
        kind = admin.type(key)
        if kind == "string":
            state[name] = admin.get(key)
        elif kind == "list":
            state[name] = [without_time(each, now) for each in admin.lrange(key, 0, -1)]
        elif kind == "hash":
            state[name] = admin.hgetall(key)
        elif kind == "zset":
            pairs = admin.zrange(key, 0, -1, withscores=True)
            state[name] = Z(
                {without_time(each, now): score_without_time(score, now) for each, score in pairs}
            )
        else:
            state[name] = X(fields for _, fields in admin.xrange(key))
            for group in admin.xinfo_groups(key):
                state[f"{key}|{group['name']}"] = len(admin.xrange(key, f"({group['last-delivered-id']}"))
    return state


def without_time(text: str, now: float) -> str:
    return re.sub(r"^\d{13}\b", lambda digits: str(score_without_time(int(digits[0]), now)), text)


def score_without_time(score: float, now: float) -> Any:
    seconds = score / 1000 - now
    if abs(seconds) > 3600:
        return int(score)
    return f"NOW+{round(seconds)}" if round(seconds) else "NOW"


class Redis6(redis.Redis):
    """Knows no flags of scripts."""

    refused = 0

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        if script.startswith("#!"):
            self.refused += 1
            raise redis.ResponseError("Error compiling script (new function): user_script:1: unexpected '#'")
        return super().eval(script, numkeys, *keys_and_args)


def test_it_is_remembered_that_a_server_knows_no_flags_of_scripts(rpc_redis: RedisServer) -> None:
    script = "#!lua flags=allow-oom\nreturn redis.call('INCR', KEYS[1])"
    with Redis6.from_url(rpc_redis.url) as client:
        client.flushall()
        assert [evaluated(client, script, ["k"]) for _ in range(3)] == [1, 2, 3]
        assert client.refused == 1
