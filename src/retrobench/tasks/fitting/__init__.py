"""Prompts of a given length: their parts, and the search for the size that fills the length."""
