import logging

from rpc import Event, on

logger = logging.getLogger(__name__)


class Mail:
    @on("orders", headers={"large": True}, group="mail", durable=True, retries=3)
    def tell(self, event: Event) -> None:
        """One of the replicas hears of each large order, also if none runs when it is placed."""
        logger.info("a mail about %s", event.data["id"])
