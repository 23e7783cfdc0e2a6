"""Stages of ``scripts/gpu_bench.py``: each takes a ``Bench`` and adds rows to it."""
