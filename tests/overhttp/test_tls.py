"""HTTPS, with certificates that are made here: who trusts whom, and what is said to whom one does not."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from rpc import AsyncRpcClient, RpcClient, RpcReceiver, SettingsError
from rpc.errors import BackendRefused
from rpc.settings import Settings
from rpc.testing.site import eventually

from .conftest import PATIENCE, Serve, Site

trustme = pytest.importorskip("trustme")

Call = Callable[..., Any]


def add(a: int, b: int = 10) -> int:
    return a + b


class Files:
    """Certificates as PEM files: of a worker at 127.0.0.1, of one elsewhere, of a caller, and their
    authority; and an authority that has made none of them."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        self.ca, self.other_ca = str(folder / "ca.pem"), str(folder / "other-ca.pem")
        ca.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        self.worker, self.elsewhere, self.caller = (
            self._issued(ca, folder / f"{name.replace('@', '-')}.pem", name)
            for name in ("127.0.0.1", "elsewhere.example", "caller@example.org")
        )

    def _issued(self, ca: Any, path: Path, name: str) -> str:
        ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


def blocking(url: str, **options: Any) -> Any:
    with RpcClient(backend=url, timeout=PATIENCE, **options) as client:
        return client.call_and_wait("add", [1, 2]).data


def awaited(url: str, **options: Any) -> Any:
    async def program() -> Any:
        async with AsyncRpcClient(backend=url, timeout=PATIENCE, **options) as client:
            return (await client.call_and_wait("add", [1, 2])).data

    return asyncio.run(program())


def by_websocket(url: str) -> Any:
    return blocking(url.replace("http", "ws"))


def awaited_by_websocket(url: str) -> Any:
    return awaited(url.replace("http", "ws"))


def as_json_rpc(url: str) -> Any:
    """As whoever calls a server of somebody else."""
    with RpcClient(backend="memory://", timeout=PATIENCE) as client:
        place, _, options = url.partition("?")
        return client.at(f"{place}/rpc?{options}", style="jsonrpc").add(1, 2)


@pytest.fixture(params=[blocking, awaited, by_websocket, awaited_by_websocket, as_json_rpc])
def call(request: pytest.FixtureRequest) -> Call:
    made: Call = request.param
    return made


def secured(serve: Serve, certificate: str, options: str = "") -> Site:
    return serve(url=f"https://127.0.0.1:0?certificate={certificate}{options}", add=add)


def test_our_clients_call_a_worker_that_they_trust(serve: Serve, files: Files, call: Call) -> None:
    site = secured(serve, files.worker)
    assert call(f"https://{site.host}?authorities={files.ca}") == 3


def test_a_program_of_somebody_else_calls_it(serve: Serve, files: Files) -> None:
    site = secured(serve, files.worker)
    context = ssl.create_default_context(cafile=files.ca)
    connection = http.client.HTTPSConnection(site.host, timeout=PATIENCE, context=context)
    try:
        for number in range(3):  # on one connection
            asked = {"jsonrpc": "2.0", "method": "add", "params": [number, 1], "id": number}
            connection.request("POST", "/rpc", json.dumps(asked), {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            assert answer == {"jsonrpc": "2.0", "result": number + 1, "id": number}
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
    finally:
        connection.close()


def test_a_websocket_of_somebody_else_is_opened_to_it(serve: Serve, files: Files) -> None:
    site = secured(serve, files.worker)
    trusted = ssl.create_default_context(cafile=files.ca)
    origin = site.url.replace("http:", "https:")
    url = f"wss://{site.host}/rpc"
    with connect(url, ssl=trusted, additional_headers={"origin": origin}) as talk:
        talk.send('{"jsonrpc": "2.0", "method": "add", "params": [1, 2], "id": 1}')
        assert json.loads(talk.recv(timeout=PATIENCE))["result"] == 3


@pytest.mark.parametrize(
    ("certificate", "authority", "says"),
    [
        ("worker", "other_ca", "its certificate is refused: .*issuer certificate"),
        ("elsewhere", "ca", "its certificate is refused: .*not valid for '127.0.0.1'"),
    ],
)
def test_a_worker_that_is_not_trusted_gets_nothing(
    serve: Serve, files: Files, call: Call, certificate: str, authority: str, says: str
) -> None:
    done: list[int] = []
    site = serve(
        url=f"https://127.0.0.1:0?certificate={getattr(files, certificate)}", add=lambda a, b: done.append(a)
    )
    with pytest.raises(BackendRefused, match=says):
        call(f"https://{site.host}?authorities={getattr(files, authority)}")
    assert done == []


def test_one_that_is_trusted_is_found_beside_one_that_is_not(serve: Serve, files: Files) -> None:
    other, site = secured(serve, files.elsewhere), secured(serve, files.worker)
    places, options = f"https://{other.host},{site.host}", f"?authorities={files.ca}"
    with RpcClient(backend=f"{places}{options}", timeout=PATIENCE) as client:
        assert [client.call_and_wait("add", [each, 1]).data for each in range(4)] == [1, 2, 3, 4]
        assert [client.at(f"{places}{options}").add(each, 1) for each in range(4)] == [1, 2, 3, 4]


def test_a_worker_lets_in_those_with_a_certificate(serve: Serve, files: Files, call: Call) -> None:
    site = secured(serve, files.worker, f"&clients={files.ca}")
    trusting = f"https://{site.host}?authorities={files.ca}"
    assert call(f"{trusting}&certificate={files.caller}") == 3
    with pytest.raises(BackendRefused, match="it refuses our certificate, or wants one"):
        call(trusting)
    stranger = secured(serve, files.worker, f"&clients={files.other_ca}")
    with pytest.raises(BackendRefused, match="it refuses our certificate, or wants one"):
        call(f"https://{stranger.host}?authorities={files.ca}&certificate={files.caller}")


def test_a_caller_of_http_is_told_that_it_is_https(serve: Serve, files: Files) -> None:
    site = secured(serve, files.worker)
    for call in blocking, awaited:
        with pytest.raises(BackendRefused, match="this port speaks https:"):
            call(f"http://{site.host}")
    status, _, body = site.send("GET", "/")
    assert (status, body) == (400, b"this port speaks https:, and not http:")
    assert blocking(f"https://{site.host}?authorities={files.ca}") == 3


def test_a_caller_of_https_is_told_that_it_is_http(serve: Serve, files: Files, call: Call) -> None:
    site = serve(add=add)
    with pytest.raises(BackendRefused, match="it does not speak TLS: is it http:"):
        call(f"https://{site.host}?authorities={files.ca}")


def test_who_begins_and_does_not_go_on_is_cut_off_and_others_are_served(serve: Serve, files: Files) -> None:
    site = secured(serve, files.worker, "&read_timeout=0.5&max_connections=4")
    host, _, port = site.host.partition(":")
    silent = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(3)]
    silent[0].sendall(b"\x16\x03\x01")
    try:
        assert blocking(f"https://{site.host}?authorities={files.ca}") == 3
        for each in silent:
            assert each.recv(10) == b""
    finally:
        for each in silent:
            each.close()
    backend: Any = site.receiver.backend
    eventually(lambda: backend.bounds.open == 0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://127.0.0.1:0", r"needs \?certificate="),
        ("https://127.0.0.1:0?certificate=/nosuch.pem", "is no PEM file with a chain and a key"),
        ("https://127.0.0.1:0?certificate={ca}", "is no PEM file with a chain and a key"),
        ("https://127.0.0.1:0?certificate={worker}&clients={empty}", r"\?clients=.* is no PEM file"),
    ],
)
def test_a_worker_says_which_file_is_wrong(files: Files, tmp_path: Path, url: str, says: str) -> None:
    (tmp_path / "empty").write_text("")
    found = url.format(**vars(files), empty=tmp_path / "empty")
    receiver = RpcReceiver(jobs={"add": add}, backend=found, settings=Settings())
    with pytest.raises(SettingsError, match=says):
        receiver.run()


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    issued = trustme.CA().issue_cert("127.0.0.1")
    path = tmp_path / "worker.pem"
    path.write_bytes(key + b"".join(each.bytes() for each in issued.cert_chain_pems))
    refused: list[BaseException] = []

    def runs() -> None:
        try:
            RpcReceiver(jobs={"add": add}, backend=f"https://127.0.0.1:0?certificate={path}").run()
        except SettingsError as error:
            refused.append(error)

    thread = threading.Thread(target=runs, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert "without a password" in str(refused[0])


def test_a_caller_says_which_file_is_wrong(call: Call) -> None:
    with pytest.raises(SettingsError, match=r"\?authorities=/nosuch.pem is no PEM file"):
        call("https://127.0.0.1:1?authorities=/nosuch.pem")


@pytest.mark.parametrize("option", ["certificate", "authorities", "clients"])
def test_without_tls_there_is_nothing_to_trust(option: str) -> None:
    with pytest.raises(SettingsError, match="are for https:"):
        RpcClient(backend=f"http://127.0.0.1:1?{option}=x.pem")
