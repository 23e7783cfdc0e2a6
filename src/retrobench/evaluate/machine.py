"""Measures one case of ``task=machine``: a bandwidth ceiling, or a kernel.

A kernel is compared with its naive form first; one that differs has no time. On a GPU a call is
replayed as a CUDA graph between device events, where it can be captured. The processor's caches
are emptied before every timed call.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from retrobench_kernels.page_lru import copy_pages

from retrobench.core.shapes import KVShape
from retrobench.core.task import Sample
from retrobench.evaluate.kernels import KERNELS, Case, KernelInputs
from retrobench.measure.ceilings import flush_data, read
from retrobench.measure.clock import make_clock
from retrobench.measure.graph import CapturedCall
from retrobench.measure.machine import Absent, NotEnoughMemory, available_bytes, require_free
from retrobench.memory.placement import allocate
from retrobench.tasks.machine import MachineConfig

LAUNCHES = 400  # operations of the graph that tells the time of one
PAGE_TOKENS, PAGE_DIM, MAX_PAGES = 8, 128, 65536  # pages of 2 KiB; 128 MiB are read at most


def measure(config: MachineConfig, sample: Sample, device: str) -> dict[str, Any]:
    """Fields of one sample for its row.

    ValueError for what needs a GPU, ``Absent`` for a case that is larger than this machine,
    RuntimeError for a kernel that disagrees with its naive form.
    """
    torch.manual_seed(config.seed)
    name = sample.meta["case"]
    if name in KERNELS:
        batch = int(sample.meta["batch"])
        case = KERNELS[name](KernelInputs(config.shape, sample.length, batch, config.dtype, device))
    elif name in ("pinned_engine", "pinned_kernel"):
        case = _pinned(name, round(sample.meta["pool_gib"] * 2**30), device)
    else:
        case = _ceiling(name, round(config.size_gib * 2**30), device)
    seconds, mode = _times(case.run, device, config.repeats)
    if case.check is not None:
        case.check()
    seconds = sorted(second / case.calls for second in seconds)
    tenth, middle = len(seconds) // 10, statistics.median(seconds)
    found = {
        "time_s": middle,
        "p10_s": seconds[tenth],
        "p90_s": seconds[-1 - tenth],
        "bytes": case.num_bytes,
        "gb_s": case.num_bytes / middle / 1e9,
        "mode": mode,
        "parity_error": case.parity_error,
        "threads": torch.get_num_threads(),
    }
    if case.flops:
        found["tflop_s"] = case.flops / middle / 1e12
    return {"machine": found}


def _times(run: Callable[[], Any], device: str, repeats: int) -> tuple[list[float], str]:
    """Seconds of each call with cold caches, and whether a graph or the function itself ran."""
    call, mode = CapturedCall(run, device), "graph" if device.startswith("cuda") else "eager"
    call()
    try:
        call()
    except RuntimeError:  # asks the host for something
        call, mode = run, "eager"
    return [_one(call, device) for _ in range(repeats)], mode


def _one(call: Callable[[], Any], device: str) -> float:
    read(flush_data(device))
    if not device.startswith("cuda"):
        clock = make_clock(device)
        start = clock()
        call()
        return clock() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _ceiling(name: str, size: int, device: str) -> Case:
    """Copy and read of the device's memory, and one dependent operation of a graph."""
    if name == "launch":
        value = torch.zeros(1, device=device)
        return Case(lambda: [value.add_(1) for _ in range(LAUNCHES)], 8, calls=LAUNCHES)
    source = torch.ones(size // 4, dtype=torch.int32, device=device)
    if name == "read":
        on_gpu = source.is_cuda
        return Case(lambda: source.amax() if on_gpu else read(source), source.nbytes)
    target = torch.empty_like(source)
    return Case(lambda: target.copy_(source), 2 * source.nbytes)


def _pinned(name: str, pool_bytes: int, device: str) -> Case:
    """Page-locked host memory to the device: in one piece, or random pages by a kernel."""
    if not device.startswith("cuda"):
        raise ValueError(f"task.cases={name} reads page-locked memory from a GPU: none is in use")
    what, fix = f"task.pool_gib={pool_bytes / 2**30:g}, with as much to spare,", "a smaller one"
    try:
        require_free(2 * pool_bytes, available_bytes(), what, "memory", fix)
    except NotEnoughMemory as error:
        raise Absent(str(error)) from error
    shape = KVShape(
        pad_tokens=(0,), layers=(0,), num_heads=1, num_kv_heads=1, head_dim=PAGE_DIM,
        prompt_tokens=1, max_tokens=1, dtype="bfloat16", device=device,
    )  # fmt: skip
    tokens = pool_bytes // (2 * PAGE_DIM) // PAGE_TOKENS * PAGE_TOKENS
    pool = allocate((1, 1, tokens, PAGE_DIM), shape, "pinned").fill_(0.5)  # touches every page
    count = min(tokens // PAGE_TOKENS, MAX_PAGES)
    page = torch.randint(tokens // PAGE_TOKENS, (1, 1, count), dtype=torch.int32)
    pool[0, 0, page[0, 0].long() * PAGE_TOKENS, 0] = 0.25  # what the host wrote just now counts
    slot = torch.arange(count, dtype=torch.int32, device=device)[None, None]
    cache = torch.zeros(1, 1, count * PAGE_TOKENS, PAGE_DIM, dtype=pool.dtype, device=device)
    if name == "pinned_engine":
        piece = pool[:, :, : count * PAGE_TOKENS]
        return Case(lambda: cache.copy_(piece, non_blocking=True), cache.nbytes)
    asked = page.to(device) * PAGE_TOKENS  # where each page begins

    def check() -> None:
        expected = pool.unflatten(2, (-1, PAGE_TOKENS))[:, :, page[0, 0].long()].flatten(2, 3)
        if not torch.equal(cache.cpu(), expected):
            raise RuntimeError("a kernel read wrong values from page-locked memory")

    return Case(
        lambda: copy_pages(pool, cache, asked, slot, PAGE_TOKENS), cache.nbytes, check=check
    )
