"""What the settings declare, whether it runs or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...describe import ListenerInfo
from ...receiver import RpcReceiver
from ...services import service
from .conf import settings


@dataclass(frozen=True)
class DeclaredService:
    """One of SERVICES."""

    source: str
    """The module and the name of its class, or of the module or function that it is."""
    name: str
    """ "" if it exposes nothing."""
    methods: dict[str, str]
    """What it exposes, with signatures."""


@dataclass(frozen=True)
class Declared:
    """All of it; a worker would offer the same."""

    services: list[DeclaredService]
    jobs: dict[str, str]
    """Those in JOB_MAPPING, with signatures."""
    listeners: tuple[ListenerInfo, ...]
    timers: dict[str, str]
    """Names of functions that tick, and when."""


def declared() -> Declared:
    """Nothing connects for it. Raises SettingsError, and Unsupported, as a worker would."""
    found = settings()
    if not found.services and not found.job_mapping:
        return Declared([], {}, (), {})
    sources = found.loaded_services()
    services = [service(each) for each in sources]
    receiver = RpcReceiver(settings=found, services=services)
    offered = receiver.describe()
    receiver.backend.close()
    listed = [
        DeclaredService(_path(source), each.name, offered.services.get(each.name, {}) if each.name else {})
        for source, each in zip(sources, services, strict=True)
    ]
    jobs = {name: signature for name, signature in offered.jobs.items() if name in found.job_mapping}
    return Declared(listed, jobs, offered.listeners, offered.timers)


def _path(source: Any) -> str:
    """Of a class, of an instance's class, of a module, or of a function."""
    named = source if hasattr(source, "__name__") else type(source)
    if not hasattr(named, "__qualname__"):
        return str(named.__name__)
    return f"{named.__module__}.{named.__qualname__}"
