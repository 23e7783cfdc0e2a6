"""Bulk copies between tiers move whole heads: contiguous on both sides, waited for by nobody.

The meta device stands for the accelerator: its tensors have a shape and no data.
"""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels.cluster_layout import Layout
from retrobench_methods.full_offload import StreamedStore
from retrobench_methods.infinigen.config import InfiniGenConfig
from retrobench_methods.infinigen.pool import KVPool
from retrobench_methods.retroinfer import RetroInferConfig
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrobench.core.method import Probe
from retrobench.memory.placement import ResolvedPlacement
from retrobench.memory.pool import PooledStore
from retrobench.memory.store import ResidentStore
from tests.support import kv_shape, prompt_layer

TOKENS, HEADS = 160, 2 * 2  # of two rows and two KV heads
SHAPE = kv_shape(pad_tokens=(0, 0), device="meta", prompt_tokens=TOKENS, max_tokens=180)


class Copies(TorchDispatchMode):
    """Counts copies between devices; refuses those that torch would make in several steps."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func is torch.ops.aten._to_copy.default and "device" in (kwargs or {}):
            assert str(kwargs["device"]) == str(args[0].device), "a copy in memory of its own"
        if func is torch.ops.aten.copy_.default and len({x.device.type for x in tensors}) > 1:
            assert all(x.is_contiguous() for x in tensors), "a copy with gaps"
            assert args[2:] == (True,), "the host waits for the copy"
            self.seen += 1
            return args[0]  # there is no data
        return func(*args, **(kwargs or {}))


def prompt():
    """Keys and values of a prompt with room behind them, as a prefill leaves them."""
    k, v = torch.empty(2, 2, 2, 180, 8, device="meta")
    return prompt_layer(None, k[:, :, :TOKENS], v[:, :, :TOKENS])


def placement(**changes):
    values = {"place": "pinned", "manager": "none", "page_tokens": 8, "cache_frac": 0.1}
    return ResolvedPlacement(**values, eviction="lru", record=False, **changes)


def pooled():
    PooledStore(SHAPE, placement()).load(0, prompt())


def resident():
    ResidentStore(SHAPE, "pinned").load(0, prompt())


def streamed():
    store = StreamedStore(SHAPE, False, Probe())
    store.k[0], store.v[0] = ((torch.empty(2, 2, 180, 8),) for _ in "kv")  # pinned, one to one
    store.used[0] = TOKENS
    store.start(0)


def infinigen():
    pool = KVPool(InfiniGenConfig(), SHAPE)
    pool.load_used(0, prompt(), torch.zeros(2, 2, TOKENS, dtype=torch.int32, device="meta"))


def clustered():
    buffer = WaveBuffer(RetroInferConfig(update_tokens=16), SHAPE, placement())
    part, tokens = prompt(), slice(4, 104)  # between sinks and local window
    buffer.allocate(0)
    for row in range(2):
        target = torch.zeros(2, 100, dtype=torch.int64, device="meta")
        none = torch.zeros(2, 4, dtype=torch.int32, device="meta")
        layout = Layout(target, none, none, none, none)
        buffer.place(0, row, part.k_BGSD[row, :, tokens], part.v_BGSD[row, :, tokens], layout)


@pytest.mark.parametrize("fill", [pooled, resident, streamed, infinigen, clustered])
def test_whole_heads_move(fill):
    with Copies() as copies:
        fill()
    assert copies.seen == 2 * HEADS  # keys and values
