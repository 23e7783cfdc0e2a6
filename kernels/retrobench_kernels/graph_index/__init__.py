"""Neighbour graphs over keys: attention-aware construction, beam search, insertion."""

from retrobench_kernels.graph_index.naive import Found, build_graph, insert_key, search_graph

__all__ = ["Found", "build_graph", "insert_key", "search_graph"]
