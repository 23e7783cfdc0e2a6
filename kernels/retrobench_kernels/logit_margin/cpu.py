"""Speculated importance of tokens in C++, in one pass over the keys.

Keys are read channel by channel (``key_BGSC`` is best a view of ``BGCS``), so that any number of
channels runs at full width.
"""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import DTYPES, addresses, float32
from retrobench_kernels.logit_margin.naive import MarginArgs

unsupported = native.unsupported_keys


def logit_margin(args: MarginArgs) -> Tensor:
    """As the reference."""
    q_BGNC, key, exists, scale, per_head = args
    batch, groups, group, channels = q_BGNC.shape
    tokens = key.shape[2]
    key = key if key.stride(2) == 1 else key.mT.contiguous().mT
    exists = exists if exists.stride(2) == 1 else exists.contiguous()
    q = float32(q_BGNC.to(key.dtype).float() * scale)
    score = torch.empty(batch, groups * group if per_head else groups, tokens)
    stride = (ctypes.c_int64 * 5)(key.stride(0), key.stride(1), key.stride(3), *exists.stride()[:2])
    native.function("logit_margin")(
        *addresses(q, key, exists, score), batch, groups, group, tokens, channels,
        stride, per_head, DTYPES[key.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return score
