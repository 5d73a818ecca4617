"""What only those who serve do is tried once per backend in the quick part of the suite: from a loop, or with
signatures, a message is sent in another way, and that others promise less is not to be expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpc.testing._deaths import Deaths
from rpc.testing._delays import Delays
from rpc.testing._detached import Detached
from rpc.testing._order import Order

OF_SERVERS = {name for part in (Deaths, Delays, Detached, Order) for name in vars(part)}
"""Tests of workers that die, wait or hold much: the dearest of the suite."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent or not (of := item.getparent(pytest.Class)):
            continue
        is_another = of.name.endswith("InALoop") or of.name == "TestSignedRedis"
        if is_another and item.originalname in OF_SERVERS:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)
