"""Stage 3: the best full attention per shape among everything installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from retrobench_kernels.dense_decode import dense_decode
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_stages.common import Bench, Inputs, Shape, error_of, with_rate

SHAPES = [
    Shape(batch=1, context=30_000),
    Shape(batch=28, context=30_000),
    Shape(batch=1, context=60_000),
    Shape(batch=14, context=60_000),
    Shape(batch=1, context=120_000),
    Shape(batch=7, context=120_000),
]
Attend = Callable[[Tensor], Tensor]  # q_BHD -> o_BHD, over keys and values it was made with


def run(bench: Bench) -> None:
    """Time every backend; the fastest correct one of a shape is marked ``best``."""
    for shape in bench.shapes(*SHAPES):
        rows = [_backend(bench, shape, name) for name in BACKENDS]
        timed = [row for row in rows if row.get("status") == "ok"]
        if timed:
            min(timed, key=lambda row: row["median_s"])["best"] = True


def _backend(bench: Bench, shape: Shape, name: str) -> dict[str, Any]:
    @bench.case("full_attention", shape=shape, backend=name)
    def _(row: dict) -> None:
        inputs = Inputs(shape, bench.device)
        turns = 2 if bench.smoke else max(2, min(8, int(40e9 // shape.layer_bytes)))
        q_BHD = inputs.query()
        layers = [inputs.dense() for _ in range(turns)]
        attends = [BACKENDS[name](k, v, shape) for k, v in layers]
        expected = _float32(q_BHD[:1], layers[0][0][:1], layers[0][1][:1], shape.scale)
        row["relative_error"] = error_of(attends[0](q_BHD)[:1], expected)
        if not row["relative_error"] < 2e-2:
            row.update(status="parity", error="output differs from float32 attention")
            return
        timing = bench.time(lambda: [attend(q_BHD) for attend in attends], turns)
        row.update(with_rate(timing, shape.layer_bytes))

    return bench.rows[-1]


def _float32(q_BHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float) -> Tensor:
    """Exact attention head by head, so that no float32 copy of the cache is needed."""
    heads = []
    for h in range(q_BHD.shape[1]):
        g = h // (q_BHD.shape[1] // k_BGSD.shape[1])
        logit = k_BGSD[0, g].float() @ q_BHD[0, h].float() * scale
        heads.append(logit.softmax(-1) @ v_BGSD[0, g].float())
    return torch.stack(heads)[None]


def _sdpa(backend: SDPBackend) -> Callable[[Tensor, Tensor, Shape], Attend]:
    def make(k: Tensor, v: Tensor, shape: Shape) -> Attend:
        if backend == SDPBackend.CUDNN_ATTENTION and not k.is_cuda:
            raise ImportError("cuDNN attention is for a GPU")

        def attend(q_BHD: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(
                    q_BHD[:, :, None], k, v, scale=shape.scale, enable_gqa=True
                )
            return out[:, :, 0]

        return attend

    return make


def _folded(k: Tensor, v: Tensor, shape: Shape) -> Attend:
    """The GQA group as query tokens: whatever backend torch picks."""

    def attend(q_BHD: Tensor) -> Tensor:
        q = q_BHD.unflatten(1, (shape.kv_heads, -1))
        return F.scaled_dot_product_attention(q, k, v, scale=shape.scale).flatten(1, 2)

    return attend


def _flex(k: Tensor, v: Tensor, shape: Shape) -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    if not k.is_cuda:
        raise ImportError("flex attention is compiled for a GPU here")
    compiled = torch.compile(flex_attention)

    def attend(q_BHD: Tensor) -> Tensor:
        out: Any = compiled(q_BHD[:, :, None], k, v, scale=shape.scale, enable_gqa=True)
        return out[:, :, 0]

    return attend


def _flashinfer(k: Tensor, v: Tensor, shape: Shape) -> Attend:
    import flashinfer

    page = 16
    whole = shape.context // page * page
    if whole != shape.context:
        raise ValueError(f"context {shape.context} is not a multiple of {page}")

    def paged(kv: Tensor) -> Tensor:
        pages = kv.unflatten(2, (-1, page)).transpose(1, 2)
        return pages.reshape(-1, shape.kv_heads, page, shape.dim).contiguous()

    per_row, like = whole // page, {"dtype": torch.int32, "device": k.device}
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=k.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    wrapper.plan(
        torch.arange(shape.batch + 1, **like) * per_row,
        torch.arange(shape.batch * per_row, **like),
        torch.full((shape.batch,), page, **like),
        shape.heads, shape.kv_heads, shape.dim, page,
        q_data_type=k.dtype, kv_data_type=k.dtype, sm_scale=shape.scale,
    )  # fmt: skip
    cache = paged(k), paged(v)
    return lambda q_BHD: wrapper.run(q_BHD, cache)


def _own(k: Tensor, v: Tensor, shape: Shape) -> Attend:
    return lambda q_BHD: dense_decode(q_BHD, k, v, shape.scale)[0]


BACKENDS: dict[str, Callable[[Tensor, Tensor, Shape], Attend]] = {
    "sdpa_flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa_cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa_folded": _folded,
    "flex": _flex,
    "flashinfer": _flashinfer,
    "own": _own,
}
