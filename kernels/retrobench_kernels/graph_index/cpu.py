"""Neighbour graphs in C++: graphs are built, and heads are searched, by all threads."""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import DTYPES, addresses, float32, int32, rows
from retrobench_kernels.graph_index.naive import BuildArgs, Found, SearchArgs

unsupported = native.unsupported_keys


def build_graph(args: BuildArgs) -> Tensor:
    """As the reference."""
    keys, near, entry = float32(args.k_GSD), int32(args.near_HTN), int32(args.entry_H)
    (groups, tokens, dim), (graphs, queries, wide) = keys.shape, near.shape
    link = torch.empty(graphs, tokens, 2 * args.degree, dtype=torch.int32)
    native.function("graph_build")(
        *addresses(keys, near, entry, link), graphs, graphs // groups, tokens, queries, wide, dim,
        args.degree, args.beam, torch.get_num_threads(),
    )  # fmt: skip
    return link


def search_graph(args: SearchArgs) -> Found:
    """As the reference."""
    keys, link, (heads, dim) = rows(args.k_GSD), args.link_HSN, args.q_HD.shape
    q, entry = float32(args.q_HD), int32(args.entry_HE)
    found = Found(
        torch.empty(heads, args.count, dtype=torch.int32), torch.empty(heads, args.count),
        torch.empty(heads, dtype=torch.int64), torch.empty(heads, dtype=torch.int64),
    )  # fmt: skip
    native.function("graph_search")(
        *addresses(q, keys, link, entry, *found), heads, heads // len(keys), heads // len(link),
        keys.shape[1], link.shape[-1], entry.shape[-1], args.beam, args.count, dim,
        _strides(keys, link), DTYPES[keys.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return found


def insert_key(k_GSD: Tensor, link_HSN: Tensor, entry_H: Tensor, beam: int) -> None:
    """As the reference."""
    keys, entry, graphs = rows(k_GSD), int32(entry_H), len(link_HSN)
    native.function("graph_insert")(
        *addresses(keys, link_HSN, entry), graphs, graphs // len(keys), keys.shape[1] - 1,
        link_HSN.shape[-1], beam, keys.shape[-1], _strides(keys, link_HSN), DTYPES[keys.dtype],
        torch.get_num_threads(),
    )  # fmt: skip


def _strides(k_GSD: Tensor, link_HSN: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Strides of heads, of keys and of links, in elements."""
    return (ctypes.c_int64 * 2)(k_GSD.stride(0), link_HSN.stride(0))
