"""Bodies that are made smaller, and what is refused of them before it takes memory."""

from __future__ import annotations

import sys
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc import SerializationError, SettingsError, Unsupported
from rpc.core import compression as module
from rpc.core.bodies import Writing
from rpc.core.codecs import JSON, MSGPACK, SAFE, Accepted
from rpc.core.compression import THRESHOLD, Compression, compression, decompressed, first_of
from rpc.transport import Message

GZIP, ZSTD = Compression("gzip", 0), Compression("zstd", 0)
with_both = pytest.mark.parametrize("how", [GZIP, ZSTD], ids=["gzip", "zstd"])
MIB = 1024 * 1024


@pytest.mark.parametrize(("text", "encoding", "threshold"), [
    ("gzip", "gzip", THRESHOLD), ("gzip:16kB", "gzip", 16_000), ("zstd:1 MiB", "zstd", MIB),
    ("zstd:0", "zstd", 0), ("gzip:100B", "gzip", 100), ("gzip:2m", "gzip", None),
])  # fmt: skip
def test_a_text_says_how_and_from_which_size_on(text, encoding, threshold):
    if threshold is None:
        with pytest.raises(SettingsError, match="as in 'gzip:16kB'"):
            compression(text)
    else:
        assert compression(text) == Compression(encoding, threshold)


@pytest.mark.parametrize("text", ["", "br", "gzip:", "gzip:-1", "gzip:1e3", "zstd:16TB", ":16kB", "GZIP"])
def test_what_is_no_compression_is_refused(text):
    with pytest.raises(SettingsError, match="gzip or zstd, with a size or without"):
        compression(text)


@with_both
@settings(deadline=None)
@given(body=st.binary())
def test_what_was_compressed_comes_back(how, body):
    assert decompressed(how.compressed(body), how.encoding, len(body)) == body


@with_both
@settings(deadline=None)
@given(body=st.binary(), cut=st.integers(0, 30))
@example(body=b"", cut=0).via("nothing at all")
def test_any_bytes_are_decompressed_or_an_error(how, body, cut):
    for junk in (body, how.compressed(body)[:cut], how.compressed(body) + b"more"):
        with suppress(SerializationError):
            assert len(decompressed(junk, how.encoding, 1000)) <= 1000


@with_both
def test_a_bomb_is_refused_before_it_takes_memory(how):
    bomb = how.compressed(bytes(200 * MIB))
    assert len(bomb) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match=f"more than {MIB} bytes when it is decompressed"):
            decompressed(bomb, how.encoding, MIB)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_an_encoding_that_nobody_knows_is_refused_with_those_that_there_are():
    with pytest.raises(
        SerializationError, match="content-encoding 'br' is not accepted here, but gzip, zstd"
    ):
        decompressed(b"", "br", None)


@pytest.fixture
def without_zstd(monkeypatch):
    for name in "compression.zstd", "backports.zstd":
        monkeypatch.setitem(sys.modules, name, None)
    for each in module._zstd, first_of:
        each.cache_clear()
    yield
    for each in module._zstd, first_of:
        each.cache_clear()


@pytest.mark.usefixtures("without_zstd")
def test_without_the_extra_it_is_named():
    with pytest.raises(Unsupported, match=r"zstd needs `pip install 'jobrpc\[zstd\]'`"):
        compression("zstd")
    with pytest.raises(SerializationError, match=r"jobrpc\[zstd\]"):
        decompressed(b"", "zstd", None)
    assert first_of("zstd, gzip") == "gzip"


@pytest.mark.parametrize(("accepts", "first"), [
    ("gzip", "gzip"), ("zstd, gzip", "zstd"), ("br, GZIP;q=0.5", "gzip"), ("br", None), ("", None),
])  # fmt: skip
def test_the_first_encoding_that_both_know_is_used(accepts, first):
    assert first_of(accepts) == first


@with_both
@pytest.mark.parametrize("codec", SAFE, ids=lambda codec: codec.name)
def test_a_value_travels_in_a_message_smaller_where_that_is_worth_it(how, codec):
    how = how._replace(threshold=100)
    value = {"a": ["text"] * 100}
    message = Writing(codec, compression=how).message(value, {"id": "7"})
    assert message.headers == {
        "id": "7",
        "content-type": codec.content_type,
        "content-encoding": how.encoding,
    }
    assert len(message.body) < 100
    assert Accepted(most=2000).value(message) == value
    with pytest.raises(SerializationError, match="more than 50"):
        Accepted(most=50).value(message)
    small = Writing(codec, compression=how).message({"a": 1}, {})
    assert "content-encoding" not in small.headers
    assert Accepted().value(small) == {"a": 1}


def test_what_does_not_become_smaller_is_sent_as_it_is():
    noise = "".join(map(chr, range(0x4E00, 0x4E40)))
    assert "content-encoding" not in Writing(JSON, compression=GZIP).message(noise[:20], {}).headers


def test_the_limits_are_those_before_and_after():
    value = ["text"] * 100
    assert Writing(MSGPACK, most_sent=100, compression=GZIP).message(value, {})
    for writing in Writing(MSGPACK, 100, compression=GZIP), Writing(MSGPACK, most_sent=100):
        with pytest.raises(SerializationError, match="the item has 503 bytes: more than 100"):
            writing.message(value, {})
    with pytest.raises(SerializationError, match=r"^item\[1\]: .* cannot be encoded"):
        Writing(JSON).message([1, object()], {})


def test_a_body_that_is_cut_off_or_goes_on_is_refused():
    whole = GZIP.compressed(b"text")
    for wrong in (whole[:-1], whole + b"x", whole + whole, zlib.compress(b"text")):
        with pytest.raises(SerializationError, match="not readable as gzip"):
            Accepted().value(Message(wrong, {"content-encoding": "gzip"}))
