"""The moves of a message of the native Redis backend, each one atomic, and harmless when it is repeated.

A message is in its queue, among the delayed, or in the processing list of one worker at every instant. That
list has pages of a few dozen messages each, so that any of ten thousand can be taken out at once. A record is
`sent kind deaths \\n id \\n inbox \\n once \\n ttl \\n frame`: see `keys.Record`.

The token of a message is a key by which a repeated sending is known, for some seconds; that of an *attended*
message (with an idempotency key, or of a caller that waits without end) lives as long as somebody wants it.
Other messages expire by their `ttl`; whoever leaves earlier says so in the control stream of the queue. Keys
that are derived in scripts share the hash tag of their queue; but while a slot of a cluster moves they may be
on the other node: nothing is dropped because one is not found.

An inbox is one caller's at a time, whose last reply a new request clears away; or it is shared by many, who
are told apart by the id that each entry has. A worker that serves one queue waits for it with BLMOVE; one
that serves several waits for their `wakeup`, which is set when a message comes into an empty queue: its loss,
or its surplus, does no harm.

`#!lua flags=allow-oom` (Redis >= 7) marks what must go on when the memory is used up, because it frees some.
"""

from __future__ import annotations

from functools import partial

from .._lua import lua

_script = partial(lua, __package__)

FORBIDDEN = 1_000_000
"""So many deaths are written down of what nobody may get again."""

SEND = _script("send")
SEND_MANY = _script("send_many")
SEND_ONCE = _script("send_once")
SEND_LATER = _script("send_later")

SIGN_ON = _script("sign_on")
NEXT = _script("next")
BEGIN = _script("begin")
ACK = _script("ack")
FINISH = _script("finish")
CHANGE = _script("change")
POSTPONE = _script("postpone")
PROMOTE = _script("promote")
RELEASE = _script("release")
RECOVER = _script("recover")
BURY = _script("bury")
MEND = _script("mend")
REVIVE = _script("revive")
WITHDRAW = _script("withdraw")
CANCEL = _script("cancel")

BROADCAST = _script("broadcast")
KEEP = _script("keep")
GONE = _script("gone")
FORGET = _script("forget")
JOIN = _script("join")
AGO = _script("ago")

LOCK = _script("lock")
UNLOCK = _script("unlock")
