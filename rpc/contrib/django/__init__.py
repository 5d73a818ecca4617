"""For projects on Django: `"rpc.contrib.django"` in INSTALLED_APPS, and one dictionary RPC in the settings,
with the keys of a settings module without their `RPC_`.

`rpc` is a client for the whole process, and `call_on_commit` sends if the transaction commits.
`manage.py rpc` is the worker, `manage.py rpcshell` a shell with the client, `manage.py rpcinfo` says what is
declared and what runs; `connections_kept` is for receivers of your own.
"""

from .client import call_on_commit, client, rpc
from .connections import connections_kept

__all__ = ["call_on_commit", "client", "connections_kept", "rpc"]
