"""A pool in host memory beside inputs on an accelerator, without one.

The meta device stands for the accelerator: its tensors have a shape and no data.
"""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels.cluster_layout import Layout, place_tokens
from retrobench_kernels.wave_attention import Estimation, PageCache, Pool, Steady, wave_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"


class OneDeviceAnOperation(TorchDispatchMode):
    """Raises where an operation other than a copy mixes devices, as CUDA does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            if str(kwargs.get("device")) == "cpu":  # there is no data to copy
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            return func(*args, **kwargs)
        tensors = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()
        ]
        assert len({x.device for x in tensors}) <= 1, f"{func} on two devices"
        return func(*args, **kwargs)


def ints(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


def test_two_devices_are_seen():
    with OneDeviceAnOperation(), pytest.raises(AssertionError, match="two devices"):
        torch.zeros(4).gather(0, ints(2, dtype=torch.int64))


@pytest.mark.parametrize("cached", [False, True])
def test_wave_attention_over_a_pool_in_host_memory(cached, monkeypatch):
    def tokens(first_BGC, size_BGC, cluster_BGR):  # the real one reads the largest cluster's size
        return ints(2, 2, 12, dtype=torch.int64)

    monkeypatch.setattr("retrobench_kernels.wave_attention.naive.cluster_tokens", tokens)
    with OneDeviceAnOperation():
        device = torch.randn(2, 2, 16, 8, device=DEVICE)
        host = torch.randn(2, 2, 40, 8)
        pool = Pool(host, host, ints(2, 2, 5), ints(2, 2, 5))
        steady = Steady(device, device, ints(2))
        cache = PageCache(ints(2, 2, 10), device, device, 4) if cached else None
        logit = torch.randn(2, 4, 5, device=DEVICE)
        value_sum = torch.randn(2, 2, 5, 8, device=DEVICE)
        estimation = Estimation(ints(2, 2, 3), logit, value_sum)
        q = torch.randn(2, 4, 8, device=DEVICE)
        out, lse = wave_attention.reference(
            q, steady, pool, ints(2, 2, 3), 0.3, estimation=estimation, cache=cache
        )
    assert out.shape == (2, 4, 8) and lse.shape == (2, 4)
    assert out.device.type == lse.device.type == DEVICE


def test_tokens_move_to_a_pool_in_host_memory():
    with OneDeviceAnOperation():
        kv = torch.randn(2, 6, 8, device=DEVICE)
        target = ints(2, 6, dtype=torch.int64)
        layout = Layout(target, *(ints(2, 3) for _ in "fsp"), ints(2))
        pool = torch.zeros(2, 9, 8)
        place_tokens.reference(kv, layout, pool)
        assert pool.device.type == "cpu"
