"""Benchmarks: every figure is a ratio to a loop on bare redis-py that is measured in the same run.

A *side* is a system that is measured: a client process and a worker process, in the Python environment of
that system. Between two measurements it has no worker: while one side is measured, no other is served.
"""
