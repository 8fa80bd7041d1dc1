"""Measurements, side by side: each module is run by itself, ``python -m benchmarks.<name>``."""
