"""What is printed: JSON, on one line for programs; on a terminal indented, coloured, and harmless to it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click
import msgspec

from ..core.codecs import JSON, MSGPACK, TYPED, Accepted
from ..errors import SerializationError

TAGGED = replace(JSON, name=TYPED.name, content_type=TYPED.content_type)
"""In place of the codec that keeps types: what is read is shown as it is written, as no class is known."""
AS_JSON = Accepted([JSON, MSGPACK, TAGGED], most=64 * 1024 * 1024)
"""What is shown to people, whatever the settings."""

Row = tuple[str, ...]
_WANTED = f"{__name__}.json"
_COLOURS = {"key": "blue", "string": "green", "literal": "magenta", "number": "cyan"}
_STRING = r'"(?:\\.|[^"\\])*"'
_TOKEN = re.compile(
    rf"(?P<key>{_STRING})(?=:)|(?P<string>{_STRING})|(?P<literal>true|false|null)|(?P<number>-?\d[\d.eE+-]*)"
)

json_option = click.option(
    "--json",
    is_flag=True,
    is_eager=True,  # before the others, so that their errors are told as JSON too
    expose_value=False,
    callback=lambda ctx, parameter, value: ctx.meta.update({_WANTED: value}),
    help="Always print one JSON object on one line, for programs; errors too.",
)


def json_wanted(ctx: click.Context | None = None) -> bool:
    """Whether the command line asks for output for programs."""
    ctx = ctx or click.get_current_context()
    return bool(ctx.meta.get(_WANTED))


def print_line(value: Any) -> None:
    """Print a value as JSON on one line."""
    click.echo(_as_json(value))


def print_data(value: Any) -> None:
    """Print a value as JSON: for reading if stdout is a terminal, else on one line."""
    if not sys.stdout.isatty():
        return print_line(value)
    text = printable(msgspec.json.format(_as_json(value), indent=2).decode(), keep="\n")
    click.echo(text if os.environ.get("NO_COLOR") else _TOKEN.sub(_coloured, text))


def _as_json(value: Any) -> bytes:
    try:
        return JSON.encode(value)
    except SerializationError:  # of a codec that carries more than JSON does
        return TYPED.encode(value)


def printable(text: str, keep: str = "") -> str:
    """The text with what could steer a terminal (escape sequences, text direction) written as JSON does."""
    return "".join(
        character if character.isprintable() or character in keep else json.dumps(character)[1:-1]
        for character in text
    )


def one_line(text: str) -> str:
    """The text on one line, safe to show."""
    return printable(" ".join(text.split()))


def aligned(rows: Sequence[Row]) -> Iterator[str]:
    """A line of each, in columns; safe to show."""
    shown = [[one_line(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _coloured(token: re.Match[str]) -> str:
    return click.style(token[0], fg=_COLOURS[token.lastgroup or ""])
