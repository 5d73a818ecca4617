"""What a stream is, on every backend, for both kinds of clients and of generators."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import pytest

from rpc.errors import InvalidParams, MethodNotFound, RemoteError, SerializationError

from .conftest import Site
from .handlers import MESSAGE, until


@pytest.fixture(params=["sync", "async"])
def how(request: pytest.FixtureRequest) -> str:
    """Which kind of client, and of handler: what each of them does, the other does not see."""
    return str(request.param)


@pytest.fixture
def client(shared: Site, how: str) -> Any:
    return shared.client(how)


@pytest.fixture
def a(how: str) -> str:
    """What the name of a handler begins with."""
    return "" if how == "sync" else "a"


def begun(shared: Site, name: str) -> list[str]:
    return shared.lines(f"{name} begins")


def finished(shared: Site, name: str) -> Any:
    """Its `finally` has run once, in the context of its body."""
    until(lambda: shared.lines(f"{name} ends"), "its `finally` did not run")
    assert shared.lines(f"{name} ends") == [f"{name} ends in {name}"]
    assert begun(shared, name) == [f"{name} begins"]
    until(lambda: not shared.open, "the receiver has it still")
    return True


def test_the_example_of_netcall(shared: Site, client: Any, a: str, name: str) -> None:
    stream = client.stream(f"{a}echo", {"value": 1, "name": name})
    assert next(stream) == 1
    assert next(stream) is None
    assert stream.send(2) == 2
    assert stream.throw(TypeError("spam")) == "TypeError('spam')"
    assert stream.throw(TypeError, "spam") == "TypeError('spam')"
    stream.close()
    until(lambda: shared.lines(f"{name}: {MESSAGE}"))
    assert finished(shared, name)
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_all_items_come_in_order_and_then_the_value(client: Any, a: str, window: int, shared: Site) -> None:
    stream = client.stream(f"{a}count", {"most": 250}, window=window)
    assert [*stream] == [*range(250)]
    assert stream.value == (None if a else 250)
    with pytest.raises(StopIteration):
        next(stream)


def test_the_value_of_stop_iteration_is_what_was_returned(client: Any) -> None:
    stream = client.stream("count", {"most": 1})
    assert next(stream) == 0
    with pytest.raises(StopIteration) as caught:
        next(stream)
    assert caught.value.value == 1


@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize(
    "what", [[], [None], [None, 0, False, "", [], {}, None], [{"id": 1, "error": {"code": 1}}]]
)
def test_nothing_and_none_are_items_like_others(client: Any, a: str, what: Any, window: int) -> None:
    assert [*client.stream(f"{a}items", {"what": what}, window=window)] == what


def test_its_body_begins_at_the_first_next(shared: Site, client: Any, a: str, name: str) -> None:
    stream = client.stream(f"{a}count", {"name": name}, window=10)
    another = client.stream(f"{a}count", {"most": 3})
    assert [*another] == [0, 1, 2]
    assert not begun(shared, name)
    assert next(stream) == 0
    assert begun(shared, name)
    stream.close()
    assert finished(shared, name)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_an_error_comes_after_the_items_before_it(client: Any, a: str, name: str, window: int) -> None:
    stream = client.stream(f"{a}fail_after", {"number": 40, "name": name}, window=window)
    assert [next(stream) for _ in range(40)] == [*range(40)]
    with pytest.raises(RemoteError, match="after that") as caught:
        next(stream)
    assert caught.value.type == "ValueError"
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("window", [1, 10])
def test_an_item_that_cannot_be_encoded_ends_it(
    shared: Site, client: Any, a: str, name: str, window: int
) -> None:
    stream = client.stream(f"{a}unencodable", {"name": name}, window=window)
    assert next(stream) == 1
    with pytest.raises(SerializationError, match="item"):
        next(stream)
    assert finished(shared, name)
    assert not shared.lines(f"{name} goes on")


def test_what_is_thrown_and_not_caught_comes_back(shared: Site, client: Any, a: str, name: str) -> None:
    for error in TypeError("spam"), KeyError("x"), ValueError():
        stream = client.stream(f"{a}count", {"name": name})
        next(stream)
        with pytest.raises(type(error)) as caught:
            stream.throw(error)
        assert caught.value is error
        with pytest.raises(StopIteration):
            next(stream)
    until(lambda: len(shared.lines(f"{name} ends in {name}")) == 3)


def test_what_is_thrown_before_it_begins_is_raised_here(shared: Site, client: Any, a: str, name: str) -> None:
    stream = client.stream(f"{a}echo", {"name": name})
    with pytest.raises(ValueError, match="early"):
        stream.throw(ValueError("early"))
    with pytest.raises(StopIteration):
        next(stream)
    assert not begun(shared, name)


def test_what_the_other_side_does_not_know_is_not_thrown(client: Any, a: str) -> None:
    class Own(Exception):
        pass

    with client.stream(f"{a}echo", {"value": 1}) as stream:
        next(stream)
        with pytest.raises(TypeError, match="built-in"):
            stream.throw(Own())
        assert stream.send(2) == 2
        with pytest.raises(SerializationError):
            stream.send(object())
        assert stream.send(3) == 3


def test_send_and_throw_need_lock_step(client: Any, a: str) -> None:
    with client.stream(f"{a}echo", {"value": 1}) as stream, pytest.raises(TypeError, match="just begun"):
        stream.send(1)
    with client.stream(f"{a}count", window=2) as stream:
        next(stream)
        with pytest.raises(TypeError, match="window=1"):
            stream.send(1)
        with pytest.raises(TypeError, match="window=1"):
            stream.throw(ValueError())
        assert next(stream) == 1


def fail_in(stream: Any) -> None:
    with stream:
        for number in stream:
            number / 0


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 50])
@pytest.mark.parametrize("way", ["close", "with", "forget", "throw", "an error in the loop"])
def test_to_leave_it_is_to_close_it(
    shared: Site, client: Any, a: str, name: str, way: str, window: int
) -> None:
    stream = client.stream(f"{a}count", {"name": name}, window=window)
    for number in stream:
        if number == 5:
            break
    if way == "close":
        stream.close()
        stream.close()
    elif way == "with":
        with stream:
            next(stream)
    elif way == "throw":
        with pytest.raises(GeneratorExit):
            stream.throw(GeneratorExit())
    elif way == "an error in the loop":
        with pytest.raises(ZeroDivisionError):
            fail_in(stream)
    del stream
    gc.collect()
    assert finished(shared, name)


def test_one_that_was_never_begun_leaves_nothing(shared: Site, client: Any, a: str, name: str) -> None:
    for _ in range(10):
        client.stream(f"{a}count", {"name": name})
        client.stream(f"{a}count", {"name": name}).close()
    gc.collect()
    assert [*client.stream(f"{a}count", {"most": 3})] == [0, 1, 2]
    assert not begun(shared, name)


@pytest.mark.parametrize("window", [1, 4, 20])
def test_a_consumer_that_stops_has_the_producer_stop(
    shared: Site, client: Any, a: str, name: str, window: int
) -> None:
    with client.stream(f"{a}count", {"name": name, "log": True}, window=window) as stream:
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        assert [*client.stream(f"{a}count", {"most": 50})] == [*range(50)]
        assert len(shared.lines(f"{name} makes")) <= 3 + window
    assert finished(shared, name)


@pytest.mark.parametrize(
    ("number", "size", "window"), [(6, 1_000_000, 1), (9, 1_000_000, 4), (3000, 20, 500)]
)
def test_large_and_small_items(client: Any, a: str, number: int, size: int, window: int) -> None:
    got = [*client.stream(f"{a}large", {"number": number, "size": size}, window=window)]
    assert [int(each.rstrip(".")) for each in got] == [*range(number)]
    assert {len(each) for each in got} == {size}


def test_an_unknown_job_and_bad_arguments_are_told_at_the_first_next(client: Any, a: str) -> None:
    with pytest.raises(MethodNotFound):
        next(client.stream("none"))
    with pytest.raises(InvalidParams):
        next(client.stream(f"{a}count", {"wrong": 1}))
    for wrong in 0, -1, 1.5, True, "1", None:
        with pytest.raises(ValueError, match="window"):
            client.stream(f"{a}count", window=wrong)
    with pytest.raises(SerializationError):
        client.stream(f"{a}count", {"most": object()})


def test_a_function_has_no_items_but_a_value(client: Any) -> None:
    stream = client.stream("threads")
    assert [*stream] == []
    assert stream.value > 0


def test_a_generator_that_ignores_its_end_is_ended(shared: Site, client: Any, a: str, name: str) -> None:
    stream = client.stream(f"{a}stubborn", {"name": name})
    assert next(stream) == 0
    stream.close()
    until(lambda: shared.lines(f"{name} ignores it"))
    until(lambda: not shared.open)


def test_what_its_finally_waits_for_comes_to_its_end(shared: Site, client: Any, a: str, name: str) -> None:
    stream = client.stream(f"{a}lingers", {"name": name}, window=10)
    assert next(stream) == 0
    stream.close()
    until(lambda: shared.lines(f"{name} has slept"))
    until(lambda: not shared.open)
    assert shared.lines(f"{name} has slept") == [f"{name} has slept"]


def test_many_at_a_time_do_not_mix(shared: Site, client: Any, a: str) -> None:
    wanted = [[[n, m] for m in range(20)] for n in range(6)]
    streams = [client.stream(f"{a}items", {"what": each}, window=n + 1) for n, each in enumerate(wanted)]
    got: list[list[Any]] = [[] for _ in streams]
    for _ in range(20):
        for stream, into in zip(streams, got, strict=True):
            into.append(next(stream))
    assert got == wanted
    for stream in streams:
        with pytest.raises(StopIteration):
            next(stream)


# Uploads.


@pytest.mark.parametrize("number", [0, 1, 3000])
def test_what_is_uploaded_is_taken_in_order(client: Any, a: str, number: int) -> None:
    stream = client.stream(f"{a}total", items=("x" * (n % 7) for n in range(number)))
    assert [*stream] == []
    assert stream.value == {"number": number, "size": sum(n % 7 for n in range(number))}


def test_large_uploads(client: Any, a: str) -> None:
    stream = client.stream(f"{a}total", items=("x" * 1_000_000 for _ in range(12)))
    assert [*stream] == []
    assert stream.value == {"number": 12, "size": 12_000_000}


@pytest.mark.parametrize("window", [1, 16])
def test_both_ways(shared: Site, client: Any, a: str, window: int) -> None:
    assert [*client.stream(f"{a}doubled", items=range(300), window=window)] == [2 * n for n in range(300)]


def test_an_item_is_not_held_back_until_the_next_one_comes(
    shared: Site, client: Any, a: str, name: str
) -> None:
    def has_come(number: int) -> bool:
        return f"{name} {number} came" in shared.lines(name)

    def items() -> Any:
        for number in range(4):
            yield [name, number]
            until(lambda wanted=number: has_come(wanted))

    async def aitems() -> Any:
        for number in range(4):
            yield [name, number]
            await asyncio.to_thread(until, lambda wanted=number: has_come(wanted))

    assert [*client.stream(f"{a}noting", items=aitems() if a else items())] == []


def test_an_answer_is_not_held_back_until_all_is_uploaded(client: Any, a: str) -> None:
    """An iterable without end, whose items are answered one by one."""
    with client.stream(f"{a}doubled", items=itertools.count()) as stream:
        assert [next(stream) for _ in range(20)] == [2 * n for n in range(20)]


def test_an_error_in_the_iterable_is_raised_and_closes_it(shared: Site, client: Any, a: str) -> None:
    def items() -> Any:
        yield 1
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(client.stream(f"{a}doubled", items=items()))
    until(lambda: not shared.open)
    with pytest.raises(SerializationError):
        list(client.stream(f"{a}doubled", items=[1, object()]))
    until(lambda: not shared.open)


def test_a_handler_may_end_before_its_items_do(client: Any, a: str) -> None:
    def without_end() -> Any:
        number = 0
        while True:
            yield number
            number += 1

    stream = client.stream(f"{a}first_only", items=without_end())
    assert [*stream] == []
    assert stream.value == 0


def test_to_leave_an_upload_ends_its_handler(shared: Site, client: Any, a: str) -> None:
    ends = len(shared.lines("doubled ends"))
    stream = client.stream(f"{a}doubled", items=iter(range(10**9)), window=2)
    assert next(stream) == 0
    stream.close()
    until(lambda: len(shared.lines("doubled ends")) == ends + 1)
    until(lambda: not shared.open)
