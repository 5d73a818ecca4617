"""`manage.py rpcshell`: Django's shell, with a client in it."""

from __future__ import annotations

import code
from typing import Any

import django
from django.core.management.commands import shell

from ...client import client
from ...commands import told

OLD = django.VERSION < (5, 2)
"""Whether Django's shell knows of no names that are there from the beginning."""


class Command(shell.Command):
    help = (
        "Django's shell, with `rpc`, a client with the settings in RPC, and `services`, to call what "
        "services expose: services.orders.place(item='tea')."
    )
    if OLD:
        shells = ["ipython", "python"]

    def get_namespace(self, **options: Any) -> dict[str, Any]:
        inherited = {} if OLD else super().get_namespace(**options)
        return {**inherited, "rpc": client(), "services": client().services}

    def handle(self, **options: Any) -> None:
        with told():
            if OLD:
                vars(shell).update(self.get_namespace())  # with these names it runs -c, and stdin
            super().handle(**options)

    def ipython(self, options: Any) -> None:
        if not OLD:
            return super().ipython(options)
        from IPython import start_ipython

        start_ipython(argv=[], user_ns=self.get_namespace())

    def python(self, options: Any) -> None:
        if not OLD:
            return super().python(options)
        code.interact(local=self.get_namespace())
