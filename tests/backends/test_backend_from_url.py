"""A URL names a backend, and carries its options."""

from __future__ import annotations

import pytest

from rpc import SettingsError, Unsupported
from rpc.backends import BACKENDS, backend_from_url, redacted
from rpc.backends.memory import MemoryBackend


class Pigeon:
    def __init__(self, url, *, lease: float = 5.0, loft: str = "home", ring: bool = False):
        if lease < 0:
            raise ValueError("the lease is negative")
        self.url, self.lease, self.loft, self.ring = url, lease, loft, ring


@pytest.fixture(autouse=True)
def pigeon(monkeypatch):
    monkeypatch.setitem(BACKENDS, "pigeon", (f"{__name__}:Pigeon", None))


@pytest.mark.parametrize(
    "url", ["memory://", "memory://shop", "memory://shop/1", "memory://shop?max_length=9"]
)
def test_a_url_names_the_same_hub_everywhere_and_another_one_does_not(url):
    assert backend_from_url(url).hub is MemoryBackend(url.partition("?")[0]).hub
    assert backend_from_url(url).hub is not backend_from_url("memory://other").hub


def test_options_are_converted_to_what_the_backend_takes_and_may_be_given_beside_the_url():
    backend = backend_from_url("pigeon://h:1/0?ring=true&loft=a%20b", lease=7)
    assert (backend.lease, backend.ring, backend.loft) == (7, True, "a b")
    assert backend_from_url("pigeon://h?lease=2").lease == 2.0


@pytest.mark.parametrize(("url", "rest"), [
    ("pigeon://u:p%40ss@h:1/0?lease=2&color=grey&color=", "pigeon://u:p%40ss@h:1/0?color=grey&color="),
    ("pigeon:///run/loft.sock?lease=2", "pigeon:///run/loft.sock"), ("pigeon://", "pigeon://"),
])  # fmt: skip
def test_the_rest_of_the_url_is_left_to_the_driver(url, rest):
    assert backend_from_url(url).url == rest


@pytest.mark.parametrize(("url", "options", "reason"), [
    ("pigeon://h?lease=soon", {}, "lease: Expected `float`"),
    ("pigeon://h?lease=-1", {}, "the lease is negative"),
    ("pigeon://h?lease=1", {"lease": 2}, "lease"),
    ("pigeon://h", {"speed": 1}, "has no option 'speed'; it has lease, loft, ring"),
    ("memory://h", {"lease": 1}, "has no option 'lease'; it has max_length"),
    ("memory://h?max_length=-1", {}, "max_length is not negative"),
    ("memory://h?max_length=some", {}, "max_length: Expected `int`"),
    ("memory://h?typo=1", {}, "no options of this backend: typo; it has max_length, prefix$"),
    ("memory://h?b&a=1", {}, "no options of this backend: a, b; it has max_length, prefix$"),
    ("carrier://h", {}, r"names no backend; known are .*memory:.*rq\+redis:"), ("", {}, "names no backend"),
    ("localhost:6379", {}, "names no backend"), ("memory://[", {}, "cannot be read"),
])  # fmt: skip
def test_a_url_that_makes_no_sense_is_refused_with_the_reason(url, options, reason):
    with pytest.raises(SettingsError, match=reason):
        backend_from_url(url, **options)


@pytest.mark.parametrize(
    "url", ["carrier://me:hunter2@h", "pigeon://me:hunter2@h?lease=x", "pigeon://:hunter2@[?"]
)
def test_a_password_stays_out_of_the_error(url):
    with pytest.raises(SettingsError) as raised:
        backend_from_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://me:p@h/0", "redis://me:***@h/0"), ("redis://p:p@p/0", "redis://p:***@p/0"),
    ("redis://me:p:w@h", "redis://me:***@h"), ("redis://me:p@w@h", "redis://me:***@h"),
    ("redis://:p%2Fw@h", "redis://:***@h"), ("redis://h?password=p&a=b", "redis://h?password=***&a=b"),
    ("zmq+tcp://h:0?lease=1&registry=redis%3A%2F%2F%3Ap%40h", "zmq+tcp://h:0?lease=1&registry=***"),
    ("redis://h:1/0?a=b", "redis://h:1/0?a=b"), ("redis://me@h", "redis://me@h"),
])  # fmt: skip
def test_passwords_alone_are_redacted(url, shown):
    assert redacted(url) == shown


def test_a_driver_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(BACKENDS, "amqp", ("rpc.backends.nosuch:Amqp", "amqp"))
    with pytest.raises(Unsupported, match=r"^amqp: needs `pip install 'jobrpc\[amqp\]'`$"):
        backend_from_url("amqp://h")


def test_a_distribution_may_bring_a_backend_of_its_own(tmp_path, monkeypatch):
    metadata = tmp_path / "loft-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: loft\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[rpc.backends]\nloft = {__name__}:Pigeon\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert backend_from_url("loft://h?lease=3").lease == 3.0
    with pytest.raises(SettingsError, match="loft:"):
        backend_from_url("carrier://h")
