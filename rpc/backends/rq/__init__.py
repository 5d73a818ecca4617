"""rq on Redis: a message is an rq job."""

from .backend import PythonRqBackend as PythonRqBackend
from .backend import perform as perform
