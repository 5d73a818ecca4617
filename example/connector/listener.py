"""A service over plain HTTP: `python listener.py`, and then `python sender.py` elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from rpc import RpcReceiver
from rpc.codecs import register

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:5000"
TOKEN = "123456"  # noqa: S105
Number = int | float
"""What is annotated with `float` alone would become one."""
receiver = RpcReceiver(jobs={}, backend=URL)


@receiver.route("/helloworld")
def helloworld(name: str) -> str:
    return f"Welcome {name}"


# Texts and numbers, one or several at a time.


@receiver.route("/str")
def joined(a: str, key: str) -> str:
    return a + "-" + key


@receiver.route("/str2")
def both_and_joined(a: str, key: str) -> tuple[str, str, str]:
    return a, key, a + "-" + key


@receiver.route("/int")
@receiver.route("/float")
def total(a: Number, key: Number) -> Number:
    return a + key


@receiver.route("/int3")
def powers(a: Number, key: Number) -> tuple[Number, Number, Number]:
    return a + key, key * key, a * a


# Lists and dicts.


@receiver.route("/list")
def extended(a: list[Any], key: list[Any]) -> list[Any]:
    return [*a, *key]


@receiver.route("/dict")
def with_another(a: Any, key: dict[str, Any]) -> dict[str, Any]:
    return {**key, "dict": a}


@receiver.route("/list3")
def three(a: Any, key: list[Any]) -> tuple[Any, list[Any], None]:
    return a, [*key, "other value"], None


# Nothing, and objects: of a class that is registered, the public attributes are sent.


@receiver.route("/None")
def nothing(a: Any, key: Any) -> None:
    pass


class Thing:
    name = "test"
    Purpose = "For test only"
    empty = None

    def __init__(self, value: Any) -> None:
        self.value = value
        self._own = "this stays here"

    def method(self) -> None:
        """Methods are not sent, either."""


register(Thing)


@receiver.route("/class", token=TOKEN)
def thing(a: Any, key: Any) -> Any:
    return Thing(a)


@receiver.route("/class2", token=TOKEN)
def thing_and_others(a: Any, key: Any) -> Any:
    return Thing(key), a, None


@receiver.route("/class3", token=TOKEN)
def things(a: Any, key: Any) -> Any:
    x, y = Thing(key), Thing(a)
    return x, y, [y, x]


if __name__ == "__main__":
    receiver.run()
