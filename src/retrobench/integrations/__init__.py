"""Bridges to other harnesses."""
