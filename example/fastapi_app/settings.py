"""What the worker and the web app have in common."""

import os

RPC_BACKEND = os.environ.get("RPC_BACKEND", "redis://127.0.0.1:6379/0")
RPC_TIMEOUT = float(os.environ.get("RPC_TIMEOUT", 5))
RPC_JOB_MAPPING = {
    "place_order": "jobs.place_order",
    "price": "jobs.price",
    "send_receipt": "jobs.send_receipt",
    "preparation": "jobs.preparation",
}
