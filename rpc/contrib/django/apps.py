"""The app, as Django sees it."""

from django.apps import AppConfig
from django.core.checks import register


class RpcConfig(AppConfig):
    name = "rpc.contrib.django"
    label = "python_rpc"  # `rpc` may well be an app of the project's own
    verbose_name = "rpc"

    def ready(self) -> None:
        from .checks import check_settings

        register(check_settings)
