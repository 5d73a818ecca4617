"""System checks: what `manage.py check`, and most other commands, say of wrong settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error

from ...backends import backend_from_url
from ...errors import RpcError, SettingsError
from ...settings import Settings, settings_from
from .conf import entries, module, settings

HINT = "The keys of RPC are those of a settings module without their RPC_."


def check_settings(app_configs: Sequence[AppConfig] | None, **options: Any) -> list[CheckMessage]:
    """One error for each key that is wrong, or else for backends that cannot be. What dotted paths lead to is
    not looked at: only workers import it."""
    try:
        keys = list(entries())
    except SettingsError as error:
        return [Error(str(error), id="rpc.E001")]
    wrong = [message for key, value in keys if (message := _wrong(key, value))]
    if wrong:
        return [Error(message, hint=HINT, id="rpc.E002") for message in wrong]
    try:
        _try_backends(settings())
    except RpcError as error:
        return [Error(str(error), id="rpc.E003")]
    return []


def _wrong(key: str, value: Any) -> str:
    try:
        settings_from({key: value}, module())
    except SettingsError as error:
        return str(error)
    return ""


def _try_backends(found: Settings) -> None:
    """Nothing connects for it."""
    chosen = [each for each in (found.backend, found.receiver_backend, found.client_backend) if each]
    if not chosen:
        raise SettingsError(f"{found.module} has no RPC_BACKEND: set it to a URL")
    for each in chosen:
        if isinstance(each, str):
            backend_from_url(each).close()
