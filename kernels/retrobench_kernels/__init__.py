"""Kernels of retrobench: one folder per operation, each with a plain torch reference."""
