"""A worker that is told to stop while its broker hangs: what it says disappears, and nothing comes back."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.proxy import Proxy
from in_memory import until

from rpc import RpcClient, RpcError

SECONDS = 30
"""Far longer than it takes, and shorter than the grace period, or one attempt after the other."""
WORKER = """
import sys, time
from pathlib import Path
from rpc import RpcReceiver, every, on

class Listening:
    @on("order")
    def hear(self, data): pass

    @every(seconds=0.1, singleton=True)
    def tick(self): pass

def hold(name):
    Path(name).touch()
    time.sleep(600)

jobs = {"ping": lambda: "pong", "hold": hold}
RpcReceiver(
    jobs=jobs, services=[Listening], backend=sys.argv[1], concurrency=4, grace=float(sys.argv[2])
).run()
"""


@pytest.fixture
def hanging(any_broker_url: str) -> Iterator[tuple[str, Proxy]]:
    """The URL of a broker, and what makes it hang."""
    scheme, _, rest = any_broker_url.replace("lease=2", "lease=60").partition("://127.0.0.1:")
    port = rest.partition("/")[0].partition("?")[0]
    proxy = Proxy(int(port), random.Random(0))
    yield f"{scheme}://127.0.0.1:{rest.replace(port, str(proxy.port), 1)}", proxy
    proxy.heal()
    proxy.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[bytes]:
            worker = subprocess.Popen([sys.executable, "-c", WORKER, *words])
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            return worker

        yield started


def answers(url: str) -> bool:
    with RpcClient(backend=url, timeout=2) as client:
        try:
            return client.call_and_wait("ping").data == "pong"
        except RpcError:  # it has not begun yet
            return False


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "grace"), [(0, "600"), (3, "0.2")], ids=["idle", "busy"])
def test_it_ends_in_some_seconds(
    hanging: tuple[str, Proxy], start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path, jobs: int, grace: str,
) -> None:  # fmt: skip
    url, proxy = hanging
    worker = start(url, grace)
    until(lambda: answers(url))
    held = [tmp_path / str(number) for number in range(jobs)]
    with RpcClient(backend=url) as client:
        for name in held:
            client.call("hold", [str(name)])
        until(lambda: all(name.exists() for name in held))
    proxy.holes.update(["up", "down"])
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(SECONDS) == 0
