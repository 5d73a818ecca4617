"""What the worker and the client have in common. RPC_SETTINGS_MODULE may name another module."""

import os

import calc
import redis

from rpc import PythonRqBackend

connection = redis.Redis(
    host=os.environ.get("REDIS_HOST", "127.0.0.1"), port=int(os.environ.get("REDIS_PORT", 6379))
)

RPC_JOB_MAPPING = {"add": calc.add, "multiply": calc.multiply, "divide": calc.divide}
RPC_RECEIVER_BACKEND = PythonRqBackend(connection)
RPC_CLIENT_BACKEND = PythonRqBackend(connection)
