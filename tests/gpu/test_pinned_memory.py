"""Page-locked memory on a real driver: kernels read and write it, also inside a graph."""

from __future__ import annotations

import gc

import pytest
import torch
from retrobench_kernels.cluster_layout import cluster_layout, place_tokens
from retrobench_kernels.page_lru import copy_pages

from retrobench.memory.placement import page_locked

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS, DIM, PAGE = 4096, 128, 8


def pool(num_bytes):
    """The first tokens of memory that was just registered."""
    memory = page_locked(num_bytes)
    assert memory.is_pinned()
    return memory[: TOKENS * DIM * 2].view(torch.bfloat16).view(1, 1, TOKENS, DIM)


@pytest.mark.parametrize("gib", [1 / 64, 1])
def test_registered_read_written_released_and_again(gib):
    for _ in range(2):
        host = pool(round(gib * 2**30))
        kv = torch.randn(1, TOKENS, DIM, device="cuda").bfloat16()
        label = torch.randint(0, 40, (1, TOKENS), device="cuda")
        layout = cluster_layout(label, 40)
        place_tokens(kv, layout, host[0])  # the GPU writes
        torch.cuda.synchronize()
        expected = torch.empty_like(kv).scatter_(1, layout.target_GS[..., None].expand_as(kv), kv)
        assert torch.equal(host[0], expected.cpu())
        cache = torch.zeros(1, 1, 16 * PAGE, DIM, dtype=torch.bfloat16, device="cuda")
        start = torch.randint(0, TOKENS - PAGE, (1, 1, 16), device="cuda").int()
        slot = torch.arange(16, device="cuda").int()[None, None]
        copy_pages(host, cache, start, slot, PAGE)  # the GPU reads
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            copy_pages(host, cache, start, slot, PAGE)
        host.fill_(0.5)  # what the host writes now, the next replay sees
        graph.replay()
        assert (cache == 0.5).all()
        del host, graph
        gc.collect()
