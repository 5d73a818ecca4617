"""What clients see of jobs, queues, workers and services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from typing import Any

from .caller import AS_SET, Caller
from .core.registry import ServiceChange, ServiceInfo, Wanted
from .describe import HEALTH_CHECK, Discovery, Gathering, WorkerInfo, answers, answers_in_loop
from .durations import Duration, seconds
from .errors import NoReceivers, RpcTimeout
from .inspection import QueueInfo
from .job_info import JobInfo, ListedState
from .proxies import OneService, OneServiceAsync, Services
from .registry.lookup import HEALTHY, is_well, places, queues_of
from .registry.watching import AsyncWatch, Watch
from .transport import AsyncBackend


class Overview(Caller):
    """The base of RpcClient."""

    submit: Callable[..., Future[Any]]
    """That of the client."""

    def job(self, id: str, *, queue: str | None = None) -> JobInfo:
        """What is known of a job by its id: `state`, `result`, why it failed; see `JobInfo`. It is looked for
        in `queue`, else in all that this client knows. Raises BackendUnavailable, Unsupported."""
        return self._inspector.job(id, queue)

    def jobs(
        self, *, queue: str | None = None, state: ListedState | None = None, name: str | None = None
    ) -> list[JobInfo]:
        """The jobs that are scheduled, wait, run or are dead letters: of one queue, in one state, of one
        name. Raises ValueError, BackendUnavailable, Unsupported."""
        return [*self._inspector.jobs(queue, state, name)]

    def queues(self, *, domain: str | None = None, queue: str | None = None) -> list[QueueInfo]:
        """How many jobs wait, run, are scheduled and dead in each queue that this client knows: those of the
        settings, and its own; with `domain`, also those of the services of that domain that run now; with
        `queue`, in that one alone. Raises ValueError, BackendUnavailable, Unsupported."""
        services = () if domain is None else self.list_services(domain=domain)
        return self._inspector.queues(queues_of(services), queue)

    def cancel(self, id: str, *, queue: str | None = None) -> bool:
        """`JobInfo.cancel` of the job with this id, wherever it was sent from."""
        return self._inspector.job(id, queue).cancel()

    def retry(self, id: str, *, queue: str | None = None) -> bool:
        """`JobInfo.retry` of the job with this id."""
        return self._inspector.job(id, queue).retry()

    def describe(self, *, wait: Duration = 0.5, settled: Duration | None = None) -> list[WorkerInfo]:
        """What the workers that run now offer, as told by those that answer within `wait` seconds, or until
        none has answered for `settled` seconds, and all services have that are known to run. Raises
        BackendUnavailable, Unsupported by this backend."""
        wait, gathered = seconds(wait, "wait"), Gathering()
        quiet = self._quiet(gathered, settled)
        for reply in answers(self.backend, self._describing(wait), wait, quiet):
            gathered.add(reply)
        return gathered.workers

    def list_services(
        self,
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        health_check: bool = False,
    ) -> list[ServiceInfo]:
        """The services that run and fit, each of their replicas by itself. `version` is one, or says which:
        ">=1.2,<2". With `health_check`, those alone that answer their job of that name with true, within two
        seconds. All are asked, and those that answer within a fraction of a second are listed. Raises
        ValueError, BackendUnavailable, Unsupported by this backend."""
        found = self.lookup.listed(Wanted(domain, type, id, version))
        if not health_check:
            return found
        checks = [self.submit(HEALTH_CHECK, timeout=HEALTHY, queue=each) for each in places(found)]
        wait(checks)
        return [each for each, check in zip(found, checks, strict=True) if is_well(check)]

    def watch_services(
        self,
        callback: Callable[[ServiceChange], object],
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
    ) -> Watch:
        """Have `callback` told, in a thread of its own, of each service that is up, down or changed, as far
        as they fit, and first of those that run now. What it raises is logged. `close()`, or `with`, ends it,
        as closing this client does. Raises ValueError, Unsupported by this backend, and BackendUnavailable if
        it does not begin within this client's `timeout`."""
        wanted = Wanted(domain, type, id, version)
        watch = Watch(self.backend, wanted, callback)
        self._watches.add(watch)
        watch.begin(self.allowed(AS_SET))
        return watch

    def service(
        self,
        *,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        domain: str | None = None,
        instance: str | None = None,
        wait_for_receiver: Duration = 0.0,
    ) -> Services:
        """The jobs of one service, to be called like functions: `client.service(type="shop").order(1)`.

        With `id`, the replicas of that domain, type and id share the calls; without, all of the type do; with
        `instance`, as `list_services` has it, that one gets them, at most once. `version` is as there, the
        `domain` is that of the settings, if none is given. If nobody who fits runs, a call is NoReceivers, at
        once, or after `wait_for_receiver` seconds. Raises ValueError.
        """
        wanted = self.looking_for(domain, type, id, version, instance)
        wait = seconds(wait_for_receiver, "wait_for_receiver")
        return Services(OneService(self, self.lookup, wanted, wait), all_jobs=True)

    def discover(
        self,
        service: str | None = None,
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        wait: Duration = 0.5,
    ) -> dict[str, Any]:
        """The OpenRPC document of what the workers that run now offer, or of one service or job: of those
        workers that say within `wait` seconds that they run, and then, each within this time, what they
        offer; of several that offer the same, one is asked. `domain`, `type`, `id` and `version` pick
        workers, as in `list_services`. Title and version are those of the first that offers it, by name and
        version; of several types without `service`, their domain. Raises NoReceivers, ServiceNotFound,
        RpcTimeout, ValueError, BackendUnavailable, Unsupported by this backend."""
        wait, wanted = seconds(wait, "wait"), Wanted(domain, type, id, version)
        wanted.check()
        found = Discovery(self.describe(wait=wait), wanted)
        for worker in found:
            asked = self._discovering(worker, wait)
            with suppress(RpcTimeout, NoReceivers), closing(self.backend.request(*asked)) as replies:
                found.add(worker, replies.receive(wait))
        return found.document(service)


class AsyncOverview(Caller):
    """The base of AsyncRpcClient."""

    _described: Sequence[WorkerInfo] = ()
    """What the last `describe` was told."""
    submit: Callable[..., asyncio.Future[Any]]
    """That of the client."""
    _async: AsyncBackend

    async def job(self, id: str, *, queue: str | None = None) -> JobInfo:
        """As `RpcClient.job`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue))

    async def jobs(
        self, *, queue: str | None = None, state: ListedState | None = None, name: str | None = None
    ) -> list[JobInfo]:
        """As `RpcClient.jobs`."""
        return await asyncio.to_thread(lambda: [*self._inspector.jobs(queue, state, name)])

    async def queues(self, *, domain: str | None = None, queue: str | None = None) -> list[QueueInfo]:
        """As `RpcClient.queues`."""
        services = () if domain is None else await self.list_services(domain=domain)
        return await asyncio.to_thread(self._inspector.queues, queues_of(services), queue)

    async def cancel(self, id: str, *, queue: str | None = None) -> bool:
        """As `RpcClient.cancel`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue).cancel())

    async def retry(self, id: str, *, queue: str | None = None) -> bool:
        """As `RpcClient.retry`."""
        return await asyncio.to_thread(lambda: self._inspector.job(id, queue).retry())

    async def describe(self, *, wait: Duration = 0.5, settled: Duration | None = None) -> list[WorkerInfo]:
        """As `RpcClient.describe`."""
        wait, gathered = seconds(wait, "wait"), Gathering()
        quiet = await asyncio.to_thread(self._quiet, gathered, settled)
        async for reply in answers_in_loop(self._async, self._describing(wait), wait, quiet):
            gathered.add(reply)
        self._described = workers = gathered.workers
        return workers

    async def list_services(
        self,
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        health_check: bool = False,
    ) -> list[ServiceInfo]:
        """As `RpcClient.list_services`."""
        found = await asyncio.to_thread(self.lookup.listed, Wanted(domain, type, id, version))
        if not health_check:
            return found
        checks = [self.submit(HEALTH_CHECK, timeout=HEALTHY, queue=each) for each in places(found)]
        if checks:
            await asyncio.wait(checks)
        return [each for each, check in zip(found, checks, strict=True) if is_well(check)]

    async def watch_services(
        self,
        callback: Callable[[ServiceChange], object],
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
    ) -> AsyncWatch:
        """As `RpcClient.watch_services`, but the callback, a plain function, is called in this event loop;
        `close()` is awaited, or `async with` ends it."""
        loop = asyncio.get_running_loop()

        def tell(change: ServiceChange) -> None:
            loop.call_soon_threadsafe(lambda: callback(change))

        watch = AsyncWatch(self.backend, Wanted(domain, type, id, version), tell, loop)
        self._watches.add(watch)
        try:
            await asyncio.to_thread(watch.begin, self.allowed(AS_SET))
            return watch
        except BaseException:
            watch.leave()
            raise

    async def service(
        self,
        *,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        domain: str | None = None,
        instance: str | None = None,
        wait_for_receiver: Duration = 0.0,
    ) -> Services:
        """As `RpcClient.service`, but it is looked up here that there is one: raises NoReceivers. A call is
        awaited."""
        wanted = self.looking_for(domain, type, id, version, instance)
        wait = seconds(wait_for_receiver, "wait_for_receiver")
        await asyncio.to_thread(self.lookup.find, wanted, wait)
        return Services(OneServiceAsync(self, self.lookup, wanted, wait), all_jobs=True)

    async def discover(
        self,
        service: str | None = None,
        *,
        domain: str | None = None,
        type: str | None = None,
        id: str | None = None,
        version: str | None = None,
        wait: Duration = 0.5,
    ) -> dict[str, Any]:
        """As `RpcClient.discover`."""
        wait, wanted = seconds(wait, "wait"), Wanted(domain, type, id, version)
        wanted.check()
        found = Discovery(await self.describe(wait=wait), wanted)
        for worker in found:
            asked = self._discovering(worker, wait)
            with suppress(RpcTimeout, NoReceivers), closing(await self._async.request(*asked)) as replies:
                found.add(worker, await replies.receive(wait))
        return found.document(service)
