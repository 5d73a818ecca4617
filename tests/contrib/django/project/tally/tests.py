"""What Django's test runner runs: `manage.py test`."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from io import StringIO
from typing import Any

from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings

from rpc import BackendUnavailable, Request, RpcReceiver, SerializationError, SettingsError, every, expose, on
from rpc.contrib.django import call_on_commit, client, rpc
from rpc.contrib.django.checks import check_settings
from rpc.contrib.django.conf import settings

from .models import Note

SECONDS = 20
MEMORY = {"BACKEND": "memory://tests", "TIMEOUT": SECONDS}


class Sample:
    """A service of which not much is known, but what to escape."""

    name = "sample"

    @expose
    def say(self, text: str = "<b>") -> str:
        return text

    @on("sample.said", group="all")
    def hear(self, event: object) -> None: ...

    @every(seconds=90)
    def tick(self) -> None: ...


@contextmanager
def serving(**options: Any) -> Iterator[None]:
    begun = threading.Event()
    receiver = RpcReceiver(backend=MEMORY["BACKEND"], hooks={"on_connect": begun.set}, **options)
    thread = threading.Thread(target=receiver.start)
    thread.start()
    try:
        assert begun.wait(SECONDS)
        yield
    finally:
        receiver.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


@override_settings(RPC=MEMORY)
class OnCommit(TransactionTestCase):
    """One job at a time, in order: what has not arrived before a later one, was not sent before it."""

    def setUp(self) -> None:
        self.arrived: list[Any] = []
        worker = serving(jobs={"add": self.add, "add_id": self.add_id, "sum": self.sum})
        worker.__enter__()
        self.addCleanup(worker.__exit__, None, None, None)

    def add(self, what: Any) -> None:
        self.arrived.append(what)

    def add_id(self, request: Request) -> str:
        self.arrived.append(request.id)
        return "added"

    def sum(self) -> list[Any]:
        return list(self.arrived)

    def test_commit(self) -> None:
        with transaction.atomic():
            call_on_commit("add", ["on commit"])
            rpc.call("add", ["at once"])
        rpc.call("add", ["later"])
        self.assertEqual(rpc.call_and_wait("sum").data, ["at once", "on commit", "later"])

    def test_rollback(self) -> None:
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            call_on_commit("add", ["never"])
            _ = 1 / 0
        self.assertEqual(rpc.call_and_wait("sum").data, [])

    def test_nested(self) -> None:
        with transaction.atomic():
            call_on_commit("add", ["outer"])
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                call_on_commit("add", ["never"])
                _ = 1 / 0
            with transaction.atomic():
                call_on_commit("add", ["inner"])
            rpc.call("add", ["at once"])
        self.assertEqual(rpc.call_and_wait("sum").data, ["at once", "outer", "inner"])

    def test_no_transaction(self) -> None:
        call_on_commit("add", ["at once"])
        rpc.call("add", ["later"])
        self.assertEqual(rpc.call_and_wait("sum").data, ["at once", "later"])

    def test_options(self) -> None:
        with transaction.atomic():
            call_on_commit(
                "add", ["urgent"], using="default", queue="high", headers={"x-user": "7"}, ttl=60.0
            )
        self.assertEqual(rpc.call_and_wait("sum").data, ["urgent"])

    def test_the_options_are_those_of_a_call(self) -> None:
        own, calls = (signature(each).parameters.keys() for each in (call_on_commit, rpc.call))
        self.assertEqual(own - {"using"}, calls)

    def test_an_outcome_is_kept(self) -> None:
        with transaction.atomic():
            id = call_on_commit("add_id", ["kept"], keep=60)
        self.assertEqual(rpc.call_and_wait("sum").data, [id])
        self.assertEqual(rpc.job(id).result, "added")

    def test_what_is_wrong_is_raised_before_the_commit(self) -> None:
        for kind, name, data, options in (
            (SerializationError, "add", [object], {}),
            (ValueError, "no name", [1], {}),
            (ValueError, "add", [1], {"queue": "no queue"}),
            (ValueError, "add", [1], {"delay": -1}),
            (ValueError, "add", [1], {"headers": {"user": "7"}}),
            (TypeError, "add", [1], {"timeout": 5}),
        ):
            with self.subTest(options or data), self.assertRaises(kind), transaction.atomic():
                Note.objects.create(text="never")
                call_on_commit(name, data, **options)
        self.assertEqual(Note.objects.count(), 0)
        self.assertEqual(rpc.call_and_wait("sum").data, [])

    def test_a_broker_that_is_not_there(self) -> None:
        done: list[str] = []
        with socket.socket() as taken:  # and nobody listens
            taken.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
            nowhere = override_settings(RPC={"BACKEND": url})
            with nowhere, self.assertRaises(BackendUnavailable), transaction.atomic():
                Note.objects.create(text="stays")
                call_on_commit("add", ["lost"])
                transaction.on_commit(lambda: done.append("not"))
        self.assertEqual(Note.objects.get().text, "stays")
        self.assertEqual(done, [])


@override_settings(RPC=MEMORY)
class InTestCase(TestCase):
    def test_callbacks_are_captured(self) -> None:
        """In a TestCase nothing is ever committed."""
        arrived = threading.Event()
        with serving(jobs={"arrive": lambda: arrived.set()}):
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                call_on_commit("arrive")
            self.assertTrue(arrived.wait(SECONDS))
        self.assertEqual(len(callbacks), 1)


class TheClient(SimpleTestCase):
    @override_settings(RPC=MEMORY)
    async def test_a_coroutine_waits_for_it(self) -> None:
        with serving(jobs={"len": lambda text: len(text)}):
            response = await asyncio.wrap_future(rpc.submit("len", ["four"]))
        self.assertEqual(response.data, 4)

    def test_it_is_one_for_the_whole_process(self) -> None:
        found = []
        with override_settings(RPC=MEMORY):
            threads = [threading.Thread(target=lambda: found.append(client())) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual({id(each) for each in found}, {id(client())})
            self.assertEqual(rpc.timeout, SECONDS)

    def test_it_follows_the_settings(self) -> None:
        with override_settings(RPC=MEMORY):
            before = client()
        with override_settings(RPC={**MEMORY, "TIMEOUT": 7}):
            self.assertIsNot(client(), before)
            self.assertEqual(rpc.timeout, 7)
            self.assertIn("call_and_wait", dir(rpc))

    def test_it_is_not_made_before_it_is_needed(self) -> None:
        with override_settings(RPC={"NOSUCH": 1}):
            self.assertIn("RpcClient", repr(rpc))
            with self.assertRaisesMessage(SettingsError, "RPC_NOSUCH"):
                rpc.call("add")


class Checks(SimpleTestCase):
    def errors(self, value: Any) -> list[tuple[str | None, str]]:
        with override_settings(RPC=value):
            return [(each.id, each.msg) for each in check_settings(None)]

    def test_what_is_right(self) -> None:
        self.assertEqual(self.errors({"Backend": "memory://x", "concurrency": 3, "QUEUES": ["a"]}), [])
        self.assertEqual(self.errors({"CLIENT_BACKEND": "memory://x"}), [])

    def test_each_wrong_key_is_named(self) -> None:
        found = self.errors({**MEMORY, "THREADS": 3, "CONCURRENCY": "3", "SERVICES": "shop.Orders", 5: 5})
        self.assertEqual([id for id, _ in found], ["rpc.E002"] * 4)
        for (_, message), key in zip(
            found, ("RPC_THREADS", "RPC_CONCURRENCY", "RPC_SERVICES", "RPC_5"), strict=True
        ):
            self.assertIn(f" {key}", message)
            self.assertIn("Django's settings", message)

    def test_what_is_out_of_range_is_named(self) -> None:
        ((id, message),) = self.errors({**MEMORY, "CONCURRENCY": 0})
        self.assertEqual(id, "rpc.E002")
        self.assertIn(" RPC_CONCURRENCY", message)

    def test_what_is_missing_or_cannot_be(self) -> None:
        for value, id, text in (
            (None, "rpc.E001", "RPC is missing"),
            ("redis://:secret@h", "rpc.E001", "of type str"),
            ({"TIMEOUT": 5}, "rpc.E003", "RPC_BACKEND"),
            ({"BACKEND": "carrier-pigeon://"}, "rpc.E003", "carrier-pigeon"),
            ({**MEMORY, "RECEIVER_BACKEND": "redis://h?lease=x"}, "rpc.E003", "lease"),
            ({"BACKEND": "memory://", "Backend": "redis://h"}, "rpc.E003", "RPC_BACKEND is in RPC twice"),
        ):
            with self.subTest(text):
                [(found, message)] = self.errors(value)
                self.assertEqual(found, id)
                self.assertIn(text, message)
                self.assertNotIn("secret", message)

    def test_at_run_time_it_is_a_settings_error(self) -> None:
        for value, text in (
            ({"THREADS": 3}, "RPC_THREADS"),
            (None, "missing"),
            ({"TIMEOUT": "3"}, "RPC_TIMEOUT"),
        ):
            with override_settings(RPC=value):
                with self.assertRaisesMessage(SettingsError, text):
                    settings()
                for command in "rpc", "rpcinfo":
                    with self.assertRaisesMessage(CommandError, text) as raised:
                        call_command(command, skip_checks=True)
                    self.assertEqual(raised.exception.returncode, 2)


@override_settings(RPC=MEMORY)
class Status(TestCase):
    def log_in(self, **options: Any) -> None:
        self.client.force_login(User.objects.create_user("somebody", **options))

    def test_strangers_are_asked_to_log_in(self) -> None:
        self.assertRedirects(self.client.get("/rpc/"), "/login/?next=/rpc/", fetch_redirect_response=False)
        self.assertEqual(self.client.get("/rpc/status.json").status_code, 403)

    def test_it_is_for_staff(self) -> None:
        self.log_in()
        for path in "/rpc/", "/rpc/status.json":
            self.assertEqual(self.client.get(path).status_code, 403)

    def test_staff_that_left_is_none(self) -> None:
        self.log_in(is_staff=True, is_active=False)
        self.assertNotEqual(self.client.get("/rpc/").status_code, 200)

    def test_it_shows_what_runs(self) -> None:
        self.log_in(is_staff=True)
        with serving(services=[Sample()], concurrency=3):
            page = self.client.get("/rpc/")
            found = self.client.get("/rpc/status.json")
        for text in "sample.say", "sample.said", "sample.hear", "every 90 s", "3 at a time", "&lt;b&gt;":
            self.assertContains(page, text)
        self.assertNotContains(page, "<b>")
        self.assertIn("no-store", page["Cache-Control"])
        [worker] = found.json()["workers"]
        self.assertEqual(worker["jobs"], {"sample.say": "(text: str = '<b>') -> str"})
        self.assertEqual(worker["listeners"][0]["group"], "all")
        self.assertEqual(worker["timers"], {"sample.tick": "every 90 s"})

    def test_nobody_runs(self) -> None:
        self.log_in(is_staff=True)
        self.assertContains(self.client.get("/rpc/"), "No worker runs.")
        self.assertEqual(self.client.get("/rpc/status.json").json(), {"workers": []})

    def test_nothing_can_be_changed(self) -> None:
        self.log_in(is_staff=True)
        for method in "post", "put", "patch", "delete":
            self.assertEqual(getattr(self.client, method)("/rpc/").status_code, 405)

    def test_no_broker_is_503(self) -> None:
        self.log_in(is_staff=True)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
            with override_settings(RPC={"BACKEND": url, "TIMEOUT": 0.5}):
                page, found = self.client.get("/rpc/"), self.client.get("/rpc/status.json")
        self.assertContains(page, "BackendUnavailable", status_code=503)
        self.assertEqual(found.status_code, 503)
        self.assertIn("BackendUnavailable", found.json()["error"])


@override_settings(RPC={**MEMORY, "SERVICES": ["tally.tests.Sample"]})
class Info(SimpleTestCase):
    def test_it_lists_what_is_declared(self) -> None:
        told = StringIO()
        call_command("rpcinfo", stdout=told)
        self.assertIn("tally.tests.Sample: sample\n  say(text: str = '<b>') -> str\n", told.getvalue())
        self.assertIn("sample.said: sample.hear (group all)", told.getvalue())
        self.assertIn("sample.tick: every 90 s", told.getvalue())
        self.assertIn("no worker runs", told.getvalue())
