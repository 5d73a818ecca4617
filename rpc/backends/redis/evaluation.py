"""How scripts are run: by their digest, or by their text where Redis forgets them (SCRIPT FLUSH)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha1
from typing import Any
from weakref import WeakKeyDictionary

import redis
from redis.exceptions import NoPermissionError, NoScriptError


def loaded(connection: Any, script: str, by_text: bool) -> tuple[str, str]:
    """How to run a script on this server."""
    connection.send_command("SCRIPT", "LOAD", script)
    try:
        digest = connection.read_response()
    except redis.ResponseError:
        if not (script := _without_flags(script)):
            raise
        connection.send_command("SCRIPT", "LOAD", script)
        digest = connection.read_response()
    return ("EVAL", script) if by_text else ("EVALSHA", digest.decode())


class Scripts:
    """Scripts by their text, on redis-py's client."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        """What is run instead of those with flags, on Redis 6."""

    def run(self, client: Any, script: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """What a script returns. Raises redis.RedisError."""
        given, script = script, self._known.get(script, script)
        try:
            return _run(client, script, keys, arguments)
        except redis.ResponseError as error:
            if "compiling" not in str(error) or not (script := _without_flags(script)):
                raise
        self._known[given] = script
        return _run(client, script, keys, arguments)


_of_client: WeakKeyDictionary[Any, Scripts] = WeakKeyDictionary()


def evaluated(client: Any, script: str, keys: Sequence[Any], *arguments: Any) -> Any:
    """What a script returns that is seldom run, on redis-py's client. Raises redis.RedisError."""
    return _of_client.setdefault(client, Scripts()).run(client, script, keys, arguments)


def _run(client: Any, script: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """Sent as text if Redis does not have it, and this user may do that: what is loaded first may be flushed
    again before it is run."""
    digest, said = _digest(script), (len(keys), *keys, *arguments)
    try:
        return client.evalsha(digest, *said)
    except NoScriptError:
        pass
    try:
        return client.eval(script, *said)
    except NoPermissionError:
        client.script_load(script)
        return client.evalsha(digest, *said)


@lru_cache(maxsize=256)
def _digest(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


def _without_flags(script: str) -> str:
    """The script for Redis 6, which does not know a first line with flags; "" if it has none."""
    return script.partition("\n")[2] if script.startswith("#!") else ""
