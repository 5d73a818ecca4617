"""What `make fuzz` runs, briefly and without a fuzzer: so that it runs at all."""

from __future__ import annotations

import random

import pytest

from . import NAMES

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")
pytest.importorskip("zmq", reason="needs ZeroMQ: pip install jobrpc[zmq]")
pytest.importorskip("httptools", reason="needs jobrpc[http]")

from .targets import TARGETS, seeds


def test_all_have_names() -> None:
    assert [*TARGETS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_nearly_right_raises_nothing(name: str) -> None:
    dice, some = random.Random(name), seeds(name)
    for seed in some:
        TARGETS[name](seed)
    for _ in range(500):
        data = bytearray(dice.choice(some))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        TARGETS[name](bytes(data))
