"""The sides: this library and the bare loop in this environment, the peers in environments of their own."""

from __future__ import annotations

import sys

from .processes import Side

LOOP = "bare loop"
NATIVE = "rpc on redis"
ON_RQ = "rpc on rq"
RQ = "rq SimpleWorker"

HERE = (
    Side(LOOP, "benchmarks.bare_loop", sys.executable),
    Side(NATIVE, "benchmarks.ours", sys.executable),
    Side(ON_RQ, "benchmarks.ours", sys.executable, variant="rq+", share=0.2),
    Side(RQ, "benchmarks.peers.rq", sys.executable, share=0.2),
)

PEERS = {
    "rq": (Side(RQ, "benchmarks.peers.rq", share=0.25),),
    "celery": (
        Side("Celery, solo", "benchmarks.peers.celery", variant="solo"),
        Side("Celery, threads", "benchmarks.peers.celery", variant="threads"),
    ),
    "dramatiq": (Side("dramatiq", "benchmarks.peers.dramatiq"),),
    "huey": (Side("huey", "benchmarks.peers.huey"),),
    "arq": (Side("arq", "benchmarks.peers.arq"),),
    "taskiq": (Side("taskiq", "benchmarks.peers.taskiq"),),
    "faststream": (Side("FastStream", "benchmarks.peers.faststream"),),
}
"""Name of an environment -> the sides that are measured in it. Their interpreter is still to be made."""
