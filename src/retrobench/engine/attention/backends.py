"""Implementations of full attention for one decode token, and the choice of the fastest.

All compute the same; the name of the one that ran goes into the row. Torch's ``sdpa`` and the
kernels of this project are always candidates of ``auto``, the others where they are installed
(``flex`` compiles for minutes and is used only when asked for by name).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from retrobench_kernels.dense_decode import dense_decode as own_decode
from retrobench_kernels.native import unsupported as unsupported_by_cpu
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.exact import dense_decode
from retrobench.measure.clock import make_clock

# arguments of every form: q_BHTD, k_BGSD, v_BGSD, scalars, and the left padding of each row
Call = tuple[Tensor, Tensor, Tensor, AttentionArgs, tuple[int, ...]]
SHORT_TOKENS = 2048  # below this ``auto`` takes sdpa unmeasured
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Backend:
    """How to run one implementation, where, and how to get it."""

    run: Callable[..., Tensor]  # of a ``Call``
    devices: tuple[str, ...]
    package: str | None = None
    install: str = ""
    measured: bool = True  # a candidate of auto


def kernels(q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]) -> Tensor:
    """One token by this project's kernels; ``pads``: left padding of each row."""
    start = torch.tensor(pads, dtype=torch.int32, device=q.device) if any(pads) else None
    cap = args.softcap or 0.0
    return own_decode(q[:, :, 0], k, v, args.scale, start_B=start, softcap=cap)[0][:, :, None]


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]
) -> Tensor:
    from flash_attn import flash_attn_with_kvcache

    length = torch.full((len(pads),), k.shape[2], dtype=torch.int32, device=q.device)
    left = torch.tensor(pads, dtype=torch.int32, device=q.device) if any(pads) else None
    out = flash_attn_with_kvcache(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        cache_seqlens=length,
        cache_leftpad=left,
        softmax_scale=args.scale,
        softcap=args.softcap or 0.0,
    )
    return out.transpose(1, 2)


def _flashinfer(
    q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]
) -> Tensor:
    from flashinfer import single_decode_with_kv_cache

    rows = [
        single_decode_with_kv_cache(
            q[row, :, 0],
            k[row, :, pad:],
            v[row, :, pad:],
            kv_layout="HND",
            sm_scale=args.scale,
            logits_soft_cap=args.softcap,
        )
        for row, pad in enumerate(pads)
    ]
    return torch.stack(rows)[:, :, None]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return dense_decode(q, k, v, args, pads)


def _flex(q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]) -> Tensor:
    pad_B = torch.tensor(pads, device=q.device)

    def score(logit: Tensor, row: Tensor, head: Tensor, query: Tensor, token: Tensor) -> Tensor:
        if args.softcap is not None:
            logit = args.softcap * torch.tanh(logit / args.softcap)
        return torch.where(token >= pad_B[row], logit, -torch.inf)

    mod = score if any(pads) or args.softcap is not None else None
    return _compiled_flex()(q, k, v, score_mod=mod, scale=args.scale, enable_gqa=True)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


BACKENDS = {
    "sdpa": Backend(dense_decode, ("cpu", "cuda")),
    "cpu": Backend(kernels, ("cpu",)),
    "triton": Backend(kernels, ("cuda",), "triton", "pip install 'retrobench[gpu]'"),
    "flash_attn": Backend(
        _flash_attn, ("cuda",), "flash_attn", "pip install flash-attn --no-build-isolation"
    ),
    "flashinfer": Backend(_flashinfer, ("cuda",), "flashinfer", "pip install flashinfer-python"),
    "cudnn": Backend(_cudnn, ("cuda",)),
    "flex": Backend(_flex, ("cpu", "cuda"), measured=False),
}


def check(name: str, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a backend cannot run here, with what to do about it; None if it can."""
    backend, kind = BACKENDS[name], torch.device(device).type
    if kind not in backend.devices:
        return (
            f"method.backend={name} runs on {' or '.join(backend.devices)}, the model is on {kind}"
        )
    if backend.package and importlib.util.find_spec(backend.package) is None:
        return f"method.backend={name}: {backend.package} is not installed: {backend.install}"
    if name == "cpu":
        reason = unsupported_by_cpu(torch.empty(0, head_dim, dtype=dtype))
        if reason is not None:
            return f"method.backend=cpu cannot run here: {reason}; use method.backend=sdpa"
    return None


class BackendChooser:
    """Picks a backend per shape: the one asked for, or the fastest of three timed calls."""

    _chosen: dict[tuple[object, ...], tuple[str, dict[str, float]]] = {}  # of this process

    def __init__(self, name: str) -> None:
        self.name = name
        self.used: dict[str, dict[str, float]] = {}  # backend -> ms of each candidate

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, pads: tuple[int, ...]
    ) -> Tensor:
        """Attention of one token, ``o_BHTD``."""
        call = (q, k, v, args, pads)
        name, timed = self._pick(call)
        self.used[name] = timed
        return BACKENDS[name].run(*call)

    def _pick(self, call: Call) -> tuple[str, dict[str, float]]:
        if self.name != "auto":
            return self.name, {}
        q, k, _, args, pads = call
        if k.shape[2] < SHORT_TOKENS:
            return "sdpa", {}
        shape = (*q.shape, k.shape[1], k.shape[2].bit_length(), any(pads), args.softcap is None)
        key = (q.device, q.dtype, torch.get_num_threads(), *shape)
        if key not in self._chosen:
            timed = {
                name: _time_ms(backend, call)
                for name, backend in BACKENDS.items()
                if backend.measured and check(name, str(q.device), q.dtype, q.shape[-1]) is None
            }
            works = {name: ms for name, ms in timed.items() if ms is not None}
            fastest = min(works, key=lambda name: works[name], default="sdpa")
            self._chosen[key] = fastest, works
        return self._chosen[key]


fastest = BackendChooser("auto")


def _time_ms(backend: Backend, call: Call) -> float | None:
    """Fastest of a few calls after a warm-up; None where the backend refuses this shape."""
    clock, times = make_clock(str(call[0].device)), []
    try:
        for _ in range(REPEATS + 1):
            start = clock()
            backend.run(*call)
            times.append(1000 * (clock() - start))
    except (RuntimeError, ValueError, TypeError, ImportError):
        return None
    return round(min(times[1:]), 4)
