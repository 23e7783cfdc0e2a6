"""Checks of rows: audit, significance, published numbers."""
