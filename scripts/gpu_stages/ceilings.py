"""Stage 1: what the machine can do at most. Everything else is shown against these numbers."""

from __future__ import annotations

import torch
from retrobench_kernels.page_lru import copy_pages

from gpu_stages.common import Bench, with_rate
from retrobench.measure.machine import available_bytes

GIB = 2**30


def run(bench: Bench) -> None:
    """Device copy and read, copy engine, reads of pinned memory by kernels, launches."""
    size = GIB // 1024 if bench.smoke else 4 * GIB

    @bench.case("device_copy")
    def _(row: dict) -> None:
        source = torch.ones(size // 4, dtype=torch.int32, device=bench.device)
        target = torch.empty_like(source)
        row.update(with_rate(bench.time(lambda: target.copy_(source)), 2 * size))

    @bench.case("device_read")
    def _(row: dict) -> None:
        source = torch.ones(size // 4, dtype=torch.int32, device=bench.device)
        row.update(with_rate(bench.time(lambda: source.amax()), size))

    _launches(bench)
    _pinned(bench)


def _launches(bench: Bench) -> None:
    nodes = 10 if bench.smoke else 400
    value = torch.zeros(1, device=bench.device)

    def chain() -> None:
        for _ in range(nodes):
            value.add_(1)

    @bench.case("dependent_launch", nodes=nodes)
    def _(row: dict) -> None:
        row.update(bench.time(chain, calls=nodes))


def _pinned(bench: Bench) -> None:
    """Host to device: by the copy engine, and page by page by a kernel from growing pools."""
    pools = [GIB // 256] if bench.smoke else [GIB, 8 * GIB, 32 * GIB, 64 * GIB]
    for pool_bytes in pools:

        @bench.case("pinned", pool_bytes=pool_bytes)
        def _(row: dict, pool_bytes: int = pool_bytes) -> None:
            if pool_bytes > available_bytes() // 2:
                raise MemoryError("the host has less than twice this memory available")
            _pinned_case(bench, row, pool_bytes)


def _pinned_case(bench: Bench, row: dict, pool_bytes: int) -> None:
    page_tokens, dim = 8, 128
    page_bytes = page_tokens * dim * 2
    pool = torch.empty(1, 1, pool_bytes // (2 * dim), dim, dtype=torch.bfloat16)
    pool.fill_(0.5)  # touches every page
    if bench.device == "cuda":
        code = int(torch.cuda.cudart().cudaHostRegister(pool.data_ptr(), pool.nbytes, 0))
        if code:
            raise MemoryError(f"cudaHostRegister: error {code}")
    try:
        pages = min(pool_bytes // page_bytes, 64 if bench.smoke else 65536)
        cache = torch.zeros(1, 1, pages * page_tokens, dim, dtype=pool.dtype, device=bench.device)
        drawn = torch.randint(pool_bytes // page_bytes, (pages,)).int()
        page = drawn.to(bench.device)[None, None]
        slot = torch.arange(pages, dtype=torch.int32, device=bench.device)[None, None]
        moved = pages * page_bytes
        chunk = pool[0, 0, : moved // (2 * dim)]
        flat = cache[0, 0]
        engine = bench.time(lambda: flat.copy_(chunk, non_blocking=True))
        row["copy_engine"] = with_rate(engine, moved)
        pool[0, 0].view(-1)[: 4 * dim] = 0.25  # the kernel must see what the host wrote just now
        kernel = bench.time(lambda: copy_pages(pool, cache, page, slot, page_tokens))
        row["kernel"] = with_rate(kernel, moved)
        expected = pool[0, 0].view(-1, page_tokens * dim)[drawn.long()]
        if not torch.equal(cache.view(-1, page_tokens * dim).cpu(), expected):
            row.update(status="parity", error="a kernel read wrong values from pinned memory")
    finally:
        if bench.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(pool.data_ptr())
