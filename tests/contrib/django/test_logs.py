"""What a project logs, by LOGGING and by `manage.py rpc --send-logs`, as whoever listens hears it."""

from __future__ import annotations

import json
import logging

import pytest
from test_web_examples import SECONDS

from .conftest import Project, only_sqlite

pytestmark = [pytest.mark.redis, only_sqlite]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"remote": {"class": "rpc.logs.RpcLogHandler", "settings": "config.settings"}},
    "loggers": {"django.request": {"handlers": ["remote"], "level": "WARNING"}},
}


def test_logging_in_the_settings_may_have_the_handler(project: Project) -> None:
    project.environment["TEST_LOGGING"] = json.dumps(LOGGING)
    project.web()
    with project.client() as client, client.logs() as entries:
        assert project.asks("GET", "/nowhere/")[0] == 404
        entry = entries.get(SECONDS)
    assert (entry.logger, entry.level_number) == ("django.request", logging.WARNING)
    assert entry.message == "Not Found: /nowhere/"
    assert entry.extra["status_code"] == 404
    assert entry.extra["request"] == "<WSGIRequest: GET '/nowhere/'>"


def test_the_worker_sends_its_logs(project: Project) -> None:
    with project.client() as client, client.logs() as entries:
        project.worker("--send-logs")
        assert any(entry.logger == "rpc.receiver" for entry in (entries.get(SECONDS) for _ in range(3)))
