"""Torch-free vocabulary of the harness: budgets, options, cells, method and task protocols."""
