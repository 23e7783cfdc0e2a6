"""Append-only results on disk."""
