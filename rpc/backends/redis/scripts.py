"""The moves of a message of the native Redis backend, each one atomic, and harmless when it is repeated.

A message is in its queue, among the delayed, or in the slot of one worker at every instant; a slot is a list
of what its worker has taken and not acknowledged, the oldest first. A record is
`kind deaths \\n id \\n lane \\n once \\n frame`:

    kind    k: it waits as long as it must; w: it is wanted only while its token exists; K, W: the same, but
            the frame is too large to be moved about, and lies in a key of its own
    deaths  how many workers died that had it; nothing for none
    lane    the inbox of the caller that waits; nothing for none
    once    the digest of its idempotency key; nothing for none

The token of a message is a key that Redis lets expire with the message. Whoever leaves deletes it, and a
repeated sending finds it. Keys that are derived here (tokens, frames) share the hash tag of their queue; but
while a slot of a cluster moves they may be on the other node: nothing is dropped because one is not found.

An inbox is one caller's at a time, whose last reply a new request clears away; or it is shared by many, who
are told apart by the id that each entry has.

`#!lua flags=allow-oom` (Redis >= 7) marks what must go on when the memory is used up, because it frees some.
"""

from __future__ import annotations

from functools import partial

from .._lua import lua

_script = partial(lua, __package__)

UNWANTED = -2
"""What Redis says of the time that a token has left which is not there."""

FORBIDDEN = 1_000_000
"""So many deaths are written down of what nobody may get again."""

GIVEN_UP, NOT_EMPTY = 0, 1
"""What NEXT returns besides messages and nothing: this worker gave no sign of life for too long; a slot has
something that its worker may not know of."""

SEND = _script("send")
SEND_MANY = _script("send_many")
SEND_ONCE = _script("send_once")
SEND_LATER = _script("send_later")

SIGN_ON = _script("sign_on")
NEXT = _script("next")
ACK = _script("ack")
REPLY = _script("reply")
FORBID = _script("forbid")
POSTPONE = _script("postpone")
PROMOTE = _script("promote")
RELEASE = _script("release")
RECOVER = _script("recover")
BURY = _script("bury")
REVIVE = _script("revive")

BROADCAST = _script("broadcast")
KEEP = _script("keep")
GONE = _script("gone")
JOIN = _script("join")

LOCK = _script("lock")
UNLOCK = _script("unlock")
