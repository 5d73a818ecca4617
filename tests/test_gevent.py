"""Workers and clients where gevent has patched the standard library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rpc import RpcReceiver, SettingsError, job
from rpc.greenlets import are_patched_in

pytest.importorskip("gevent", reason="needs gevent")


def run(*command: str) -> tuple[str, int, str]:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=150, check=False
    )
    return done.stdout, done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        "zmq",
        pytest.param("rq", marks=pytest.mark.redis),
        pytest.param("amqp", marks=pytest.mark.xdist_group("rabbit_node")),
    ],
)
def test_a_worker_and_its_callers_may_be_greenlets(kind: str, request: pytest.FixtureRequest) -> None:
    stdout, code, stderr = run("-m", "tests.greenlets", request.getfixturevalue(f"{kind}_url"))
    assert (stdout, code) == ("stopped\n", 0), stderr


@job(fork=True)
def forked() -> None: ...


def test_jobs_in_processes_of_their_own_are_refused(monkeypatch: pytest.MonkeyPatch, memory_url: str) -> None:
    assert not are_patched_in()
    monkeypatch.setattr("rpc.prefork.are_patched_in", lambda: True)
    with pytest.raises(SettingsError, match="gevent"):
        RpcReceiver(jobs={"forked": forked}, backend=memory_url).run()
