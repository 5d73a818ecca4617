"""What both workers and their callers agree on."""

import os

BROKER = os.environ.get("BROKER", "amqp://guest:guest@127.0.0.1:5672/")
ROUTES = {"stock.*": "example.stock", "orders.*": "example.orders"}
