"""Serves the jobs of the settings. `rpc worker`, started in this directory, does the same."""

import logging
from textwrap import indent

from rpc import RpcReceiver


class Arrows(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return indent(super().format(record), "-----> worker: ")


handler = logging.StreamHandler()
handler.setFormatter(Arrows())
logging.basicConfig(level=logging.INFO, handlers=[handler])

RpcReceiver().start()
