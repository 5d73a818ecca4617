"""What `import rpc` gives, and what it does not bring along."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module

import pytest

import rpc
from rpc import errors
from rpc.backends import BACKENDS
from rpc.inspection import Counts, DeadLetters, Inspection, Results
from rpc.transport import Backend, Locks, Presence, Replay, Subscriptions

INTERFACES = Backend, Counts, DeadLetters, Inspection, Locks, Presence, Replay, Results, Subscriptions
MODULES = [
    module.name
    for module in pkgutil.walk_packages(rpc.__path__, "rpc.")
    if not module.name.startswith(("rpc.cli", "rpc.contrib", "rpc.testing")) and "._" not in module.name
    if not re.match(r"rpc\.backends\.\w+\.", module.name)  # what a backend is made of is its own
]


def public(module):
    """The public classes and functions that a module defines."""
    members = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    kinds = [value for value in members.values() if inspect.isclass(value) or inspect.isfunction(value)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


def test_the_public_names_are_sorted_and_each_is_there():
    assert rpc.__all__ == sorted(rpc.__all__)
    assert [getattr(rpc, name).__name__ for name in rpc.__all__] == rpc.__all__


def test_nothing_public_is_left_out():
    names = {
        name for name, value in vars(rpc).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    names |= {
        kind.__name__ for kind in public(errors) if inspect.isclass(kind) and issubclass(kind, rpc.RpcError)
    }
    assert names - {"TYPE_CHECKING", "Any"} <= set(rpc.__all__)


def test_all_names_are_told_before_they_are_imported():
    program = "import rpc; print({*rpc.__all__} <= {*dir(rpc)}); from rpc import *; print(RpcClient, cron)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True\n<class 'rpc.client.RpcClient'> <function cron at ")


def test_codecs_are_there_as_soon_as_rpc_is():
    program = "import rpc; print(rpc.codecs.register.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "register\n"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rpc' has no attribute 'nosuch'"):
        _ = rpc.nosuch


def test_every_backend_can_be_imported_by_its_name():
    pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")
    pytest.importorskip("zmq", reason="needs ZeroMQ's driver: pip install jobrpc[zmq]")
    pytest.importorskip("httptools", reason="needs HTTP's: pip install jobrpc[http]")
    pytest.importorskip("websockets", reason="needs WebSocket's: pip install jobrpc[ws]")
    for path, _ in BACKENDS.values():
        module, _, name = path.partition(":")
        assert getattr(rpc, name) is getattr(import_module(module), name)


@pytest.mark.parametrize(
    ("driver", "name", "scheme", "extra"),
    [
        ("pamqp", "AmqpBackend", "amqp", "amqp"),
        ("zmq", "ZeromqBackend", "zmq+tcp", "zmq"),
        ("httptools", "HttpBackend", "http", "http"),
        ("websockets", "WebSocketBackend", "ws", "ws"),
    ],
)
def test_a_backend_whose_driver_is_missing_says_what_to_install(driver, name, scheme, extra):
    program = f"import sys; sys.modules['{driver}'] = None; from rpc import *; from rpc import {name}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr.endswith(f"Unsupported: {scheme}: needs `pip install 'jobrpc[{extra}]'`\n")


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_says_what_it_is(name):
    module = import_module(name)
    assert module.__doc__
    assert [value.__name__ for value in public(module) if not value.__doc__] == []


@pytest.mark.parametrize(
    "kind", [getattr(rpc, name) for name in rpc.__all__ if inspect.isclass(getattr(rpc, name))]
)
def test_every_public_method_says_what_it_does_here_or_in_the_interface(kind):
    for name, member in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert member.__doc__ or any(hasattr(each, name) for each in INTERFACES), name


def test_neither_redis_nor_rq_is_needed_for_memory():
    program = """
import sys
sys.modules["redis"] = sys.modules["rq"] = None
from threading import Thread
import rpc
receiver = rpc.RpcReceiver(jobs={"add": lambda a, b: a + b}, backend="memory://")
thread = Thread(target=receiver.start)
thread.start()
print(rpc.RpcClient(backend="memory://").call_and_wait("add", [1, 1]).data)
receiver.stop()
thread.join()
print({"click", "fakeredis", "pytest"} & set(sys.modules))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.stderr) == ("2\nset()\n", "")
