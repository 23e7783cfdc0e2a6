"""Attention of one step or chunk: exact, estimated, selective."""
