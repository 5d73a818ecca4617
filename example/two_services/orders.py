"""Orders: takes what is ordered from the other service, and tells the world."""

import logging
from itertools import count

from rpc import Event, RpcClient, expose, on

logger = logging.getLogger(__name__)


class Orders:
    name = "orders"

    def __init__(self) -> None:
        self._client = RpcClient()
        self._numbers = count(1)

    @expose
    def place(self, item: str, quantity: int = 1) -> dict[str, int]:
        """What stock raises, the caller gets: this is a call within his."""
        left = self._client.services.stock.take(item, quantity)
        number = next(self._numbers)
        self._client.publish("order.placed", {"number": number, "item": item, "quantity": quantity})
        return {"number": number, "left": left}


class Audit:
    @on("order.*", group="audit")
    def note(self, event: Event) -> None:
        logger.info("%s: %s", event.topic, event.data)
