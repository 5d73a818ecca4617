"""The native Redis backend for callers in event loops."""

from __future__ import annotations

from itertools import count

from ...loops import PerLoop
from ...transport import Address, AsyncBackend, AsyncReplies, Message
from .keys import Keys, QueueNames
from .pending import AsyncRedisReplies, Putting, Sending
from .sending import Sender
from .session import Session
from .topics import Topics


class AsyncRedis:
    """Sends to queues on connections of each event loop; `others` does the rest."""

    def __init__(self, sender: Sender, names: QueueNames, topics: Topics, others: AsyncBackend) -> None:
        self._sender, self._names, self._topics, self._others = sender, names, topics, others
        self._count = count()
        self.features, self.max_message = others.features, others.max_message
        self._sessions: PerLoop[dict[str, Session]] = PerLoop(dict, _abandon)

    async def send(self, to: Address, message: Message) -> None:
        if to.kind == "inbox" and not self._sender.servers.is_cluster:
            return await self._put(to, message)
        if to.kind != "queue":
            return await self._others.send(to, message)
        keys = self._names.queue(to.name)
        session = self._session(keys)
        sending = Sending(session, self._sender, keys, message)
        session.post(sending)
        await sending.done

    async def _put(self, to: Address, message: Message) -> None:
        """On a connection that there is: an inbox may be on the server of any queue."""
        session = next(iter(self._sessions.here().values()), None) or self._session(
            self._names.queue("default")
        )
        putting = Putting(session, f"{message.id} {next(self._count)}", *self._topics.entry(to, message))
        session.post(putting)
        await putting.done

    async def request(self, to: Address, message: Message) -> AsyncReplies:
        if to.kind != "queue":
            return await self._others.request(to, message)
        keys = self._names.queue(to.name)
        session = self._session(keys)
        replies = AsyncRedisReplies(session, self._sender, keys, message)
        session.pending[replies.id] = replies
        session.post(replies)
        return replies

    async def close(self) -> None:
        for session in (self._sessions.pop() or {}).values():
            await session.close()
        await self._others.close()

    def _session(self, keys: Keys) -> Session:
        sessions = self._sessions.here()
        if keys.tag not in sessions:
            sessions[keys.tag] = Session(self._sender, keys)
        return sessions[keys.tag]


def _abandon(sessions: dict[str, Session]) -> None:
    for session in sessions.values():
        session.abandon()
