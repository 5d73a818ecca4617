"""A *room*: a channel on a connection of an event loop, and the requests whose replies come on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...transport import Address
from .aio_connection import Peer
from .calls import CANCEL, DEAFEN, EXCHANGE, LISTEN, MOVED, OWN_EXCHANGE, control_key
from .wire import REPLY_TO, Arrival, Basic, Channel, Confirm, frames

if TYPE_CHECKING:
    from .aio import AsyncLaneReplies


class Room:
    """A channel, and whose replies come on it."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer, self.number = peer, number
        self.requests: dict[str, AsyncLaneReplies] = {}
        self.is_tainted = False
        """Whether somebody left: nobody moves in until its name is another one."""
        self._tag = 0
        self._sent: dict[int, str] = {}
        peer.rooms[number] = self.hear
        peer.write(frames(number, Channel.Open(), Confirm.Select(nowait=True), LISTEN))

    def publish(self, replies: AsyncLaneReplies, exchange: str, key: str) -> None:
        message = replies.message
        self._tag += 1
        self._sent[self._tag] = message.id
        self.peer.write(
            self.peer.published(
                self.number, key, replies.properties, message.body, exchange=exchange, mandatory=True
            )
        )

    def notice(self, kind: str, to: Address, id: str) -> None:
        """As the one of those that block."""
        self._tag += 1
        back = REPLY_TO if kind == MOVED else None
        properties = Basic.Properties(message_type=kind, correlation_id=id, reply_to=back, delivery_mode=1)
        said = self.peer.published(self.number, control_key(to.name), properties, b"", exchange=EXCHANGE)
        self.peer.write(frames(self.number, OWN_EXCHANGE) + said)

    def leave(self, id: str, to: Address, ended: bool) -> None:
        """A request is over, or nobody waits for it any more."""
        self.requests.pop(id, None)
        self.is_tainted = self.is_tainted or not ended
        if self.is_tainted and not self.requests:
            self.peer.write(frames(self.number, DEAFEN))
        if not ended:
            self.notice(CANCEL, to, id)
        if self.is_tainted and not self.requests:
            self.peer.write(frames(self.number, LISTEN))
            self.is_tainted = False

    def hear(self, arrival: Arrival) -> None:
        method, properties = arrival.method, arrival.properties
        if isinstance(method, Basic.Deliver | Basic.Return):
            if replies := self.requests.get(properties.correlation_id or ""):
                replies.hear(arrival)
        elif isinstance(method, Basic.Ack | Basic.Nack):
            last = method.delivery_tag
            for tag in [tag for tag in self._sent if tag <= last] if method.multiple else [last]:
                replies = self.requests.get(self._sent.pop(tag, ""))
                if replies and isinstance(method, Basic.Nack):
                    replies.hear(arrival)
