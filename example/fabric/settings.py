"""Of all three services: SERVICE says which one a worker is."""

import os

SERVICE = os.environ.get("SERVICE", "")

RPC_BACKEND = os.environ.get("BROKER", "redis://127.0.0.1:6379/0")
RPC_DOMAIN = "shop"
RPC_SERVICE_TYPE = SERVICE
RPC_SERVICE_VERSION = "1.4.0"
RPC_SERVICES = [f"{SERVICE}.{SERVICE.capitalize()}"] if SERVICE else []
RPC_KEEP_ALIVE = 1.0
