"""HTTP: callers and workers talk to each other directly, without a broker, and so does `curl`."""

from .backend import HttpBackend as HttpBackend
