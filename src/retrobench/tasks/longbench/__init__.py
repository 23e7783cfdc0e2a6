"""LongBench: prompts, records and the task."""
