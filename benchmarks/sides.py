"""The sides: this library and the bare loop in this environment, the peers in environments of their own."""

from __future__ import annotations

import sys

from .processes import Side

LOOP = "bare loop"
ASYNCIO_LOOP = "bare asyncio loop"
NATIVE = "rpc on redis"
ASYNCIO = "rpc on redis, asyncio"
ON_RQ = "rpc on rq"
AMQP = "rpc on amqp"
AMQP_ASYNCIO = "rpc on amqp, asyncio"
NAMEKO = "nameko"
AIO_PIKA = "aio-pika"
RQ = "rq SimpleWorker"
ZMQ_LOOP = "bare ZeroMQ loop"
ZMQ_ASYNCIO_LOOP = "bare ZeroMQ loop, asyncio"
ZMQ = "rpc on zmq"
ZMQ_ASYNCIO = "rpc on zmq, asyncio"
HTTP_LOOP = "httpx and Starlette"
HTTP = "rpc on http"
HTTP_ASYNCIO = "rpc on http, asyncio"
WS = "rpc on ws"
WS_ASYNCIO = "rpc on ws, asyncio"
ZERORPC = "zerorpc"
PYRO5 = "Pyro5"

HERE = (
    Side(LOOP, "benchmarks.bare_loop", sys.executable),
    Side(ASYNCIO_LOOP, "benchmarks.bare_asyncio", sys.executable),
    Side(NATIVE, "benchmarks.ours", sys.executable),
    Side(ASYNCIO, "benchmarks.ours_asyncio", sys.executable),
    Side(ON_RQ, "benchmarks.ours", sys.executable, variant="rq+", share=0.2),
    Side(RQ, "benchmarks.peers.rq", sys.executable, share=0.2),
)

RABBIT = (
    Side(AMQP, "benchmarks.ours", sys.executable, variant="amqp", broker="RabbitMQ"),
    Side(AMQP_ASYNCIO, "benchmarks.ours_asyncio", sys.executable, variant="amqp", broker="RabbitMQ"),
)
"""Ours on RabbitMQ, beside the peers that are on it, too."""

NO_BROKER = (
    Side(ZMQ_LOOP, "benchmarks.bare_zeromq", sys.executable),
    Side(ZMQ_ASYNCIO_LOOP, "benchmarks.bare_zeromq_asyncio", sys.executable),
    Side(ZMQ, "benchmarks.ours", sys.executable, variant="zmq"),
    Side(ZMQ_ASYNCIO, "benchmarks.ours_asyncio", sys.executable, variant="zmq"),
    Side(HTTP_LOOP, "benchmarks.bare_http", sys.executable),
    Side(HTTP, "benchmarks.ours", sys.executable, variant="http"),
    Side(HTTP_ASYNCIO, "benchmarks.ours_asyncio", sys.executable, variant="http"),
    Side(WS, "benchmarks.ours", sys.executable, variant="ws"),
    Side(WS_ASYNCIO, "benchmarks.ours_asyncio", sys.executable, variant="ws"),
)
"""Ours on ZeroMQ, over HTTP and on WebSockets, and what one writes by hand on them."""

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
    "nameko": (Side(NAMEKO, "benchmarks.peers.nameko", broker="RabbitMQ"),),
    "zerorpc": (Side(ZERORPC, "benchmarks.peers.zerorpc", broker="none"),),
    "pyro5": (Side(PYRO5, "benchmarks.peers.pyro5", broker="none"),),
    "aio-pika": (Side(AIO_PIKA, "benchmarks.peers.aio_pika", broker="RabbitMQ"),),
}
"""Name of an environment -> the sides that are measured in it. Their interpreter is still to be made."""
