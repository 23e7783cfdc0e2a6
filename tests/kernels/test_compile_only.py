"""Kernels compile for sm_80 and sm_90 without a GPU: no spills, wide loads (PTX lint)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs triton as a compiler",
)
LLAMA = {"HEADS": 8, "GROUP": 4, "ROWS": 16, "DIM": 128, "DIM_PAD": 128, "TILE": 64}
WIDE = {**LLAMA, "DIM": 256, "DIM_PAD": 256, "TILE": 32}
ODD = {**LLAMA, "DIM": 96}
PLAIN = {"CAPPED": False}
SCORE = {**PLAIN, "TILE": 128, "BIASED": False, "BITS": 0}
WAVE = {**PLAIN, "PAGE": 8, "CACHED": True, "ESTIMATE": True, "BITS": 0}

ROW = {"DIM": 128, "DIM_PAD": 128}


class Case(NamedTuple):
    """A kernel with the constants, warps and stages that its wrapper gives it."""

    op: str
    kernel: str
    constants: dict
    dtype: str = "bf16"
    warps: int = 4
    stages: int = 3


CASES = {
    "score": Case("cluster_select", "score_kernel", {**LLAMA, **SCORE}),
    "score-256-int4": Case(
        "cluster_select", "score_kernel", {**WIDE, **SCORE, "TILE": 64, "BITS": 4}
    ),
    "score-fp32-int4": Case(
        "cluster_select", "score_kernel", {**LLAMA, **SCORE, "TILE": 32, "BITS": 4}, "fp32"
    ),
    "score-int8": Case("cluster_select", "score_kernel", {**LLAMA, **SCORE, "BITS": 8}),
    "wave-256-int4": Case("wave_attention", "attend_kernel", {**WIDE, **WAVE, "BITS": 4}, stages=2),
    "score-int4": Case("cluster_select", "score_kernel", {**LLAMA, **SCORE, "BITS": 4}),
    "page-bounds": Case("page_select", "group_bound_kernel", {**LLAMA, "ROWS": 4}),
    "pages": Case(
        "wave_attention",
        "page_list_kernel",
        {"PAGE": 8, "CACHED": True, "CHUNK": 256, "RUN": 4},
    ),
    "wave": Case("wave_attention", "attend_kernel", {**LLAMA, **WAVE}),
    "wave-uncached": Case(
        "wave_attention", "attend_kernel", {**LLAMA, **WAVE, "PAGE": 1, "CACHED": False}
    ),
    "wave-96": Case("wave_attention", "attend_kernel", {**ODD, **WAVE}, "fp16"),
    "wave-256": Case("wave_attention", "attend_kernel", {**WIDE, **WAVE}, stages=2),
    "wave-fp32": Case(
        "wave_attention", "attend_kernel", {**LLAMA, **WAVE, "TILE": 16}, "fp32", stages=2
    ),
    "wave-int4": Case("wave_attention", "attend_kernel", {**LLAMA, **WAVE, "BITS": 4}),
    "wave-int8": Case("wave_attention", "attend_kernel", {**LLAMA, **WAVE, "BITS": 8}),
    "named": Case("wave_attention.triton_rest", "named_sum_kernel", {**ROW, "TILE": 32, "BITS": 4}),
    "dense": Case("dense_decode", "dense_kernel", {**LLAMA, **PLAIN}),
    "lookup": Case(
        "page_lru", "lookup_kernel", {"SLOTS_PAD": 1024, "CHUNK": 256, "PAGE": 8, "ADMIT": True}
    ),
    "lookup-1M": Case(
        "page_lru",
        "lookup_kernel",
        {"SLOTS_PAD": 8192, "CHUNK": 256, "PAGE": 8, "ADMIT": True},
        warps=16,
    ),
    "admit": Case("page_lru", "admit_kernel", {"CHUNK": 256}),
    "copy": Case("page_lru", "copy_kernel", {"DIM": 128, "PAGE_VALUES": 1024, "PAGE_PAD": 1024}),
    "assign": Case("segmented_kmeans", "assign_kernel", {**ROW, "KEYS": 128, "TILE": 64}, warps=8),
    "sums": Case("segmented_kmeans", "sum_kernel", {**ROW, "TILE": 16}, warps=2),
    "place": Case("cluster_layout", "place_kernel", {**ROW, "TILE": 32}),
    "extrema": Case("page_bounds", "extrema_kernel", {**ROW, "HEADS": 8, "TILE": 16}),
    "bound": Case("page_bounds", "bound_kernel", {**ROW, "GROUP": 4, "ROWS": 16, "TILE": 64}),
}
# clusters: of the prompt and of updates to come, at 128K, 256K and 1M tokens
SELECTIONS = {"select": 8192, "select-128K": 8256, "select-256K": 16448, "select-1M": 65600}
BOTH = ("score", "wave", "wave-256", "dense", "assign")  # the rest is compiled for sm_90 only
TARGETS = [(case, 90) for case in (*CASES, *SELECTIONS)] + [(case, 80) for case in BOTH]
INT32 = ("used", "size", "slot", "page", "tokens", "source", "count", "steady", "estimated")
INT32 += ("retrieved", "first", "want_r", "want_e", "start", "end", "victim", "stamp", "owner")
INT32 += ("now", "table", "order", "number", "cluster", "key", "range", "label")
INT64 = {
    "lookup": ("tally",),
    "lookup-1M": ("tally",),
    "sums": ("order", "first", "size"),
    "place": ("target",),
}
FLOAT32 = ("sum", "out", "o", "top", "total", "logit", "lse", "mean", "bias")
FLOAT32 += ("value_mean",)


def made(case: str) -> Case:
    """A case; selections are what their wrapper makes of the number of clusters."""
    if case not in SELECTIONS:
        return CASES[case]
    from retrobench_kernels.cluster_select.triton import select_launch

    clusters = SELECTIONS[case]
    widths = round(0.018 * clusters), round(0.232 * clusters)
    kernel, constants, warps = select_launch(clusters, widths, 4, sized=True)
    return Case("cluster_select", kernel.__name__, constants, warps=warps)


def compiled(case: str, capability: int):
    """The PTX and the resources that ptxas reports."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    op, name, constants, dtype, warps, stages = made(case)
    place = op if "." in op else f"{op}.triton"
    module = importlib.import_module(f"retrobench_kernels.{place}")
    kernel = getattr(module, name)
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        stem = argument.removesuffix("_ptr")
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            pointee = "i32" if stem in INT32 else "fp32" if stem in FLOAT32 else dtype
            pointee = "i64" if stem in INT64.get(case, ()) else pointee
            pointee = "i8" if stem in ("valid", "named") else pointee
            if constants.get("BITS"):  # vectors in codes
                pointee = "i8" if stem in ("centroid", "value_sum", "vector") else pointee
                pointee = "fp16" if stem in ("code_scale", "value_scale") else pointee
            signature[argument] = f"*{pointee}"
        else:
            signature[argument] = "fp32" if argument in ("scale", "cap") else "i32"
        # what a launch specialises: aligned pointers, strides that are multiples of 16
        if argument.endswith(("_ptr", "_stride")):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()},
        attrs=attributes,
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def resources(cubin: bytes, tmp_path: Path) -> tuple[int, int]:
    """(registers, bytes of local memory) of one thread; local memory is where spills go."""
    import triton

    (tool,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump")
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(cubin)
    command = [tool, "--dump-resource-usage", binary]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    assert found, report
    return int(found[1]), int(found[2]) + int(found[3])


@pytest.mark.parametrize(("case", "capability"), TARGETS)
def test_compiles_without_spills_and_with_wide_loads(case, capability, tmp_path):
    kernel = compiled(case, capability)
    ptx = kernel.asm["ptx"]
    registers, spilled = resources(kernel.asm["cubin"], tmp_path)
    copies = Counter(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x[0-9a-f]+|\d+),", ptx))
    loads = Counter(re.findall(r"ld\.global[\w.:]*", ptx))
    print(case, capability, registers, spilled, kernel.metadata.shared, dict(copies), dict(loads))
    assert spilled == 0, f"{registers} registers, {spilled} bytes spilled"
    assert kernel.metadata.shared <= 100 * 1024, "two programs must fit on a multiprocessor"
    narrow = sum(n for load, n in loads.items() if re.search(r"global\.[bu]16$", load))
    allowed = 16 if made(case).constants.get("BITS") else 0  # scales of codes
    assert narrow <= allowed, f"two-byte loads: {loads}"
    stores = Counter(re.findall(r"st\.global[\w.:]*", ptx))
    assert not any(re.search(r"global\.[bu]16$", store) for store in stores), f"stores: {stores}"
    if case.startswith(("wave", "dense", "score", "assign")):
        wide = {n: c for n, c in copies.items() if int(n, 0) == 16}
        least = "v2" if made(case).constants.get("BITS") else "v4"  # codes are small
        assert sum(wide.values()) > 0 or any(least in load or "v4" in load for load in loads)


def launched_kernels():
    """Every kernel that a wrapper launches."""
    import triton

    root = Path(importlib.import_module("retrobench_kernels").__path__[0])
    for path in sorted(root.rglob("triton*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        for value in vars(importlib.import_module(f"retrobench_kernels.{name}")).values():
            if isinstance(value, triton.JITFunction) and value.__name__.endswith("_kernel"):
                yield value


def test_counts_compile_nothing_anew():
    """A count that is 1 or a multiple of 16 in some step must not give another program."""
    kernels = {kernel.__name__: kernel for kernel in launched_kernels()}
    assert {case.kernel for case in CASES.values()} <= kernels.keys()
    for name, kernel in kernels.items():
        for parameter in kernel.params:
            pointer = parameter.name.endswith("_ptr")
            if parameter.is_constexpr or pointer or parameter.name.endswith("_stride"):
                continue
            assert parameter.do_not_specialize, f"{name}: {parameter.name} is specialised"


def test_what_kernels_cannot_take_is_left_to_the_naive_form():
    import torch
    from retrobench_kernels.triton_common import unsupported

    assert unsupported(torch.zeros(2, 96, dtype=torch.bfloat16)) is None
    for tensor, said in (
        (torch.zeros(2, 20, dtype=torch.bfloat16), "16 bytes"),
        (torch.zeros(2, 512), "head dim 512"),
        (torch.zeros(2, 64, dtype=torch.float64), "float64"),
    ):
        reason = unsupported(tensor)
        assert reason is not None and said in reason
