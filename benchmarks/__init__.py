"""Benchmarks: every figure is a ratio to a peer that is measured in the same run."""
