"""What a receiver offers, described once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.jobs import Job
from ..events import Listener
from ..identity import Identity
from ..loops import locked_cached_property
from .asyncapi import asyncapi
from .documents import Document
from .openrpc import openrpc, schema_hash


class Offered:
    """The jobs and listeners of a service."""

    def __init__(self, jobs: Mapping[str, Job], listeners: Sequence[Listener], identity: Identity) -> None:
        self._jobs, self._listeners, self._identity = jobs, listeners, identity

    @locked_cached_property
    def document(self) -> Document:
        """The OpenRPC document of the jobs, with the AsyncAPI document of the listeners if there are some."""
        info = {"title": self._identity.type or "rpc", "version": self._identity.version}
        heard = asyncapi(self._listeners, **info) if self._listeners else None
        return openrpc(self._jobs, **info, events=heard)

    @locked_cached_property
    def schema_hash(self) -> str:
        """Its hash: the same for all workers that offer the same."""
        return schema_hash(self.document)
