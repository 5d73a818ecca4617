"""OpenRPC documents of jobs, and AsyncAPI documents of listeners."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from rpc import RpcReceiver, ServiceNotFound, errors
from rpc.contract.documents import checked, read
from rpc.contract.openrpc import EVENTS, KIND, STREAM, STYLE, merged, openrpc, schema_hash, selected
from rpc.core.jobs import jobs_from
from rpc.settings import Settings

from .shop import Address, Card, Item, Shop, raw
from .specifications import ValidationError, check_asyncapi, check_openrpc, resolved


def document_of(**jobs: Callable[..., Any]) -> dict[str, Any]:
    found = openrpc(
        jobs_from({name.replace("__", "."): job for name, job in jobs.items()}), title="t", version="1"
    )
    check_openrpc(found)
    return found


def offered(**settings: Any) -> dict[str, Any]:
    receiver = RpcReceiver(
        jobs={"raw": raw}, services=[Shop], backend="memory://", settings=Settings(**settings)
    )
    return receiver.discover()


def methods(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in document["methods"]}


def test_the_documents_of_a_service_are_what_their_specifications_say() -> None:
    document = offered(service_type="shop", service_version="1.2.3")
    check_openrpc(document)
    check_asyncapi(document[EVENTS])
    assert document["info"] == document[EVENTS]["info"] == {"title": "shop", "version": "1.2.3"}
    assert checked(document) == document


def test_what_is_no_document_is_found() -> None:
    document = offered()
    document["methods"][0].pop("params")
    with pytest.raises(ValidationError, match="not valid"):
        check_openrpc(document)
    heard = offered()[EVENTS]
    next(iter(heard["operations"].values())).pop("action")
    with pytest.raises(ValidationError, match="not valid"):
        check_asyncapi(heard)


def test_docstrings_are_told() -> None:
    found = methods(offered())
    assert found["shop.main.buy"]["summary"] == "Buy something."
    assert found["shop.main.buy"]["description"] == (
        "Buy something. It is sent at once.\n\nA receipt is returned."
    )
    assert (found["raw"]["summary"], "description" in found["raw"]) == ("Anything will do.", False)
    assert "summary" not in found["shop.main.list"]


def test_parameters_say_how_they_are_given() -> None:
    found = methods(offered())

    def told(name: str) -> list[tuple[str, bool, str | None]]:
        return [(each["name"], each["required"], each.get(KIND)) for each in found[name]["params"]]

    assert told("shop.main.buy") == [
        ("item", True, None),
        ("paid", True, "named-only"),
        ("quantity", False, None),
    ]
    assert told("shop.main.sum") == [
        ("first", True, "positional-only"),
        ("second", False, None),
        ("rest", False, "variadic"),
        ("named", False, "variadic-named"),
    ]
    structures = {name: each.get("paramStructure") for name, each in found.items()}
    assert structures["shop.main.buy"] == "by-name"
    assert structures["shop.main.sum"] == "by-position"
    assert structures["shop.main.move"] == "either"
    assert (found["raw"][STYLE], found["raw"]["params"]) == ("request", [])


def test_defaults_are_told_if_they_are_values() -> None:
    params = {
        (name, each["name"]): each["schema"].get("default", "none")
        for name, method in methods(offered()).items()
        for each in method["params"]
    }
    assert params["shop.main.buy", "quantity"] == 1
    assert params["shop.main.list", "list"] is None
    assert params["shop.main.where", "at"] == [0, 0]
    assert params["shop.main.where", "path"] == "/"
    assert params["shop.main.nothing", "odd"] == "none"


def test_streams_tell_their_items_and_what_they_are_sent_and_return() -> None:
    found = methods(offered())
    assert found["shop.main.tail"][STREAM] == {"items": {"$ref": "#/components/schemas/Item"}}
    assert found["shop.main.tail"]["result"]["schema"] == {"type": "null"}
    talk = found["shop.main.talk"]
    assert talk[STREAM] == {"items": {"type": "string"}, "sent": {"type": "integer"}}
    assert talk["result"]["schema"] == {"type": "boolean"}
    assert {"$ref": "#/components/errors/StreamBroken"} in talk["errors"]


def test_every_error_with_a_code_is_in_the_table() -> None:
    table = offered()["components"]["errors"]
    assert {name: each["code"] for name, each in table.items()} == {
        kind.__name__: kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RpcError) and kind.code != -32000
    } | {"RemoteError": -32000}
    assert all(each["message"] for each in table.values())


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Item, {"name": "tea", "price": "1.5", "parts": [{"name": "leaf", "price": "0"}]}, {"name": "tea"}),
        (
            Item,
            {"name": "t", "price": "1", "colour": "dark-blue"},
            {"name": "t", "price": "1", "colour": "x"},
        ),
        (Card, {"type": "Card", "number": "1", "from": None}, {"type": "Cash", "number": "1"}),
        (Address, {"street": "s", "zip": "1", "neighbours": [{"street": "s", "zip": "2"}]}, {"street": "s"}),
        (tuple[int, str], [1, "a"], [1, "a", 2]),
        (tuple[int, str], [1, "a"], ["a", 1]),
        (tuple[int, ...], [1, 2, 3], [1, "2"]),
        (dict[str, list[int]], {"a": [1]}, {"a": ["1"]}),
        (int | None, None, "1"),
    ],
)
def test_schemas_admit_what_handlers_take(kind: Any, good: Any, bad: Any) -> None:
    def handler(value: kind) -> None: ...  # type: ignore[valid-type]

    handler.__annotations__ = {"value": kind, "return": None}
    document = document_of(handler=handler)
    validator = resolved(document, document["methods"][0]["params"][0]["schema"])
    assert validator.is_valid(good)
    assert not validator.is_valid(bad)
    msgspec.convert(good, kind) if kind is not Address else Address.model_validate(good)


def test_annotations_that_cannot_be_told_are_anything() -> None:
    def handler(a: object, b: NoSuch, c: complex = 1j) -> NoSuch: ...  # type: ignore[name-defined] # noqa: F821

    (method,) = document_of(handler=handler)["methods"]
    assert [each["schema"] for each in method["params"]] == [{}, {}, {}]
    assert method["result"]["schema"] == {}


def struct(kind: Any) -> Any:
    return msgspec.defstruct("Same", [("field", kind)], module=f"module_{kind.__name__}")


def model(kind: Any) -> Any:
    return pydantic.create_model("Same", field=(kind, ...), __module__=f"module_{kind.__name__}")


@pytest.mark.parametrize(
    ("first", "second"), [(struct, struct), (model, model), (struct, model), (model, struct)]
)
def test_classes_of_one_name_stay_apart(first: Any, second: Any) -> None:
    def one(value: Any) -> None: ...
    def other(value: Any) -> None: ...

    one.__annotations__, other.__annotations__ = {"value": first(int)}, {"value": second(str)}
    document = document_of(one=one, other=other)
    for method, good, bad in zip(document["methods"], (1, "a"), ("a", 1), strict=True):
        validator = resolved(document, method["params"][0]["schema"])
        assert validator.is_valid({"field": good})
        assert not validator.is_valid({"field": bad})


def test_a_part_is_about_a_service_or_a_job_and_has_the_classes_that_it_needs() -> None:
    document = offered()
    part = selected(document, "shop.main.where")
    check_openrpc(part)
    assert [*methods(part)] == ["shop.main.where"]
    assert [*part["components"]["schemas"]] == ["Address", "Place"]
    assert len(methods(selected(document, "shop"))) == len(methods(document)) - 1
    with pytest.raises(ServiceNotFound, match="'sho'"):
        selected(document, "sho")


def test_of_documents_of_several_workers_there_is_one_whole() -> None:
    one, other = document_of(a=lambda x: x, b=lambda x: x), document_of(b=lambda y: y, c=lambda y: y)
    whole = merged([one, other])
    check_openrpc(whole)
    assert [(name, each["params"][0]["name"]) for name, each in methods(whole).items()] == [
        ("a", "x"),
        ("b", "x"),
        ("c", "y"),
    ]
    check_asyncapi(merged([one, offered(), offered()])[EVENTS])


def test_a_hash_is_the_same_in_every_process() -> None:
    program = (
        "from tests.contract.test_openrpc import offered; from rpc.contract.openrpc import schema_hash; "
        "print(schema_hash(offered()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert said == {schema_hash(offered())}
    assert schema_hash(offered(service_version="1.0.0")) not in said


def test_what_listeners_hear_is_told() -> None:
    heard = offered()[EVENTS]
    assert {key: each["address"] for key, each in heard["channels"].items()} == {
        "boom": "boom",
        "payment.any": "payment.*",
    }
    messages = heard["channels"]["payment.any"]["messages"]
    assert messages["shop.main.paid"]["payload"] == {"$ref": "#/components/schemas/Item"}
    assert messages["shop.main.hear"]["payload"] == {}
    operation = heard["operations"]["shop.main.paid.payment.any"]
    assert (operation["summary"], operation["x-rpc-group"], operation["x-rpc-durable"]) == (
        "Write it down.",
        "accountant",
        True,
    )
    filtered = heard["operations"]["shop.main.hear.payment.any"]
    assert (filtered["x-rpc-headers"], filtered["x-rpc-match"]) == ({"country": "de", "vip": None}, "any")
    assert "x-rpc-headers" not in operation
    booms = [each for key, each in heard["operations"].items() if "boom" in key]
    assert sorted(each.get("x-rpc-headers", {}).get("loud", False) for each in booms) == [False, True]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"openrpc": "1.4.1", "info": {"title": "t", "version": "1"}, "methods": [{}]},
        {"openrpc": "1.4.1", "info": {"title": "t", "version": "1"}, "methods": [{"$ref": "#/x"}]},
        {
            "openrpc": "1.4.1",
            "info": {"title": "t", "version": "1"},
            "methods": [{"name": "a", "params": [1]}],
        },
    ],
)
def test_what_is_read_must_be_a_document(bad: Any) -> None:
    with pytest.raises(ValueError, match="it is no OpenRPC document: "):
        checked(bad)


@pytest.mark.parametrize("text", [b"", b"RPC_BACKEND = 1", b"\xff\xff"])
def test_a_file_that_is_no_json_is_no_document(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "openrpc.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=r"openrpc\.json: it is no OpenRPC document: not JSON: "):
        read(file)


def test_what_is_read_may_refer_to_its_parts() -> None:
    document = {
        "openrpc": "1.4.1",
        "info": {"title": "t", "version": "1"},
        "methods": [{"name": "a", "params": [{"$ref": "#/components/contentDescriptors/P"}]}],
        "components": {"contentDescriptors": {"P": {"name": "p", "schema": True}}},
    }
    check_openrpc(document)
    assert checked(document)["methods"][0]["params"] == [{"name": "p", "schema": True}]
