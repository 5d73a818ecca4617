"""The caller's shell: it sends, and it waits. What is said and what it means is in `core`."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from datetime import datetime, timedelta
from typing import Any, TypeVar

from .aio import answer, value
from .caller import AS_SET, GRACE, Key, Pause
from .core.events import NOTHING
from .core.filters import Match, Scalar
from .core.jobs import Response, current_request
from .core.log_batches import wanted_entries
from .deadlines import SLACK, left, within
from .describe import WorkerInfo
from .durations import Duration
from .errors import QueueFull, RpcTimeout
from .http_peers import HttpPeer, HttpPeers, Style
from .overview import Overview
from .pending import OnProgress, PendingCall, Told
from .proxies import Services
from .streams.iterators import Stream, Uploadable
from .streams.records import LogStream, of_logs
from .streams.subscribing import BUFFER, Callback, EventStream, Hearing, Hearings, RetryOn, Since, wanted
from .submits import Submits, Waits, pipelined
from .threads import blocked
from .transport import STREAM, Address, Message

T = TypeVar("T")


class RpcClient(Overview):
    """Calls jobs by name. Safe to share between threads, and to use after a fork.

    Without `backend`, everything that is not given comes from the settings module (see `rpc.settings`);
    `settings` names another one, or is one. `backend` is a backend or its URL, `timeout` the seconds a call
    waits (None: without end), `queue` where calls go, `codec` the name of one ("json", "msgpack",
    "json+types"; see `rpc.codecs`), `compress` how large bodies are made smaller ("gzip", "zstd", with a size
    from which on they are: "gzip:16kB"), `max_message_bytes` the largest request, and reply, `when_full` what
    to do when a bounded queue has no room: "raise" QueueFull, or "wait" for as long as the call may take
    (`call`: as `timeout` says), `token` a mapping from names of jobs, or patterns, to the tokens that go with
    such calls. Raises SettingsError if there is no usable setting; connects at the first call.
    """

    def _begin(self) -> None:
        self._submits = Submits(self.backend)
        self._hearings, self._waits = Hearings(), Waits()
        self._peers = HttpPeers[HttpPeer]()

    def call(
        self,
        name: str,
        data: Any = None,
        *,
        queue: str | None = None,
        ttl: Duration | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        keep: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send a job and do not wait: the id of the request. Returns once the broker has it.

        `data` is a dict or a list; `ttl` is the seconds after which it is no longer wanted (None: it waits
        as long as it must). It is done after `delay` seconds, or `at` a time (one without a zone is local).
        Of the calls of this job with one `idempotency_key` (a str, an int or a UUID), only the first is done.
        Jobs with one `order_key` (the same kinds), in one queue, are done one after the other, as they were
        sent.
        Its outcome is kept for `keep` seconds after its end, for `job()`. Raises SerializationError before
        anything is sent, ValueError, QueueFull, Unsupported by this backend, and BackendUnavailable when the
        broker cannot be had for 5 seconds, or the client's `timeout` if that is less.
        """

        about = name, data, ttl, delay, at, idempotency_key, order_key, keep, headers
        return self._send(lambda: self._job(*about), self.to(name, queue))

    def call_and_wait(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Response:
        """Send a job and wait for its response.

        `data` is a dict or a list; `timeout` is in seconds (None: without end); `headers` are texts, of the
        trace (`traceparent`, `tracestate`, `baggage`) or the application's own (`x-…`). Of calls of this job
        with one `idempotency_key` (a str, an int or a UUID), only the first is done, and all get its
        response. Jobs with one `order_key` (the same kinds), in one queue, are done one after the other, as
        they were sent. Called by a handler, it is a part of that request: within its time, and with those
        headers of it. Raises ValueError for wrong arguments, RemoteError if the handler raised,
        MethodNotFound, InvalidParams, WorkerLost, SerializationError, RpcTimeout when the time is up,
        Cancelled if the client is closed meanwhile, BackendUnavailable, QueueFull, Unsupported by this
        backend. A caller that stops waiting, for whatever reason, withdraws a job that has no idempotency
        key. `on_progress` is called with each `Progress` that the handler tells.
        """
        allowed = self.allowed(timeout)
        about = name, data, allowed, idempotency_key, headers, on_progress, returns, order_key
        pending = PendingCall(self, *about)
        with within(None if allowed is None else allowed + SLACK):
            return self._with_room(lambda: self._answer(pending, queue), pending.pause)

    def submit(
        self,
        name: str,
        data: Any = None,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Future[Response]:
        """Send a job, and return a future of its response. Errors as in `call_and_wait`: those of the data
        are raised here, the others by the future. `cancel()` withdraws the job until it is answered. However
        many wait, one thread minds them; it is that which calls `on_progress`. The future's attribute
        `progress` is the last `Progress` that the handler has told (None: none yet)."""
        told = Told(on_progress)
        options: dict[str, Any] = {"idempotency_key": idempotency_key, "order_key": order_key}
        options |= {"headers": headers, "returns": returns, "on_progress": told}
        future = self._submit(answer, name, data, timeout=timeout, queue=queue, **options)
        return told.by(future)

    def invoke(self, name: str, data: Any, **options: Any) -> Any:
        """The value that `call_and_wait` responds with: for proxies."""
        return self.call_and_wait(name, data, **options).data

    def invoke_soon(self, name: str, data: Any, **options: Any) -> Future[Any]:
        """A future of it."""
        return self._submit(value, name, data, **options)

    def known(self) -> list[WorkerInfo]:
        """What can be said at once of the workers that run now."""
        return self.describe()

    def map(
        self,
        name: str,
        iterable: Iterable[Any],
        *,
        window: int = 100,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        returns: Any = None,
    ) -> Iterator[Response]:
        """The responses to a job called with each item as its data, in order. At most `window` of them are
        under way, and no more are taken from the iterable. `timeout`, in seconds, is for each, as
        `returns` is. Errors are as
        in `call_and_wait`: the first one ends it, and what is under way is withdrawn."""
        options: dict[str, Any] = {"timeout": timeout, "queue": queue, "returns": returns}
        return pipelined(lambda item: self.submit(name, item, **options), iterable, window)

    def stream(
        self,
        name: str,
        data: Any = None,
        *,
        window: int = 1,
        items: Uploadable | None = None,
        resume: bool = False,
        timeout: Duration | None = AS_SET,
        queue: str | None = None,
        headers: Mapping[str, str] | None = None,
        returns: Any = None,
    ) -> Stream:
        """The items that a generator handler yields, one after the other, as a generator.

        Its body begins at the first `next()`. With `window=1` it never runs ahead, and takes part in `send()`
        and `throw()`; with more, so many items are on their way, which is many times faster. `items` are
        uploaded: the handler finds them in `request.items`. Of a handler that returns, `value` (that of
        StopIteration) is what it returned. `close()`, `with`, or to forget it, closes the generator there.
        A worker must begin it within `timeout` seconds (None: at any time); after that it goes on for as long
        as both sides live. If the worker dies, WorkerLost is raised; with `resume`, another one goes on,
        whose handler finds in `request.resume_from` how many items there were. `returns` is an annotation, to
        which each item is converted. Raises ValueError and
        SerializationError at once, the other errors of `call_and_wait` and StreamBroken as it goes on.
        """
        options: dict[str, Any] = {"timeout": timeout, "queue": queue, "headers": headers, "items": items}
        where = self._submits.run, self, self._submits.backend
        return Stream(*where, name, data, window=window, resume=resume, returns=returns, **options)

    def publish(self, event: str, data: Any = NOTHING, *, headers: Mapping[str, Scalar] | None = None) -> str:
        """Tell all who listen to an event (see `on`); the id of the event. Returns once the broker has it:
        that nobody listens is no error.

        `data` is any value, or bytes, which travel as they are; without it, listeners get {}. `headers` are
        texts, numbers and booleans, by names that the listeners know; those that say who publishes are added.
        Raises ValueError, SerializationError before anything is sent, BackendUnavailable, Unsupported by this
        backend.
        """
        to, message = self._event(event, data, headers)
        with within(self.allowed(AS_SET)):
            self.backend.send(to, message)
        return message.id

    def subscribe(
        self,
        event: str,
        *,
        headers: Mapping[str, Scalar | None] | None = None,
        match: Match = "all",
        group: str | None = None,
        durable: bool = False,
        callback: Callback | None = None,
        retries: int = 0,
        backoff: Duration = 1.0,
        retry_on: RetryOn = (Exception,),
        buffer: int = BUFFER,
        since: Since | None = None,
    ) -> EventStream:
        """Hear events, by an iterator or a callback, until it is closed, or this client is. Returns once what
        is published from now on is heard.

        `event`, `headers`, `match`, `group` and `durable` are those of `on`: without a group this subscriber
        hears every event, and at most `buffer` of them wait to be taken. If more come, the oldest are missed,
        and the next one raises SubscriberLagged. What is for a group is handed out one at a time: it is done
        when the next one is asked for, or the callback has returned; in a durable group, what was not done
        goes to another member, or waits. `callback` is called as a listener is, with the data or the Event;
        what it raises is logged, and tried again as `retries`, `backoff` (seconds) and `retry_on` say. With
        `since`, what was published since that time (datetime), for so long (timedelta), or after the event
        with this id (str) is heard first, where the backend remembers it. Raises ValueError, SettingsError
        for a callback with another number of arguments than one, Unsupported by this backend, and
        BackendUnavailable if it does not begin within this client's `timeout`.
        """
        asked = wanted(
            event,
            headers=headers,
            match=match,
            group=group,
            durable=durable,
            callback=callback,
            retries=retries,
            backoff=backoff,
            retry_on=retry_on,
            buffer=buffer,
            since=since,
        )
        return self._subscribed(Hearing(self, asked, run=self._submits.wait_for))

    def logs(
        self,
        *,
        level: str | int | None = None,
        service: str | None = None,
        logger: str | None = None,
        since: datetime | timedelta | None = None,
    ) -> LogStream:
        """Hear what other processes log, until it is closed, or this client is: those that have an
        `rpc.logs.RpcLogHandler`, and workers that send their logs. Returns once what is logged from now on is
        heard.

        `level` is the lowest one, as "warning" or 30; `service` a pattern for domain, type and id of a
        service, as "shop.*"; `logger` the name of one, which stands for those below it, too, or a pattern.
        With `since`, what was sent since then, or for so long, is heard first, where the backend remembers
        it. Where records are missing, an entry of the logger "rpc.logs" says how many. Raises ValueError,
        Unsupported by this backend, BackendUnavailable if it does not begin within this client's `timeout`.
        """
        wants, asked = wanted_entries(level, service, logger), of_logs(since)
        self._need_topics()
        return LogStream(self._subscribed(Hearing(self, asked, run=self._submits.wait_for)), wants)

    def _subscribed(self, hearing: Hearing) -> EventStream:
        self._hearings.join(hearing)
        hearing.begin(self.allowed(AS_SET))
        return EventStream(hearing)

    def at(self, url: str, *, style: Style = "simple", token: str | None = None) -> HttpPeer:
        """Whoever is reached at this URL, or host and port, over HTTP, called in the simple style:
        `client.at("http://host:5000").helloworld("x")`; or, in the `style` "jsonrpc", as JSON-RPC 2.0 at just
        this URL. Calls wait as long as this client's do; connections are kept until it is closed. `token` is
        sent there, and nowhere else. Raises SettingsError, ValueError, Unsupported without the extra
        `http`."""
        return self._peers.at(HttpPeer, url, style, token, timeout=self.timeout, most=self.writing.most)

    @property
    def services(self) -> Services:
        """What services expose, to be called like functions: `client.services.example.foo(1, key=2)`."""
        return Services(self)

    def close(self) -> None:
        """Cancel the submitted calls that are not answered, end subscriptions and watches, and give back
        connections; threads that wait in `call_and_wait` get Cancelled. Idempotent."""
        self._waits.end(GRACE)
        hearings = list(self._hearings)
        for each in hearings:  # all at once: each may take long while the broker hangs
            each.leave()
        for hearing in hearings:
            hearing.close(done=False)
        for watch in list(self._watches):
            watch.join()
        self._submits.close()
        for peer in self._peers.all():
            peer.close()
        self._store.close()
        if self._owns_backend:
            self.backend.close()

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        what: Callable[..., Coroutine[Any, Any, T]],
        name: str,
        data: Any,
        *,
        timeout: Duration | None = AS_SET,
        queue: str | Address | None = None,
        idempotency_key: Key | None = None,
        order_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        returns: Any = None,
    ) -> Future[T]:
        """A future of `what`: `answer`, or `value`."""
        allowed = self.allowed(timeout)
        about = name, data, allowed, idempotency_key, headers, on_progress, returns, order_key
        pending = PendingCall(self, *about)
        where = self._submits.backend, self.to(name, queue)
        return self._submits.run(what(*where, pending))

    def _send(self, make: Callable[[], Message], to: Address) -> str:
        """Send the message that is made when there may be room for it; its id."""

        allowed = self.allowed(AS_SET)

        def send() -> str:
            message = make()
            with within(allowed):
                self.backend.send(to, message)
            return message.id

        return self._with_room(send, self._pausing(allowed))

    def _with_room(self, action: Callable[[], T], pause: Pause) -> T:
        """What the action returns. While there is no room in the queue it is tried again, if this client
        waits for that."""
        attempt = 0
        while True:
            try:
                return action()
            except QueueFull as full:
                time.sleep(pause(attempt, full))
                attempt += 1

    def _answer(self, pending: PendingCall, queue: str | None) -> Response:
        to = self.to(pending.name, queue)
        ends = self._waits.ends
        replies = self.backend.request(to, pending.request)
        try:
            with blocked(), self._waits.on(replies, ends):
                while STREAM in (reply := replies.receive(pending.remaining(time.monotonic()))).headers:
                    pending.told(reply)
        except RpcTimeout as late:
            ended, hint = time.monotonic(), str(late)
            with within(GRACE):
                reason = self.reason(to)
                replies.close()
                hint = hint or _heard(reason)
            raise pending.timed_out(ended, hint, current_request.get(), to.name) from None
        finally:
            with within(GRACE):
                replies.close()
        return pending.feed(reply)


def _heard(reason: Future[str]) -> str:
    wait([reason], left(GRACE))
    return reason.result() if reason.done() else ""
