"""A RabbitMQ for tests: the one at RPC_TEST_AMQP, by default 127.0.0.1:5672 with guest/guest; and nodes of
their own for tests that stop and start it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

pytest.importorskip("pamqp", reason="needs RabbitMQ's driver: pip install jobrpc[amqp]")

from rpc.backends import backend_from_url
from rpc.backends.amqp import AmqpBackend
from rpc.backends.amqp.delays import LEVELS
from rpc.backends.amqp.wire import Basic, Exchange, Queue
from rpc.errors import BackendUnavailable
from rpc.testing.servers import killed_with_this_process
from rpc.testing.site import Site, eventually
from rpc.transport import inbox, queue, topic

from .faults.proxy import Proxy

URL = os.environ.get("RPC_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672/")
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
PAGE = (Path(__file__).parents[1] / "docs" / "amqp.md").read_text()
SOON = re.findall(r"^\[\{rabbit, .*$", PAGE, re.MULTILINE)[0]
"""The page's setting for what could not be passed on while a node started; else tests wait for minutes."""
PREFIX = "shop"
"""What the users of the page have instead of `rpc`."""
USERS = re.findall(
    r"^rabbitmqctl set_permissions -p / (\w+) '(.*)' '(.*)' '(.*)'$",
    PAGE.replace("rpc", PREFIX),
    re.MULTILINE,
)
"""Those of the page: names, and what they may configure, write and read."""
PATIENCE = 150.0
VHOSTS = 30
"""About as many as there are tests that share a node and need one of their own."""


class Rabbit:
    """RabbitMQ behind a proxy, and what was made on it, which is deleted at the end."""

    def __init__(self, proxy: Proxy, admin: AmqpBackend) -> None:
        self.proxy, self._admin, self.admin_url = proxy, admin, URL
        parts = urlsplit(URL)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}{parts.path}"
        self._names: set[str] = set()

    def declare(self, name: str) -> None:
        self._names.add(name)
        self._admin.declare(queue(name))

    def delete_all(self) -> None:
        for name in self._names:
            shelves = [topic(name, group, durable=True).subscription_queue for group in ("team", "others")]
            self._admin.delete(queue(name), inbox(name), *shelves)


@contextmanager
def rabbit() -> Iterator[Rabbit]:
    parts = urlsplit(URL)
    proxy = Proxy(parts.port or 5672, random.Random(0), host=parts.hostname or "127.0.0.1")
    admin = AmqpBackend(URL)
    try:
        try:
            admin.dead_letters("none")
        except BackendUnavailable as error:
            pytest.skip(f"needs RabbitMQ at {parts.hostname}: {error}")
        rabbit = Rabbit(proxy, admin)
        yield rabbit
        rabbit.delete_all()
    finally:
        admin.close()
        proxy.close()


class Node:
    """A RabbitMQ of a test's own, on a free port. Others do not know of it."""

    def __init__(
        self,
        directory: Path,
        tls: tuple[Path, Path] | None = None,
        vhosts: int = 0,
    ) -> None:
        """`tls`: its key and its certificate. `vhosts`: how many it has for tests; with them come USERS,
        whose passwords are their names."""
        if not SERVER.exists():
            pytest.skip("needs RabbitMQ's server, to stop and start it")
        self._directory, self.port = directory, _free_port()
        self.url = f"amqp://127.0.0.1:{self.port}"
        self.tls_port, settings = _free_port(), ""
        if tls:
            settings = (
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\nssl_options.keyfile = {tls[0]}\n"
                f"ssl_options.certfile = {tls[1]}\nssl_options.cacertfile = {tls[1]}\n"
            )
        names = [f"v{number}" for number in range(vhosts)]
        self._names, self._made = iter(names), count()
        if vhosts:
            (directory / "definitions").write_text(json.dumps(_definitions(names)))
            settings += f"load_definitions = {directory}/definitions\n"
        files = ("rabbitmq.conf", settings), ("advanced.config", SOON), ("plugins", "[]."), ("env", "")
        for name, text in files:
            (directory / name).write_text(text)
        at = str(directory)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": at,
            "RABBITMQ_NODENAME": f"rpc-test-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_MNESIA_BASE": f"{at}/mnesia",
            "RABBITMQ_LOG_BASE": f"{at}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{at}/plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{at}/env",
            "RABBITMQ_PID_FILE": f"{at}/pid",
            "RABBITMQ_CONFIG_FILE": f"{at}/rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{at}/advanced.config",
            # Else each of its schedulers spins before it sleeps, on processors that others need.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [SERVER],
                cwd=self._directory,  # where it dumps its core, if it has to
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watcher = killed_with_this_process(f"-{self._process.pid}")
        end = time.monotonic() + PATIENCE
        backend = AmqpBackend(self.url)
        while True:
            with suppress(BackendUnavailable):
                backend.dead_letters("none")
                backend.close()
                return
            if self._process.poll() is not None:
                self.stop(signal.SIGKILL)
                backend.close()
                pytest.skip(f"needs RabbitMQ's server, but it did not start: {self._output()}")
            assert time.monotonic() < end, f"RabbitMQ's server did not start in time: {self._output()}"

    def empty(self, *queues: str) -> str:
        """A URL with a prefix that nobody has used, and these queues: calls to others have no receivers until
        they are served. A vhost of its own takes RabbitMQ longer than most tests."""
        return self._with(queues, f"{self.url}?prefix=t{next(self._made)}")

    def clear(self, url: str, *queues: str) -> None:
        """Delete these queues of such a URL, and those that belong to them."""
        backend = cast("Any", backend_from_url(url))
        names = backend.servers.names
        levels = [names.due, names.gone, *map(names.level, range(LEVELS))]
        gone = [Queue.Delete(queue=name, nowait=True) for name in levels]
        gone += [Exchange.Delete(exchange=name, nowait=True) for name in levels]
        backend.delete(*map(queue, queues))
        backend.senders.do(lambda connection: connection.tell(9, *gone))
        backend.close()

    def vhost(self, *queues: str) -> str:
        """The URL of a vhost that nobody has used, for tests that look at all that is in it; with these
        queues."""
        name = next(self._names, None)
        if name is None:
            name = f"more{next(self._made)}"
            self.control("add_vhost", name)
            self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self._with(queues, f"{self.url}/{name}")

    def _with(self, queues: Sequence[str], url: str) -> str:
        backend = cast("Any", backend_from_url(url))
        backend.declare(*map(queue, queues))
        backend.close()
        return url

    def control(self, *command: str) -> str:
        """What rabbitmqctl does; what it says."""
        ctl = [SERVER.with_name("rabbitmqctl"), "--quiet", *command]
        return subprocess.run(
            ctl, env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def listed(self, what: str, *columns: str, vhost: str = "/") -> list[dict[str, Any]]:
        """These columns of its queues, or of another thing of a vhost."""
        said = self.control(f"list_{what}", "-p", vhost, *columns, "--formatter", "json")
        return cast("list[dict[str, Any]]", json.loads(said))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it; with SIGKILL, as a power cut would."""
        if self._process is None or self._watcher is None:
            return
        self.send_signal(number)
        with self._watcher:  # before the node is reaped: from then on its number may be another's
            self._watcher.kill()
        self._process.wait(PATIENCE)
        self._process = None

    def send_signal(self, number: int) -> None:
        """To all its processes."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _output(self) -> str:
        return (self._directory / "output").read_text()[-500:]


def version() -> str:
    """Of RabbitMQ's server."""
    command = [SERVER.with_name("rabbitmqctl"), "version"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _definitions(vhosts: Sequence[str]) -> dict[str, Any]:
    """What a node has from its first start on: it takes a second for each to be made later."""
    all_vhosts = ["/", *vhosts]
    everything = [("guest", vhost, ".*", ".*", ".*") for vhost in all_vhosts]
    some = [(user, "/", *may) for user, *may in USERS]
    keys = "user", "vhost", "configure", "write", "read"
    return {
        "vhosts": [{"name": vhost} for vhost in all_vhosts],
        "users": [
            {
                "name": user,
                "password_hash": b64encode(b"salt" + sha256(f"salt{user}".encode()).digest()).decode(),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for user in ["guest", *(user for user, *_ in USERS)]
        ],
        "permissions": [dict(zip(keys, each, strict=True)) for each in [*everything, *some]],
    }


def _free_port() -> int:
    """A port that is free now, below those that systems give to whoever asks for any (32768 and more): in the
    ten seconds until a node listens, another process would be given it."""
    while True:
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return int(server.getsockname()[1])


def give_back(site: Site) -> None:
    """Take the first message of the queue, and die."""

    def take(connection: Any) -> None:
        get = Basic.Get(queue=f"rpc:queue:{site.name()}")
        eventually(
            lambda: isinstance(connection.ask(9, get, Basic.GetOk, Basic.GetEmpty).method, Basic.GetOk)
        )
        connection.close_channel(9)

    cast("Any", site.client).senders.do(take)
