"""ZeroMQ: callers and workers talk to each other directly, without a broker."""

from .backend import ZeromqBackend as ZeromqBackend
