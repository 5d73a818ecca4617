"""A client that is closed while threads wait for what it asked for."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
from in_memory import LONG, Site

from rpc import Cancelled, Request, RpcClient
from rpc.backends import backend_from_url
from rpc.threads import DaemonThreads


@pytest.fixture
def threads() -> Any:
    pool = DaemonThreads(2, "waits")
    yield pool
    pool.shutdown(wait=False)


@pytest.mark.parametrize("owner", ["of the client", "of the program"])
def test_whoever_waits_is_told_at_once(job_url: str, owner: str, threads: DaemonThreads) -> None:
    begun, over = Event(), Event()

    def hold(request: Request) -> None:
        begun.set()
        over.wait()

    with ExitStack() as stack:
        site = Site(stack, job_url)
        site.serve({"hold": hold, "add": lambda: 2})
        stack.callback(over.set)
        backend: Any = job_url
        if owner == "of the program":
            backend = backend_from_url(job_url)
            stack.callback(backend.close)
        client = RpcClient(backend=backend, timeout=None)
        stack.callback(client.close)
        waiting = threads.submit(lambda: client.call_and_wait("hold"))
        assert begun.wait(LONG)
        client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            waiting.result(LONG)
        over.set()
        assert client.call_and_wait("add", timeout=LONG).data == 2
