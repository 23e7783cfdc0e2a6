"""Clocks, probes and machine facts. The only place that may read a clock."""
