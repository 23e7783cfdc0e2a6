"""Compare attention of a chunked prompt with one call of SDPA: ``python scripts/prefill_speed.py``.

Attention of one layer, 8K tokens, in chunks of 2,048 as a prefill computes it, and in one causal
call on repeated KV heads, in turn. Prints processor seconds of one thread (the fastest of some
runs), their ratio, and the largest difference of the outputs.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.causal import causal

TOKENS, CHUNK = 8192, 2048
SHAPES = {"Llama-3.1-8B": (32, 8, 128), "SmolLM2-135M": (9, 3, 64)}  # query heads, KV heads, width


def seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor time of a call, and its output."""
    begin = time.process_time()
    out = call()
    return time.process_time() - begin, out


def compare(name: str, dtype: torch.dtype, runs: int) -> None:
    """Print a line for one shape and type."""
    heads, groups, dim = SHAPES[name]
    q = torch.randn(1, heads, TOKENS, dim).to(dtype)
    k, v = (torch.randn(1, groups, TOKENS, dim).to(dtype) for _ in range(2))
    args = AttentionArgs(scale=dim**-0.5)
    whole_k, whole_v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))

    def one() -> Tensor:
        return F.scaled_dot_product_attention(q, whole_k, whole_v, is_causal=True)

    def chunked() -> Tensor:
        ends = range(CHUNK, TOKENS + 1, CHUNK)
        parts = (causal(q[:, :, e - CHUNK : e], k[:, :, :e], v[:, :, :e], args) for e in ends)
        return torch.cat(list(parts), 2)

    pairs = [(seconds(one), seconds(chunked)) for _ in range(runs)]
    fastest = [min(pair[i][0] for pair in pairs) for i in (0, 1)]
    difference = (pairs[0][0][1] - pairs[0][1][1]).abs().max()
    print(
        f"{name} {str(dtype).removeprefix('torch.')}: one call {fastest[0]:.2f} s, chunks "
        f"{fastest[1]:.2f} s, ratio {fastest[1] / fastest[0]:.2f}, difference {difference:.1e}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in SHAPES:
        for kind in (torch.float32, torch.bfloat16):
            compare(shape, kind, max(1, options.runs))
