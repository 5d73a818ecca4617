"""The example `django_shop`, run as its manage.py says, and asked over HTTP; and the page that quotes it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest
import redis
from test_web_examples import SECONDS

from rpc.testing import RedisServer

from .conftest import Project

ROOT = Path(__file__).parent.parent.parent.parent
SHOP = ROOT / "example" / "django_shop"
PAGE = ROOT / "docs" / "django.md"


class Shop(Project):
    def post(self, path: str, **fields: object) -> int:
        """Fill in a form of the first page, as a browser would."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            cookie, page = response.headers["Set-Cookie"], response.read().decode()
            token = re.search('name="csrfmiddlewaretoken" value="(.+?)"', page)
            assert token
            body = urlencode({**fields, "csrfmiddlewaretoken": token[1]})
            form = "application/x-www-form-urlencoded"
            connection.request("POST", path, body, {"Cookie": cookie.split(";")[0], "Content-Type": form})
            return connection.getresponse().status
        finally:
            connection.close()

    def shows(self, pattern: str) -> None:
        """Waits until the page has that."""
        end = time.monotonic() + SECONDS
        while not re.search(pattern, page := self.asks("GET", "/")[1]):
            assert time.monotonic() < end, page


@pytest.fixture
def shop(tmp_path: Path, rpc_redis: RedisServer) -> Iterator[Shop]:
    with redis.Redis.from_url(rpc_redis.url) as connection:
        connection.flushdb()
    environment = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "SHOP_DATABASE": str(tmp_path / "shop.sqlite3"),
        "RPC_BACKEND": rpc_redis.url,
    }
    shop = Shop(SHOP, environment)
    shop.manage("migrate", "--verbosity", "0")
    yield shop
    shop.stops()


@pytest.mark.slow
@pytest.mark.redis
def test_an_order_is_packed_and_the_customer_told(shop: Shop) -> None:
    assert shop.manage("check") == "System check identified no issues (0 silenced).\n"
    assert shop.manage("makemigrations", "--check") == "No changes detected\n"
    shop.web()
    shop.worker("--concurrency", "4")
    assert shop.post("/place/", item="tea", quantity=3) == 302
    shop.shows("<td>3 x tea</td><td>750</td><td>3 x tea is on its way</td>")
    assert shop.post("/place/", item="tea", quantity=0) == 422
    assert shop.post("/place/", item="gold", quantity=1) == 422
    assert shop.asks("GET", "/price/cake/") == (200, {"cents": 320})
    assert shop.asks("GET", "/price/gold/") == (404, {"error": "KeyError"})
    assert shop.asks("GET", "/rpc/")[0] == 302


@pytest.mark.slow
@pytest.mark.redis
def test_an_order_that_is_placed_while_the_broker_is_away_is_packed_later(shop: Shop) -> None:
    there = shop.environment["RPC_BACKEND"]
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        shop.environment["RPC_BACKEND"] = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        web = shop.web()
        assert shop.post("/place/", item="cake", quantity=2) == 302
        web.says("order 1 is saved, but its job was not sent")
        shop.shows("<td>2 x cake</td><td></td><td></td>")
    shop.environment["RPC_BACKEND"] = there
    shop.worker()
    shop.manage("rpcshell", "-c", "services.orders.pack_forgotten(0)")
    shop.shows("<td>2 x cake</td><td>640</td><td>2 x cake is on its way</td>")


def test_the_page_quotes_the_shop() -> None:
    """But for the indentation."""
    source = flush("\n".join(path.read_text() for path in SHOP.rglob("*.py")))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert flush(block).strip() in source


def flush(text: str) -> str:
    return re.sub("^ +", "", text, flags=re.MULTILINE)
