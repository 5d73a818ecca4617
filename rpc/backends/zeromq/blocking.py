"""Threads that call: whoever waits for a reply reads the sockets meanwhile, for all others, too.

The sockets belong to whoever holds the turn. A lone caller writes, waits and reads in its own thread; a
thread of its own takes the turn only where nobody has for a while.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ...errors import BackendUnavailable, RpcTimeout
from ...loops import Alarm, started
from ...transport import STREAM, Address, Message
from .._retry import beside, patience
from .links import Look
from .peers import TICK
from .session import END
from .workers import GREETING, Pending, Workers

Watch = Callable[[Callable[[list[str]], object], threading.Event], None]
IDLE = 0.1
"""Seconds without anybody who waits after which a thread of its own looks after the connections."""
FAREWELL = 0.5
"""Seconds in which what was said last may still arrive."""


class Waiter:
    """A thread that waits for something to happen."""

    def __init__(self) -> None:
        self._awake = threading.Lock()
        self._awake.acquire()

    def wake(self) -> None:
        if self._awake.locked():
            with suppress(RuntimeError):  # another thread was faster
                self._awake.release()

    def wait(self, seconds: float) -> None:
        self._awake.acquire(timeout=seconds)


class Caller:
    """All threads that call on one backend, in this process."""

    def __init__(self, workers: Workers, watch: Watch) -> None:
        """`watch` tells which endpoints there are, from any thread, until the event is set."""
        self.workers = workers
        self._turn: dict[str, object] = {}
        """Who has the sockets, if anybody has: a lock that tells whose it is. Whoever is interrupted
        by a signal handler, wherever that is, can find out whether he has it."""
        self._in_doubt = False
        """Whether somebody was interrupted who had them."""
        self._alarm = Alarm()
        self._todo: deque[Callable[[], object]] = deque()
        self._followers: deque[Waiter] = deque()
        self._led = time.monotonic()
        self._closed, self._is_over = threading.Event(), False
        watch(lambda endpoints: self.do(lambda: workers.peers.connect(endpoints)), self._closed)
        started(beside([self._look_after], "rpc-zmq")[0])

    def do(self, action: Callable[[], object]) -> None:
        """Have it done by whoever has the turn: soon, or here and now."""
        self._todo.append(action)
        self._in_turn(bool, self._alarm.ring)

    def submit(self, pending: Pending) -> None:
        """Have it given to a worker; why it cannot be, it is told."""
        self._in_turn(
            lambda: None if self._is_over else self._submit(pending),
            lambda: self.do(lambda: self._submit(pending)),
        )

    def _in_turn(self, action: Callable[[], object], otherwise: Callable[[], object] = bool) -> bool:
        """Do this with the sockets, and what else is to be done, or the other thing if somebody has them;
        which of both it was. Whoever adds something later gets the turn itself."""
        if not self._tried(action):
            otherwise()
            return False
        while self._todo and not self._in_doubt and self._tried(bool):
            pass
        if self._followers:
            self._wake_a_follower()
        return True

    def _tried(self, action: Callable[[], object]) -> bool:
        me = object()
        try:
            try:
                if self._turn.setdefault("of", me) is not me:
                    return False
                if self._in_doubt and not self._is_over:
                    self.workers.peers.start_over()
                self._in_doubt = False
                action()
                self._work_off()
            except Exception:
                raise
            except BaseException:
                self._in_doubt = self._in_doubt or self._turn.get("of") is me
                raise
            finally:
                if self._turn.get("of") is me:
                    self._turn.clear()
        finally:  # again, for whoever was interrupted there
            if self._turn.get("of") is me:
                self._turn.clear()
        return True

    def _submit(self, pending: Pending) -> None:
        try:
            self.workers.submit(pending)
        except Exception as error:  # raised again where somebody waits
            pending.put(error)

    def wait(self, happened: Callable[[], object], waiter: Waiter, end: float | None) -> bool:
        """Until that happened, of which the waiter is told; False if the time was up first, or this was
        closed."""
        is_following = False
        try:
            while not happened():
                left = TICK if end is None else end - time.monotonic()
                if left <= 0 or self._closed.is_set():
                    return False
                if self._in_turn(partial(self._lead, happened, left)):
                    continue
                if is_following:
                    waiter.wait(left)
                else:  # and then look again: the turn may be free by now
                    is_following = True
                    self._followers.append(waiter)
            return True
        finally:
            if is_following:
                with suppress(ValueError):  # it was interrupted before it was one
                    self._followers.remove(waiter)
                self._wake_a_follower()

    def _lead(self, happened: Callable[[], object], seconds: float, is_alone: bool = True) -> None:
        end = time.monotonic() + seconds
        while True:
            if self._todo:
                self._work_off()
            self._led = now = time.monotonic()
            if happened() or now >= end or self._closed.is_set():
                return
            self.workers.peers.wait(end - now, self._alarm, look=is_alone and not self._followers)
            self.workers.work(happened)

    def wake(self, waiter: Waiter) -> None:
        """Something happened. Whoever begins to follow looks for himself after that."""
        if self._followers:
            waiter.wake()

    def _wake_a_follower(self) -> None:
        with suppress(IndexError):
            if self._followers and not self._turn:
                self._followers[0].wake()

    def _work_off(self) -> None:
        while self._todo:
            action = self._todo.popleft()
            if not self._is_over:
                action()

    def _look_after(self) -> None:
        while not self._closed.wait(max(0.01, IDLE - (time.monotonic() - self._led))):
            if time.monotonic() - self._led >= IDLE:
                self._in_turn(lambda: self._lead(lambda: self._followers, 3600, is_alone=False))

    def close(self) -> None:
        """Idempotent. What nobody waits for any more is not done, and workers are told."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._followers.append(waiter := Waiter())
        while not self._in_turn(self._end, self._alarm.ring):
            waiter.wait(TICK)
        for waiter in [*self._followers]:
            waiter.wake()

    def _end(self) -> None:
        self._work_off()
        peers = self.workers.peers
        for session in peers.sessions.values():
            session.send(END)
        peers.flush(FAREWELL, self._alarm)
        self._is_over = True
        peers.close()
        self._alarm.close()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    # What a backend does.

    def send(self, to: Address, message: Message) -> None:
        """Returns once a worker has it."""
        outcome: list[Exception | None] = []
        waiter = Waiter()

        def told(what: Exception | None) -> None:
            outcome.append(what)
            waiter.wake()

        pending = Pending(to, message, lambda last: told(last) if isinstance(last, Exception) else None)
        pending.accepted = lambda: told(None)
        seconds = patience(message.ttl)
        self.submit(pending)
        if not self.wait(lambda: outcome, waiter, time.monotonic() + seconds):
            self.do(lambda: self.workers.withdraw([pending]))
            raise nobody(to, seconds)
        if outcome[0] is not None:
            raise outcome[0]

    def publish(
        self, to: Address, message: Message, put: Callable[[Message | Exception], object]
    ) -> list[Pending]:
        """Send it to all that serve a topic; returns once they have it."""
        waiter, sent, outcome = Waiter(), list[Pending](), list[Exception]()
        missing: list[int] = []

        def accepted() -> None:
            missing[0] -= 1
            waiter.wake()

        def make(at: Address) -> Pending:
            pending = Pending(at, message, put)
            pending.accepted = accepted
            missing[0] += 1
            return pending

        def begin() -> None:
            missing.append(0)
            try:
                sent.extend(self.workers.publish(to, make))
            except Exception as error:  # raised again below
                outcome.append(error)

        self.until_greeted()
        self._after_look(begin, waiter)
        end = time.monotonic() + patience(message.ttl)
        self.wait(lambda: outcome or (missing and missing[0] <= 0), waiter, end)
        if outcome:
            raise outcome[0]
        return sent

    def _after_look(self, begin: Callable[[], None], waiter: Waiter) -> None:
        """Have it begun once it is known whether somebody has come where nobody was: at once, if somebody is
        everywhere."""
        looks: list[Look | None] = []
        """None: there was nothing to find out, and it has begun."""

        def look() -> None:
            found = self.workers.peers.look(GREETING, waiter.wake)
            if found.is_over():
                begin()
                looks.append(None)
                waiter.wake()
            else:
                looks.append(found)

        def end() -> None:
            if looks[0] is not None:
                self.workers.peers.end_look(looks[0])
                begin()

        def is_over() -> bool:
            return bool(looks) and (looks[0] is None or looks[0].is_over())

        self.do(look)
        self.wait(is_over, waiter, time.monotonic() + GREETING)
        if looks != [None]:
            self.do(end)

    def until_greeted(self) -> None:
        """Until it is known who serves what."""
        waiter = Waiter()
        while not self.workers.is_greeted() and not self._closed.is_set():
            self.wait(self.workers.is_greeted, waiter, time.monotonic() + 0.05)


def nobody(to: Address, seconds: float) -> BackendUnavailable:
    """The error of what no worker has taken."""
    return BackendUnavailable(f"no worker of {to} took it within {seconds:g} s: is one running, and reached?")


class BlockingReplies:
    """The way back of one request."""

    def __init__(self, caller: Caller, to: Address, message: Message) -> None:
        self._caller, self._waiter = caller, Waiter()
        self._come: deque[Message | Exception] = deque()
        self._closed = self._ended = False
        if to.kind == "topic":
            self._pendings = caller.publish(to, message, self._put)
            return
        self._pendings = [pending := Pending(to, message, self._put)]
        try:
            caller.submit(pending)
        except BaseException:
            self.close()
            raise

    def _put(self, reply: Message | Exception) -> None:
        self._come.append(reply)
        self._caller.wake(self._waiter)

    def receive(self, timeout: float | None) -> Message:
        end = None if timeout is None else time.monotonic() + timeout
        come = self._come
        self._caller.wait(lambda: come or self._closed, self._waiter, end)
        if not come:
            if self._caller.is_closed:
                raise BackendUnavailable("the client was closed")
            raise RpcTimeout
        reply = come.popleft()
        if isinstance(reply, Exception):
            raise reply
        self._ended = STREAM not in reply.headers
        return reply

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._caller.wake(self._waiter)
        left = [pending for pending in self._pendings if not pending.is_over]
        if left and not self._ended:
            self._caller.do(lambda: self._caller.workers.withdraw(left))
