"""What the shop does. Only the worker imports it; the web app knows the names in the settings."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from msgspec import Meta

logger = logging.getLogger(__name__)

PRICES = {"tea": 250, "coffee": 400, "cake": 320}


class Refused(Exception):
    """The customer asked for what cannot be, and may read why."""


def price(item: str) -> int:
    if item not in PRICES:
        raise Refused(f"we have no {item}")
    return PRICES[item]


def place_order(item: str, quantity: Annotated[int, Meta(ge=1)]) -> dict[str, Any]:
    return {"item": item, "quantity": quantity, "cents": price(item) * quantity}


def send_receipt(email: str, cents: int) -> None:
    logger.info("a receipt for %d cents goes to %s", cents, email)


async def preparation(item: str) -> AsyncIterator[str]:
    """What becomes of an order, as it happens."""
    for step in "ordered", "made", "served":
        yield f"{item}: {step}"
        await asyncio.sleep(1)
