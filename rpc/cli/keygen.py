"""`rpc keygen`: a key to sign messages with."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode

import click

from ..core.signing import KEY_ID, ed25519
from .output import json_option, json_wanted, print_line


@click.command("keygen")
@click.option("--id", help="The key's id; by default one that nobody else has.")
@click.option("--ed25519", "two", is_flag=True, help="A pair: who has the public half alone cannot sign.")
@json_option
def command(id: str | None, two: bool) -> None:
    """Print a new key for RPC_SIGNING_KEYS, as `id=key`; of a pair the private half first, then the public
    one.

    With --json, what is printed is {"id": ..., "key": ..., "public": ...}; public is null for a secret.

    \b
    Example:
      export SIGNING_KEYS="$(rpc keygen)"
    """
    id = id or f"k{secrets.token_hex(4)}"
    if not KEY_ID.fullmatch(id):
        raise click.BadParameter(f"{id!r}: letters, digits, '_', '.', '-', at most 64", param_hint="--id")
    key, public = secrets.token_urlsafe(32), None
    if two:
        private = secrets.token_bytes(32)
        key = f"ed25519:{_text(private)}"
        public = f"ed25519-public:{_text(ed25519(private=private).public)}"
    if json_wanted():
        return print_line({"id": id, "key": key, "public": public})
    for each in filter(None, (key, public)):
        click.echo(f"{id}={each}")


def _text(half: bytes) -> str:
    return urlsafe_b64encode(half).rstrip(b"=").decode()
