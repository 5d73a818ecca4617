"""Database connections, where there are no HTTP requests: nobody else would close those that are too old, or
broken."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.db import close_old_connections, reset_queries


class connections_kept:
    """What Django does with connections before and after each HTTP request. In an event loop, for the thread
    in which coroutines use the ORM there."""

    def __enter__(self) -> None:
        reset_queries()
        close_old_connections()

    def __exit__(self, *error: object) -> None:
        close_old_connections()

    async def __aenter__(self) -> None:
        await sync_to_async(self.__enter__)()

    async def __aexit__(self, *error: object) -> None:
        await sync_to_async(close_old_connections)()
