"""The settings in RPC, a dictionary in Django's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import django
from django.conf import settings as django_settings

from ...errors import SettingsError
from ...settings import DICTIONARY, Settings, entries_in, settings_in

NAME = DICTIONARY


def settings() -> Settings:
    """The settings of this project. Raises SettingsError if RPC is missing, or is no dictionary, or has a key
    that is unknown, twice there, or of the wrong type."""
    return settings_in(_dictionary(), module(), (f"{__name__}.settings_in_child", ""))


def settings_in_child(_: str) -> Settings:
    """The same in a process in which nothing is set up yet: one for jobs with `fork=True`."""
    django.setup()
    return settings()


def entries() -> Iterator[tuple[str, Any]]:
    """What is in RPC, by the keys that a settings module would have. Raises SettingsError if there is no such
    dictionary."""
    return entries_in(_dictionary())


def _dictionary() -> Mapping[Any, Any]:
    found = getattr(django_settings, NAME, None)
    if not isinstance(found, Mapping):
        what = "missing" if found is None else f"of type {type(found).__name__}"
        raise SettingsError(f'{module()}: {NAME} is {what}: make it a dictionary, {{"BACKEND": "redis://…"}}')
    return found


def module() -> str:
    """What errors name."""
    return getattr(django_settings, "SETTINGS_MODULE", None) or "Django's settings"
