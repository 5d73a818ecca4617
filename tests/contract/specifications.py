"""The official schemas of OpenRPC and AsyncAPI documents."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="needs a validator of JSON schemas")
from referencing import Registry, Resource  # noqa: E402
from referencing.jsonschema import DRAFT7  # noqa: E402

ValidationError = jsonschema.ValidationError
VECTORS = Path(__file__).parent.parent / "vectors" / "specifications"
META_SCHEMA = "https://meta.json-schema.tools"


def check_openrpc(document: Any) -> None:
    """Raises ValidationError."""
    meta = Resource(json.loads((VECTORS / "json-schema-tools.json").read_text()), DRAFT7)
    registry = Registry().with_resources([(META_SCHEMA, meta), (f"{META_SCHEMA}/", meta)])
    schema = json.loads((VECTORS / "openrpc-1.4.json").read_text())
    jsonschema.Draft7Validator(schema, registry=registry).validate(document)


def check_asyncapi(document: Any) -> None:
    """Raises ValidationError."""
    schema = json.loads(gzip.decompress((VECTORS / "asyncapi-3.0.0.json.gz").read_bytes()))
    jsonschema.Draft7Validator(schema).validate(document)


def resolved(document: Any, schema: Any) -> Any:
    """A validator for a schema of this document, with its references."""
    return jsonschema.Draft7Validator({"components": document["components"], "allOf": [schema]})
