"""Where the keys live: on one server, on the master that sentinels know, on the nodes of a cluster.

Connecting, TLS, users, sentinels and slots are redis-py's. Time limits are ours, and nothing is retried here,
because redis-py would repeat commands that may have been carried out. Nothing connects before it is asked
to, and what was made before a fork is not used after it.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis import cluster, exceptions, sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from ...deadlines import in_time, left, limited

try:
    from redis.maint_notifications import MaintNotificationsConfig
except ModuleNotFoundError:  # an older redis-py
    _NO_MAINTENANCE: dict[str, Any] = {}
else:  # Redis Enterprise's: asking for it costs each connection a round trip, and it changes our time limits
    _NO_MAINTENANCE = {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
try:
    from redis.driver_info import DriverInfo
except ModuleNotFoundError:  # an older redis-py
    _DRIVER: dict[str, Any] = {}
else:  # else each connection looks through all that is installed for the version of redis-py
    _DRIVER = {"driver_info": DriverInfo(lib_version=redis.__version__)}

SOCKET_TIMEOUT = 3.0
"""Seconds without an answer after which a connection is given up."""
CONNECT_TIMEOUT = 2.0

_TCP = {"KEEPIDLE": 15, "KEEPALIVE": 15, "KEEPINTVL": 5, "KEEPCNT": 3, "USER_TIMEOUT": 20_000}
_KEEPALIVE = {getattr(socket, f"TCP_{name}", None): value for name, value in _TCP.items()}
_KEEPALIVE.pop(None, None)  # what this platform does not have
_WHERE = {"host", "port", "path", "db", "server"}
_KEPT = {*_WHERE, "username", "password", "credential_provider"}
_UNKNOWN = "AbstractConnection.__init__() got an unexpected keyword argument"
_ELSEWHERE = re.compile(r"\b(MOVED|ASK|TRYAGAIN|CLUSTERDOWN|MASTERDOWN|READONLY|UNBLOCKED)\b")

_Sentinel: Any = sentinel.Sentinel
_SentinelPool: Any = sentinel.SentinelConnectionPool
_NodesManager: Any = cluster.NodesManager
_ClusterNode: Any = cluster.ClusterNode


class Servers(Protocol):
    """For any number of threads. Only redis.RedisError leaves these methods."""

    @property
    def is_cluster(self) -> bool:
        """Whether keys may move to another server one by one."""

    def connection(self, key: str) -> Any:
        """A new, connected redis-py Connection to the server that has this key; the caller's to close."""

    def client(self, key: str) -> Any:
        """A redis.Redis for commands on this key. Ask for it each time: the key may have moved."""

    def moved(self) -> None:
        """What `is_elsewhere` knows has happened: look again before the next connection. Does not wait."""

    def close(self) -> None:
        """Give back the clients' connections, but those in use. Idempotent; what is used again connects."""


def is_elsewhere(error: redis.RedisError) -> bool:
    """Whether the key is on another server by now, or on none for a while: say `moved`, wait a little, and
    try again on a new connection."""
    gone = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)
    told = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError)
    # As text: what ends a blocking command, what a script of Redis 6 met, what an older redis-py passes on.
    return isinstance(error, (*gone, *told)) or bool(_ELSEWHERE.search(str(error)))


def servers_of(source: redis.Redis | redis.RedisCluster | str) -> Servers:
    """The place that a URL names, or another client's. Of a client, only the addresses, the credentials and
    TLS are used.

    redis://, rediss:// and unix:// (or redis+unix://) are as redis-py knows them. Further
    redis+sentinel://[user:password@]host[:port][,...]/master[/db] and
    redis+cluster://[user:password@]host[:port][,...], with `ssl=true` and redis-py's options; sentinels have
    a user of their own, `sentinel_username` and `sentinel_password`. `protocol` is 2, which
    takes a command less to connect and is no slower, or 3.
    Raises ValueError or TypeError for what makes no sense. Does no I/O.
    """
    if isinstance(source, str):
        return _named(source)
    if isinstance(source, redis.RedisCluster):
        nodes: Any = source.nodes_manager
        seeds = [(node.host, node.port) for node in (nodes.nodes_cache | nodes.startup_nodes).values()]
        one: Any = source.get_redis_connection(nodes.default_node)
        how = _kept(one.connection_pool)
        return _Servers(lambda: _Nodes(how, seeds, nodes.address_remap))
    pool = getattr(source, "connection_pool", None)
    if isinstance(pool, sentinel.SentinelConnectionPool):
        if not pool.is_master:
            raise ValueError("a client of the master is needed, not of its replicas")
        guards = [_kept(each.connection_pool) for each in pool.sentinel_manager.sentinels]
        return _watched(_kept(pool), guards, pool.service_name)
    if isinstance(pool, redis.ConnectionPool):
        return _single(_kept(pool))
    raise TypeError(f"a Redis URL or client is needed, not {type(source).__name__}")


def _named(url: str) -> Servers:
    scheme = url.partition("://")[0]
    if scheme not in ("redis+sentinel", "redis+cluster"):
        return _single(_read(url.removeprefix("redis+")))
    with _passwords_hidden():
        parts = urlsplit(url)
        user, at, several = parts.netloc.rpartition("@")
        hosts = [urlsplit(f"//{host}") for host in several.split(",")]
        addresses = [(host.hostname or "", host.port) for host in hosts]
    if not all(host for host, _ in addresses):
        raise ValueError(f"{scheme}: needs a host, or several with commas between them")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = query.pop("ssl", "no").lower() not in ("", "0", "f", "false", "n", "no")
    guard = {name: query.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    how = _read(f"redis{'s' * tls}://{user}{at}/?{urlencode(query)}")
    name, _, db = unquote(parts.path).strip("/").partition("/")
    if scheme == "redis+cluster":
        if name not in ("", "0") or db or how.get("db"):
            raise ValueError("redis+cluster: has no database but 0")
        return _Servers(lambda: _Nodes(how, [(host, port or 6379) for host, port in addresses]))
    if not name or not (db or "0").isdecimal():
        raise ValueError("redis+sentinel: the path is the master's name, and maybe a database: /mymaster/0")
    guards = [{**how, "host": host, "port": port or 26379, "db": 0, **guard} for host, port in addresses]
    return _watched({**how, "db": int(db)} if db else how, guards, name)


@contextmanager
def _passwords_hidden() -> Iterator[None]:
    """The text about a URL that cannot be read may show a part of the password, as what is no port."""
    try:
        yield
    except ValueError:
        escapes = "in a password, % / ? # @ are written %25 %2F %3F %23 %40"
        raise ValueError(f"the URL of Redis cannot be read; {escapes}") from None


def _read(url: str) -> dict[str, Any]:
    """How to connect, of what redis-py makes of a URL."""
    with _passwords_hidden():
        parts = urlsplit(url)
        _ = parts.port
    database = unquote(parts.path).removeprefix("/").removesuffix("/")
    if parts.scheme != "unix" and database and not (database.isascii() and database.isdecimal()):
        raise ValueError("what is behind the host is a database of Redis, a number: redis://host:6379/0")
    pool: Any = redis.ConnectionPool.from_url(url)
    protocol = str(pool.connection_kwargs.get("protocol", 2))
    if protocol not in ("2", "3"):
        raise ValueError(f"protocol is {protocol!r}, not 2 or 3")
    try:
        pool.connection_class(**{**_DRIVER, **pool.connection_kwargs})
    except redis.RedisError as error:
        raise ValueError(str(error)) from None
    except TypeError as error:
        raise TypeError(str(error).replace(_UNKNOWN, "no option of this backend, nor of redis-py:")) from None
    return {**_kept(pool), "protocol": int(protocol)}


def _kept(pool: Any) -> dict[str, Any]:
    """How to connect, as another pool does it: the class of connections, who we are, TLS, the address."""
    given = pool.connection_kwargs
    kept = {name: given[name] for name in given if name in _KEPT or name.startswith("ssl")}
    return {"connection_class": pool.connection_class, "protocol": 2, **kept}


def _tuned(how: dict[str, Any]) -> dict[str, Any]:
    """The same with what is ours."""
    tcp = {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    return {
        "max_connections": 2**16,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "redis_connect_func": _introduced,
        **(tcp if issubclass(how["connection_class"], redis.Connection) else {}),
        **_NO_MAINTENANCE,
        **_DRIVER,
        **how,
        "connection_class": _in_time(how["connection_class"]),
    }


class _InTime:
    """What a connection of redis-py does within a deadline. Without one, its own time limits are for each
    step alone, and there is none for looking up a host."""

    _sock: Any

    def _connect(self) -> Any:
        there: Any = super()
        return in_time(there._connect, undo=lambda made: made.close())

    def send_packed_command(self, *arguments: Any, **options: Any) -> Any:
        if left(SOCKET_TIMEOUT) == SOCKET_TIMEOUT or self._sock is None:
            return super().send_packed_command(*arguments, **options)  # type: ignore[misc]
        with limited(self._sock, SOCKET_TIMEOUT):
            return super().send_packed_command(*arguments, **options)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        if left(SOCKET_TIMEOUT) == SOCKET_TIMEOUT or self._sock is None:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        with limited(self._sock, SOCKET_TIMEOUT):
            return super().read_response(*arguments, **options)  # type: ignore[misc]


@lru_cache
def _in_time(kind: type) -> type:
    return type(kind.__name__, (_InTime, kind), {})


def _introduced(connection: Any) -> None:
    """Tell the server who we are. Not by redis-py's `client_name`: a user that may not have one could not
    connect then, such as any without dangerous commands on Redis 6."""
    connection.on_connect()
    host = re.sub("[^!-~]", "?", socket.gethostname())
    connection.send_command("CLIENT", "SETNAME", f"rpc:{host}:{os.getpid()}")
    with suppress(redis.ResponseError):
        connection.read_response()


def _single(how: dict[str, Any]) -> Servers:
    return _Servers(lambda: _Server(redis.ConnectionPool(**_tuned(how))))


def _watched(how: dict[str, Any], guards: Sequence[dict[str, Any]], name: str) -> Servers:
    if not issubclass(how["connection_class"], sentinel.SentinelManagedConnection):
        tls = issubclass(how["connection_class"], redis.SSLConnection)
        managed = sentinel.SentinelManagedSSLConnection if tls else sentinel.SentinelManagedConnection
        how = {**how, "connection_class": managed}
    return _Servers(lambda: _Server(_SentinelPool(name, _Watch(guards), **_tuned(how))))


class _Servers:
    """What is known of it is each process' own: a parent's lock, or its socket, is not for its children."""

    def __init__(self, look: Callable[[], _Server | _Nodes]) -> None:
        self._look = look
        self._known: dict[int, _Server | _Nodes] = {}

    def connection(self, key: str) -> Any:
        try:
            pool = self.client(key).connection_pool
            connection = pool.connection_class(**pool.connection_kwargs)  # those it makes, it counts for ever
            with _only_redis_errors():
                connection.connect()
        except redis.RedisError:
            self.moved()
            raise
        return connection

    def client(self, key: str) -> Any:
        with _only_redis_errors():
            return self._here().of(key)

    @property
    def is_cluster(self) -> bool:
        return isinstance(self._here(), _Nodes)

    def moved(self) -> None:
        self._here().moved()

    def close(self) -> None:
        self._here().close()

    def _here(self) -> _Server | _Nodes:
        pid = os.getpid()
        # No lock: it might be held at the fork. Of two threads, one may look for nothing.
        return self._known.get(pid) or self._known.setdefault(pid, self._look())


class _Server:
    """The one that a pool leads to."""

    def __init__(self, pool: Any) -> None:
        self._client = redis.Redis(connection_pool=pool)

    def of(self, key: str) -> Any:
        return self._client

    def moved(self) -> None:
        self._client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self._client.connection_pool.disconnect(inuse_connections=False)


class _Nodes:
    """Of a cluster."""

    def __init__(self, how: dict[str, Any], seeds: Sequence[tuple[str, int]], remap: Any = None) -> None:
        self._seeds, self._remap = seeds, remap
        self._options = {name: value for name, value in _tuned(how).items() if name not in _WHERE}
        self._manager: Any = None
        self._lock = threading.Lock()
        self._sign, self._heeded = object(), object()

    def of(self, key: str) -> Any:
        if self._heeded is not self._sign:
            with self._lock:
                if self._heeded is not (sign := self._sign):
                    self._look()
                    self._heeded = sign  # another may have come meanwhile
        try:
            return self._manager.get_node_from_slot(key_slot(key.encode())).redis_connection
        except exceptions.SlotNotCoveredError:
            self.moved()
            raise

    def moved(self) -> None:
        self._sign = object()

    def close(self) -> None:
        for node in list(self._manager.nodes_cache.values()) if self._manager else ():
            node.redis_connection.connection_pool.disconnect(inuse_connections=False)

    def _look(self) -> None:
        seeds = [_ClusterNode(host, port) for host, port in self._seeds]
        if self._manager is None:
            self._manager = _NodesManager(seeds, from_url=True, address_remap=self._remap, **self._options)
            return
        for seed in seeds:  # all that are known may have gone, and others come to where these are
            self._manager.startup_nodes.setdefault(seed.name, seed)
        self._manager.initialize()


class _Watch:
    """Sentinels, asked by one thread at a time: redis-py puts the one that answered first, and when two
    threads do that, others get lost."""

    def __init__(self, guards: Sequence[dict[str, Any]]) -> None:
        self._sentinel = _Sentinel([])
        # In RESP3, some releases of redis-py do not understand them.
        pools = [redis.ConnectionPool(**{**_tuned(guard), "protocol": 2}) for guard in guards]
        self._sentinel.sentinels = [redis.Redis(connection_pool=pool) for pool in pools]
        self._lock = threading.Lock()

    def discover_master(self, name: str) -> Any:
        try:
            with self._lock:
                return self._sentinel.discover_master(name)
        except sentinel.MasterNotFoundError:  # whose text shows passwords in some releases
            raise sentinel.MasterNotFoundError(f"no sentinel knows a master {name!r} that is up") from None


@contextmanager
def _only_redis_errors() -> Iterator[None]:
    try:
        yield
    except (exceptions.RedisClusterException, OSError, LookupError, ValueError) as error:
        raise redis.ConnectionError(str(error)) from error
