"""Hearing topics and inboxes on Redis: one connection for all that this process hears by itself, and one for
each group that it is in. A handler that takes long keeps only what comes to the same address waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import redis

from ...errors import SerializationError
from ...transport import Address, Handler, Message, packed, unpacked
from .._serving import Cancellable
from .connection import BLOCK, milliseconds, steadily, translated_or_logged
from .scripts import JOIN
from .servers import Place, is_elsewhere
from .topics import KEEP_TOPIC, channel_key, entries, reply_key

logger = logging.getLogger(__name__)

AHEAD = 256
"""Messages of one address that are read before they are handled; what is more waits in Redis."""
LOOK_AGAIN = 0.05
"""Seconds until an address with so many is looked at again."""
PRESENT = 5.0
"""Seconds after which a group whose members give no sign is empty: whoever joins it then does not hear what
came before."""

Told = Callable[[bool], object]


class Hearing:
    """What one `serve` hears. `told` is called when there is a connection to hear on, and when it is lost;
    `spread`: what has two keys may be on two servers."""

    def __init__(
        self,
        place: Place,
        addresses: Sequence[Address],
        handler: Handler,
        stopped: Callable[[], bool],
        *,
        spread: bool,
        told: Told,
    ) -> None:
        common = (place, handler, stopped)
        alone = [each for each in addresses if not each.group]
        together = [[each] for each in alone] if spread else [alone]
        self._members = [_Member(each, *common) for each in addresses if each.group]
        self._parts: list[_Part] = [*(_Ear(some, *common) for some in together if some), *self._members]
        self._stopped = stopped
        if self._parts:
            self._parts[0].told = told

    def beginnings(self) -> list[Callable[[], object]]:
        """What to do before it is said that this process hears: from then on, nothing is missed."""
        return [each.begin for each in self._parts]

    def loops(self) -> list[Callable[[], None]]:
        """They hear until stopped."""
        loops = [loop for each in self._parts for loop in each.loops()]
        return [*loops, partial(steadily, self._be_present, self._stopped)] if self._members else loops

    def _be_present(self) -> None:
        for each in self._members:
            each.sign()
        time.sleep(BLOCK)


class _Part:
    """What has a connection of its own."""

    told: Told = staticmethod(lambda connected: None)

    def __init__(self, place: Place, handler: Handler, stopped: Callable[[], bool]) -> None:
        self._place, self._handler, self._stopped = place, handler, stopped

    def begin(self) -> None:
        """Settle from where on it is heard, if that is not settled."""
        raise NotImplementedError

    def loops(self) -> list[Callable[[], None]]:
        raise NotImplementedError

    def _until_stopped(self, step: Callable[[], object]) -> None:
        def told_step() -> None:
            try:
                step()
            except redis.RedisError as error:
                if is_elsewhere(error):
                    self._place.moved()
                raise
            self.told(True)

        steadily(told_step, self._stopped, lost=lambda: self.told(False))

    def _handle(self, to: Address, fields: dict[bytes, bytes]) -> None:
        try:
            delivery = _ChannelDelivery(self._place, to, unpacked(fields[b"m"]))
            last = self._handler(delivery)
            if last is not None:
                with translated_or_logged():
                    delivery.reply(last)
        except (SerializationError, KeyError) as error:
            logger.warning("not a message of ours: %s", error)
        except Exception:
            logger.exception("a handler raised")


class _Line:
    """An address, and what has been read there."""

    def __init__(self, address: Address) -> None:
        self.address, self.key = address, channel_key(address)
        self.last: Any = "0-0" if address.kind == "inbox" else None
        """The entry up to which it has been read; None: from now on."""
        self.read: SimpleQueue[tuple[Any, dict[bytes, bytes]] | None] = SimpleQueue()


class _Ear(_Part):
    """Reads several streams of one server, and hands what comes to a thread for each."""

    def __init__(self, addresses: Iterable[Address], *common: Any) -> None:
        super().__init__(*common)
        self._lines = {line.key: line for line in map(_Line, addresses)}

    def loops(self) -> list[Callable[[], None]]:
        return [self._listen, *(partial(self._work_off, line) for line in self._lines.values())]

    def begin(self) -> None:
        new = [line for line in self._lines.values() if line.last is None]
        if not new:
            return
        pipe = self._place.client(new[0].key).pipeline(transaction=False)
        for line in new:
            pipe.xrevrange(line.key, count=1)
        for line, newest in zip(new, pipe.execute(), strict=True):
            line.last = newest[0][0] if newest else "0-0"

    def _listen(self) -> None:
        try:
            self._until_stopped(self._step)
        finally:
            for line in self._lines.values():
                line.read.put(None)

    def _step(self) -> None:
        self.begin()
        wanted = {key: line.last for key, line in self._lines.items() if line.read.qsize() < AHEAD}
        block = BLOCK if len(wanted) == len(self._lines) else LOOK_AGAIN
        if not wanted:
            time.sleep(block)
            return
        client = self._place.client(next(iter(wanted)))
        for key, id, fields in entries(client.xread(wanted, count=64, block=milliseconds(block))):
            line = self._lines[key]
            line.last = id
            line.read.put((id, fields))

    def _work_off(self, line: _Line) -> None:
        while (entry := line.read.get()) and not self._stopped():
            id, fields = entry
            self._handle(line.address, fields)
            if line.address.kind == "inbox":
                with translated_or_logged():
                    self._place.client(line.key).xdel(line.key, id)


class _Member(_Part):
    """Of a group. What the others have taken, it does not see."""

    def __init__(self, address: Address, *common: Any) -> None:
        super().__init__(*common)
        self._address, self._key = address, channel_key(address)
        self._members = f"rpc:members:{{{address.name}}}:{address.group}"
        self._origin = "$"
        """From now on; but after the stream was lost, from its new beginning."""

    def loops(self) -> list[Callable[[], None]]:
        return [partial(self._until_stopped, self._step)]

    def begin(self) -> None:
        client = self._place.client(self._key)
        arguments = self._address.group, self._origin, milliseconds(PRESENT)
        client.register_script(JOIN)([self._key, self._members], arguments)
        self._origin = "0"

    def sign(self) -> None:
        """Say that the group has members."""
        pipe = self._place.client(self._key).pipeline(transaction=False)
        pipe.pexpire(self._key, milliseconds(KEEP_TOPIC))
        pipe.set(self._members, 1, px=milliseconds(PRESENT))
        pipe.execute()

    def _step(self) -> None:
        client, group = self._place.client(self._key), self._address.group
        try:
            read = client.xreadgroup(
                group, "any", {self._key: ">"}, count=1, block=milliseconds(BLOCK), noack=True
            )
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self.begin()
            return
        for _, _, fields in entries(read):
            self._handle(self._address, fields)


class _ChannelDelivery(Cancellable):
    """A message from a topic or an inbox: any number of receivers may reply to it."""

    def __init__(self, place: Place, to: Address, message: Message) -> None:
        self._place, self.to, self.message = place, to, message

    def reply(self, message: Message) -> bool:
        if self.message.reply_to is None:
            return False
        key = reply_key(self.message.reply_to)
        return bool(self._place.client(key).xadd(key, {"m": packed(message)}, nomkstream=True))

    def forbid_redelivery(self) -> None:
        """Nothing to do: topics and inboxes never deliver again."""
