"""What the workers do."""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict

from asgiref.sync import sync_to_async
from django.db import connection

from rpc import Request, every, expose, job, on

from .models import Note

logger = logging.getLogger(__name__)

PATIENCE = 20


def double(number: int) -> int:
    return 2 * number


def before(request: Request) -> None:
    logger.info("before %s", request.name)


def failed(request: Request, error: BaseException) -> None:
    logger.info("failed %s: %s", request.name, error)


class Tally:
    name = "tally"

    def __init__(self) -> None:
        self._guests = threading.Barrier(3)
        self._lock = threading.Lock()
        self._here = self._most = 0
        self._found: defaultdict[str, list[tuple[int, bool]]] = defaultdict(list)

    @expose
    def note(self, text: str) -> int:
        return Note.objects.create(text=text).pk

    @expose
    def confirm(self, text: str) -> None:
        """By when it is called, the text is there for all to see."""
        found = Note.objects.filter(text=text).exists()
        Note.objects.create(text=f"{text}: {'saved' if found else 'not there'}")

    @expose
    def fail(self) -> None:
        raise ValueError("no")

    @expose
    def meet(self) -> int:
        """Waits for two others; how many there were at most at a time, ever."""
        with self._lock:
            self._here += 1
            self._most = max(self._most, self._here)
        self._guests.wait(PATIENCE)
        with self._lock:
            self._here -= 1
            return self._most

    @expose
    def connection_id(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    @expose
    def found(self, kind: str) -> list[tuple[int, bool]]:
        """The thread in which each of that kind ran, and whether it found an open connection there."""
        return self._found[kind]

    @expose
    def job(self) -> None:
        self._use("job")

    @expose
    async def coroutine(self) -> None:
        await sync_to_async(self._use)("coroutine")

    @on("used")
    def listener(self, event: object) -> None:
        self._use("listener")

    @every(seconds=0.05)
    def tick(self) -> None:
        self._use("tick")

    def _use(self, kind: str) -> None:
        self._found[kind].append((threading.get_ident(), connection.connection is not None))
        assert Note.objects.filter(text="").count() == 0


class Apart:
    name = "apart"

    @expose
    @job(fork=True)
    def note(self, text: str) -> tuple[int, int]:
        return Note.objects.create(text=text).pk, os.getpid()
