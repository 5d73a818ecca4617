"""The settings module: read once where a process starts, checked whole, and passed on as arguments.

The module is the one that RPC_SETTINGS_MODULE (or SETTINGS_IMPORT_PATH) names, else `settings`; it is looked
up from the working directory too. Nothing below the entry points reads it, or the environment.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.machinery import PathFinder
from importlib.util import find_spec
from traceback import extract_tb
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from .durations import seconds
from .errors import SettingsError, nearest
from .identity import NAMELESS, Identity

VARIABLES = ("RPC_SETTINGS_MODULE", "SETTINGS_IMPORT_PATH")
DEFAULT_MODULE = "settings"
DICTIONARY = "RPC"
BACKEND_KEYS = ("RPC_BACKEND", "RPC_RECEIVER_BACKEND", "RPC_CLIENT_BACKEND", "RPC_STORE")
DURATIONS = frozenset(
    {
        "timeout",
        "lease",
        "grace",
        "keep_results",
        "unknown_for",
        "stream_idle",
        "keep_alive",
        "signing_window",
    }
)
DEFAULT_QUEUES = ("high", "default", "low")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every key `RPC_<NAME IN CAPITALS>` of a settings module, with its default. Times are in seconds; a
    module may have a timedelta there."""

    module: str = "(none)"
    job_mapping: Mapping[str, Any] = field(default_factory=dict)
    """Name -> callable, or the dotted path of one."""
    services: tuple[Any, ...] = ()
    """Objects, classes and modules whose methods are exposed, listen or tick, or their dotted paths."""
    hooks: Mapping[str, Any] = field(default_factory=dict)
    """Name of a hook -> a callable, or several, or their dotted paths (see `rpc.core.middleware`)."""
    middleware: tuple[Any, ...] = ()
    """What wraps handlers, from the outside in: callables, or their dotted paths."""
    backend: Any = None
    """A backend, or its URL: for receivers and clients alike."""
    receiver_backend: Any = None
    """The same, for receivers alone."""
    client_backend: Any = None
    """The same, for clients alone."""
    timeout: float | None = 30.0
    """How long a call waits. None: without end."""
    concurrency: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How many plain functions a worker runs at a time."""
    coroutines: Annotated[int, msgspec.Meta(ge=1)] = 100
    """How many coroutines a worker runs at a time, beside them: they hold no thread."""
    streams_per_client: Annotated[int, msgspec.Meta(ge=1)] | None = 1000
    """How many streams of one client a worker has open at a time; None: any number."""
    queues: tuple[str, ...] | None = None
    """What a worker serves, in order of priority. None: the queues of its service; or, if it is none,
    DEFAULT_QUEUES."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """Name of a job, or a pattern like `stock.*` -> where clients send it; the first that fits counts."""
    codec: str = "json"
    """How a client encodes: the name of a codec (see `rpc.codecs`)."""
    accept: tuple[str, ...] = ("json", "msgpack", "json+types")
    """What a receiver decodes."""
    compress: str | None = None
    """How a client compresses, and has replies compressed, as "gzip:16kB": from that size on. None: not."""
    delivery: Literal["at-least-once", "at-most-once"] = "at-least-once"
    lease: float | None = None
    """How long after its last sign of life a worker is given up. None: as the backend has it."""
    max_deliveries: int | None = None
    """How often a job is given to a worker before it is given up. None: as the backend has it."""
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1)] = 16 * 1024 * 1024
    """The largest request or reply, in bytes."""
    send_tracebacks: bool = False
    """Whether a RemoteError has the receiver's traceback."""
    send_logs: bool = False
    """Whether `rpc worker` publishes what it logs."""
    keep_results: float = 0.0
    """How long the outcome of a job that nobody waits for is kept."""
    store: Any = None
    """A backend, or its URL, that keeps outcomes. None: the one that carries the jobs."""
    unknown_for: float = 60.0
    """How long workers pass on a job that they do not know, if nobody waits for it."""
    health_file: str | None = None
    """The file in which `rpc worker` leaves signs of life, for `rpc health`."""
    grace: float = 30.0
    """How long a worker that is told to stop may finish what it runs."""
    time_limit: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """How long an attempt of a job may take that has no limit of its own. None: any time."""
    max_jobs_per_child: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """After how many jobs a process of jobs with `fork=True` is replaced. None: never."""
    stream_idle: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long a worker keeps a stream open whose caller it does not hear of."""
    domain: str = NAMELESS
    """The domain of services: what they publish is heard in it alone."""
    service_type: str = ""
    """The type of service that a worker is."""
    service_id: str = NAMELESS
    """Which one of that type. Those with one domain, type and id are replicas."""
    service_version: str = "0.0.0"
    """Its version: MAJOR.MINOR.PATCH."""
    keep_alive: Annotated[float, msgspec.Meta(ge=0.1, le=60)] | None = 5.0
    """How long it is between two signs of life of a worker. None: it gives none."""
    contract: str | None = None
    """The file of an OpenRPC document: a worker whose jobs break those who call as it says does not start."""
    signing_keys: Mapping[str, str] | str | None = field(default=None, repr=False)
    """Id of a key -> the key, or `id=key,id=key`: the first one signs messages, all verify them (see
    `rpc.signing`). None: nothing is signed."""
    signing_required: bool = True
    """Whether what is not signed is refused, if there are keys."""
    signing_window: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """By how much the clocks of two sides may differ."""
    tokens: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Name of a job, or a pattern like `pay.*` -> the tokens of which a caller must have one (see
    `rpc.core.tokens`); the first that fits counts. What none fits is for everybody."""
    token: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The same -> the token that a client sends with it."""
    origin: tuple[str, str] | None = field(default=None, compare=False)
    """Dotted path of a function that loads the same settings in another process, and its argument."""

    @property
    def identity(self) -> Identity:
        """Who a worker with these settings is; SettingsError if a part of it is none."""
        whole: dict[str, str] = {}
        for part in Identity.__struct_fields__:
            key = part if part == "domain" else f"service_{part}"
            whole[part] = getattr(self, key)
            try:
                found = Identity(**whole)
            except ValueError as error:
                raise SettingsError(f"{self.module}: RPC_{key.upper()}: {error}") from None
        return found

    def of(self, identity: Identity | None, **given: Any) -> Settings:
        """The same, of a worker that is this service, and with what else is given; None: as they are. Raises
        SettingsError."""
        if identity:
            given |= {"domain": identity.domain, "service_type": identity.type}
            given |= {"service_id": identity.id, "service_version": identity.version}
        if isinstance(queues := given.get("queues"), str):
            raise SettingsError(f"queues is {queues!r}: it is a list of names, as in [{queues!r}]")
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def served(self) -> tuple[str, ...]:
        """The queues of a worker: those of its service, and then these, if they are given."""
        own = self.identity.queues
        return (*own, *(self.queues if self.queues is not None else () if own else DEFAULT_QUEUES))

    @property
    def named_queues(self) -> tuple[str, ...]:
        """Those queues, and the ones that routes lead to."""
        return (*self.served, *self.routes.values())

    @property
    def for_receivers(self) -> Any:
        """The backend of receivers: an instance or a URL; SettingsError if there is none."""
        return self._either(self.receiver_backend, "RPC_RECEIVER_BACKEND")

    @property
    def for_clients(self) -> Any:
        """The backend of clients: an instance or a URL; SettingsError if there is none."""
        return self._either(self.client_backend, "RPC_CLIENT_BACKEND")

    def _either(self, backend: Any, key: str) -> Any:
        if backend is None and self.backend is None:
            raise SettingsError(f"{self.module} has neither RPC_BACKEND nor {key}: set one to a URL")
        return self.backend if backend is None else backend

    def jobs(self) -> dict[str, Callable[..., Any]]:
        """The job mapping with every dotted path imported; SettingsError if one cannot be."""
        return {name: self._handler(name, target) for name, target in self.job_mapping.items()}

    def loaded_services(self) -> list[Any]:
        """The services, with every dotted path imported; SettingsError if one cannot be."""
        where = f"{self.module}: RPC_SERVICES"
        return [
            _imported(each, where, or_module=True) if isinstance(each, str) else each
            for each in self.services
        ]

    def loaded_hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """The same of the hooks, which are several for each name."""
        return {name: self._several(f"RPC_HOOKS[{name!r}]", hooks) for name, hooks in self.hooks.items()}

    def loaded_middleware(self) -> list[Callable[..., Any]]:
        """The same of the middleware."""
        return self._several("RPC_MIDDLEWARE", self.middleware)

    def _several(self, key: str, targets: Any) -> list[Callable[..., Any]]:
        listed = targets if isinstance(targets, list | tuple) else [targets]
        return [self._callable(key, each) for each in listed]

    def _handler(self, name: str, target: Any) -> Callable[..., Any]:
        return self._callable(f"RPC_JOB_MAPPING[{name!r}]", target)

    def _callable(self, key: str, target: Any) -> Callable[..., Any]:
        where = f"{self.module}: {key}"
        if isinstance(target, str):
            target = _imported(target, where)
        if not callable(target):
            raise SettingsError(f"{where} is {target!r}, which cannot be called")
        found: Callable[..., Any] = target
        return found


def load_settings(source: str | ModuleType | None = None) -> Settings:
    """The settings of a module, or of the module that this name, or the environment, names: its keys `RPC_…`,
    or else what is in its dictionary `RPC`, as in Django's settings.

    Raises SettingsError, naming the key and the module, if it cannot be imported, or has a key that is
    unknown, of the wrong type or out of range.
    """
    if not isinstance(source, ModuleType):
        source = _module(source)
    keys = {key: value for key, value in vars(source).items() if key.startswith("RPC_")}
    where = source.__name__, (f"{__name__}.load_settings", source.__name__)
    dictionary = vars(source).get(DICTIONARY)
    if isinstance(dictionary, Mapping) and not keys:
        return settings_in(dictionary, *where)
    return settings_from(keys, *where)


def settings_here() -> Settings:
    """Those of the module that the environment names, or of the one that is called `settings`, if there is
    one; else the defaults. Raises SettingsError as `load_settings` does."""
    places = [os.getcwd(), *sys.path]
    is_named = any(os.environ.get(variable) for variable in VARIABLES)
    is_there = is_named or PathFinder.find_spec(DEFAULT_MODULE, places) is not None
    return load_settings() if is_there else Settings()


def entries_in(dictionary: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What is in a dictionary `RPC`, by the keys that a settings module would have."""
    return ((f"RPC_{str(key).upper()}", value) for key, value in dictionary.items())


def settings_in(
    dictionary: Mapping[Any, Any], module: str, origin: tuple[str, str] | None = None
) -> Settings:
    """The settings in a dictionary `RPC`; the rest is as for `settings_from`. Raises SettingsError as
    `load_settings` does, and if a key is twice there."""
    keys: dict[str, Any] = {}
    for key, value in entries_in(dictionary):
        if key in keys:
            raise SettingsError(f"{module}: {key} is in {DICTIONARY} twice")
        keys[key] = value
    return settings_from(keys, module, origin)


def settings_from(keys: Mapping[str, Any], module: str, origin: tuple[str, str] | None = None) -> Settings:
    """The settings that these keys, which are those of a settings module, make; `module` is what errors name,
    `origin` is as `Settings` has it. Raises SettingsError as `load_settings` does."""
    types = get_type_hints(Settings, include_extras=True)
    names = [field.name for field in fields(Settings) if field.name not in ("module", "origin")]
    known = {f"RPC_{name.upper()}": name for name in names}
    values: dict[str, Any] = {}
    for key, value in keys.items():
        if key not in known:
            raise SettingsError(f"{module} has the unknown key {key}; {nearest(key, known)}")
        try:
            of = known[key]
            given = seconds(value, "it") if of in DURATIONS and value is not None else value
            values[of] = msgspec.convert(given, types[of])
        except (msgspec.ValidationError, ValueError) as error:
            raise SettingsError(f"{module}: {key}: {error}") from None
        if key in BACKEND_KEYS and not _is_backend(value):
            raise SettingsError(f"{module}: {key}: {value!r} is neither a backend nor its URL")
    settings = Settings(module=module, origin=origin, **values)
    _ = settings.identity  # SettingsError
    return settings


def slots(key: str, number: int) -> int:
    """How many jobs may run at a time; SettingsError if none may."""
    if number < 1:
        raise SettingsError(f"{key} is {number}: at least one job must run at a time")
    return number


def _is_backend(value: Any) -> bool:
    methods = ("send", "request", "server", "close")
    return value is None or isinstance(value, str) or all(hasattr(value, method) for method in methods)


def _module(name: str | None) -> ModuleType:
    found = [variable for variable in VARIABLES if os.environ.get(variable)]
    name = name or (os.environ[found[0]] if found else DEFAULT_MODULE)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            how = f"set {VARIABLES[0]} or pass --settings, or run where {name.replace('.', '/')}.py is"
            if name.endswith(".py"):
                how = f"set {VARIABLES[0]} or pass --settings without the .py: {name.removesuffix('.py')!r}"
            raise SettingsError(f"there is no settings module {name!r}: {how}") from None
        raise SettingsError(f"settings module {name!r} cannot be imported: {described(error)}") from error
    except Exception as error:  # the module is the user's: its code may raise anything
        raise SettingsError(f"settings module {name!r} cannot be imported: {described(error)}") from error


def _imported(path: str, where: str, *, or_module: bool = False) -> Any:
    module, _, attribute = path.rpartition(".")
    if not module and not or_module:
        raise SettingsError(f"{where} is {path!r}, which is no dotted path")
    try:
        imported = importlib.import_module(module or path)
        is_package = hasattr(imported, "__path__")
        if or_module and is_package and not hasattr(imported, attribute) and find_spec(path):
            importlib.import_module(path)
    except Exception as error:  # as above
        raise SettingsError(f"{where} is {path!r}: {described(error)}") from error
    if not module:
        return imported
    if not hasattr(imported, attribute):
        raise SettingsError(f"{where} is {path!r}, but {module} has no {attribute}")
    return getattr(imported, attribute)


def described(error: BaseException) -> str:
    """An error of what was imported or called: its type, its text, and the file and the line that raised it,
    if that is neither of this library nor of the import itself. A SyntaxError has them in its text."""
    text = f"{type(error).__name__}: {error}"
    ours = os.path.dirname(__file__) + os.sep, importlib.__file__, "<frozen"
    frames = [each for each in extract_tb(error.__traceback__) if not each.filename.startswith(ours)]
    if not frames or isinstance(error, SyntaxError):
        return text
    file = frames[-1].filename
    here = os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
    return f"{text} ({here}, line {frames[-1].lineno})"
