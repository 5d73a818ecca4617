"""What is tested without signatures is so with them: tests of other features, where all sides have
keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNSIGNED = (
    "revived_job_begins",  # with a bare backend: see test_security
    "closes_the_backend_that_it_made",
    "calls_others_as_a_part_of_its_request",  # from a child process, which has no keys here
    "what_is_no_event_is_logged",
    "answers_twice_is_listed_once",
    "stops_while_all_are_asked",
)
"""Tests that write into the broker what is not signed."""


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "tests",
    [
        *("test_progress.py", "test_job_status.py", "test_retries.py", "test_services_on_backends.py"),
        *("test_events.py", "test_subscribe.py", "test_registry_on_backends.py", "test_nested.py"),
        *(
            "test_client_and_receiver.py",
            "streams/test_conformance.py",
            "test_prefork.py",
            "test_describe.py",
        ),
    ],
)
def test_signed(tests: str) -> None:
    which = "not amqp and not zmq and not rq and " + " and ".join(f"not {each}" for each in UNSIGNED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.signed", f"tests/{tests}", "-q", "-k", which]
    ran = subprocess.run([*command, "-m", "not slow", "-n", "0"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert " passed" in ran.stdout
