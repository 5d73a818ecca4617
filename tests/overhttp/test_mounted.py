"""The applications of docs/http.md, each on its server: our part of them works, and theirs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

from rpc import RpcClient, RpcError
from tests.test_docs import programs

from .conftest import PATIENCE

pytestmark = pytest.mark.slow

OWN = {
    "with_fastapi": "@app.get('/own')\ndef own(): return 'own'",
    "with_sanic": "@sanic.get('/own')\nasync def own(request): return __import__('sanic').json('own')",
    "with_flask": "@app.get('/own')\ndef own(): return '\"own\"', {'content-type': 'application/json'}",
}
"""What is added to each, and is at /own; to Django's, DJANGO."""
DJANGO = """
from django.conf import settings
from django.http import JsonResponse
from django.urls import path

urlpatterns = [path("own", lambda request: JsonResponse("own", safe=False))]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
"""


@pytest.mark.parametrize("name", ["mounted:rpc_app", "with_django:app", *(f"{each}:app" for each in OWN)])
def test_our_jobs_are_a_part_of_it(tmp_path: Path, name: str) -> None:
    module, _, _ = name.partition(":")
    framework = module.removeprefix("with_")
    if framework in ("fastapi", "django", "sanic", "flask"):
        pytest.importorskip(framework, reason=f"needs {framework.capitalize()}")
    for file, code in programs("docs/http.md").items():
        (tmp_path / file).write_text((DJANGO if file == "with_django.py" else "") + code)
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write("\n" + OWN.get(module, "") + "\n")
    words = ["uvicorn", name, "--port", "0"]
    if framework == "flask":
        pytest.importorskip("a2wsgi", reason="needs a2wsgi")
        words = ["flask", "--app", module, "run", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            host = listening(server)
            prefix = "" if framework == "mounted" else "/jobs"
            is_served(f"{host}{prefix}", is_asgi=framework != "flask")
            with RpcClient(backend="memory://", timeout=PATIENCE) as client:
                if prefix:
                    assert client.at(host).request("GET", "/own") == "own"
                with pytest.raises(RpcError):
                    client.at(host).request("GET", "/nosuch")
        finally:
            server.terminate()


def listening(server: subprocess.Popen[str]) -> str:
    """Where it does."""
    said = ""
    assert server.stderr
    for line in server.stderr:
        said += line
        if found := re.search(r"http://(127\.0\.0\.1:\d+)", line):
            return found[1]
    raise AssertionError(said)


def is_served(place: str, *, is_asgi: bool) -> None:
    with RpcClient(backend=f"http://{place}", timeout=PATIENCE) as ours:
        peer = ours.at(place)
        assert peer.add(1, 2) == 3
        assert peer.request("GET", "/user/4") == "user 4"
        assert "coroutine" in peer.where()
        assert ours.at(f"{place}/rpc", style="jsonrpc").add(1, b=2) == 3
        if is_asgi:
            assert ours.call_and_wait("add", [3, 4]).data == 7
            has_sockets(place)


def has_sockets(place: str) -> None:
    with RpcClient(backend=f"ws://{place}", timeout=PATIENCE) as ours:
        assert ours.call_and_wait("add", [5, 6]).data == 11
    with connect(f"ws://{place}/rpc") as talk:
        talk.send('{"jsonrpc": "2.0", "method": "add", "params": [1, 2], "id": 1}')
        assert json.loads(talk.recv(timeout=PATIENCE))["result"] == 3
