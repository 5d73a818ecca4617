"""The moves of a job between rq's keys, each one atomic, and harmless when it is carried out twice.

rq's own dequeue pops, and then writes down in other commands what it popped; whatever dies in between takes
the job along. Here a job is in a queue, in the registry of scheduled jobs, or in that of started jobs under
the name of the worker that has it, at every instant. The keys and fields are rq's; those that start with
`rpc_` are ours. Time is the server's. A job's key is built in the script: rq does not run on a cluster
anyway. What rq's own scheduler would put into a queue when it is due, our workers do.
"""

from __future__ import annotations

from functools import partial

from .._lua import lua

_script = partial(lua, __package__, shared="rpc.backends.redis")

SEND = _script("send")
SEND_SPECIALLY = _script("send_specially")
CLAIM = _script("claim")
REPLY = _script("reply")
FORBID = _script("forbid")
FINISH = _script("finish")
POSTPONE = _script("postpone")
PROMOTE = _script("promote")
RECOVER = _script("recover")
WITHDRAW = _script("withdraw")
BEAT = _script("beat")
SIGN_ON = _script("sign_on")
REVIVE = _script("revive")
DISCARD = _script("discard")
