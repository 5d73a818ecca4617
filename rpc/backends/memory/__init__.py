"""Inside one process: the reference for what a backend does, for tests, and for a program that is not
distributed yet. What is not handled when the process ends is gone."""

from .backend import MemoryBackend as MemoryBackend
