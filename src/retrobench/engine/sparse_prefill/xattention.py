"""XAttention's choice of blocks (arXiv 2503.16428; mit-han-lab/x-attention e379887, ``xattn``).

Queries and keys are taken ``stride`` at a time, the queries of a group in reverse: the product of
two groups is the sum of an antidiagonal of their attention logits. A softmax over these sums,
added up by blocks, estimates the blocks' mass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from retrobench.engine.sparse_prefill.config import PrefillConfig


def chosen_keys(q_TD: Tensor, k_SD: Tensor, scale: float, config: PrefillConfig) -> Tensor:
    """Keys that each block of queries attends to, boolean ``IS``, of one head.

    The queries are the last T of S tokens, and begin with a block.
    """
    block = config.block_tokens
    chosen_IJ = chosen_blocks(block_mass(q_TD, k_SD, scale, config), config.threshold)
    return chosen_IJ.repeat_interleave(block, 1)[:, : k_SD.shape[0]]


def block_mass(q_TD: Tensor, k_SD: Tensor, scale: float, config: PrefillConfig) -> Tensor:
    """Estimated attention mass of every block of keys, for each block of queries: ``IJ``."""
    block, stride, tokens = config.block_tokens, config.stride, k_SD.shape[0]
    q_UW = _groups(q_TD, block, stride).flip(1).flatten(1)  # reversed within a group
    k_VW = _groups(k_SD, block, stride).flatten(1)
    first = len(k_VW) - len(q_UW)
    logit_UV = (q_UW @ k_VW.T).float() * (scale / stride)
    key = torch.arange(len(k_VW), device=k_SD.device)
    query = first + torch.arange(len(q_UW), device=k_SD.device)
    real = -(-tokens // stride)  # groups that are not padding alone
    seen_UV = (key <= query[:, None]) & (key < real)
    mass_UV = logit_UV.masked_fill(~seen_UV, -torch.inf).softmax(-1)
    mass_UV = mass_UV * (query < real)[:, None]
    size = block // stride
    return mass_UV.unflatten(0, (-1, size)).unflatten(2, (-1, size)).sum((1, 3))


def chosen_blocks(mass_IJ: Tensor, threshold: float) -> Tensor:
    """The fewest blocks that hold ``threshold`` of the mass; the first and the own one always."""
    rows, columns = mass_IJ.shape
    own = torch.arange(columns - rows, columns, device=mass_IJ.device)
    forced_IJ = torch.zeros_like(mass_IJ, dtype=torch.bool)
    forced_IJ[:, 0] = True
    forced_IJ[torch.arange(rows, device=mass_IJ.device), own] = True
    rest_IJ = mass_IJ.masked_fill(forced_IJ, -1.0)
    order_IJ = rest_IJ.argsort(dim=-1, descending=True, stable=True)
    sorted_IJ = rest_IJ.gather(-1, order_IJ).clamp_min(0)
    held_I1 = (mass_IJ * forced_IJ).sum(-1, keepdim=True)
    before_IJ = held_I1 + sorted_IJ.cumsum(-1) - sorted_IJ
    needed_IJ = before_IJ < threshold * mass_IJ.sum(-1, keepdim=True)
    chosen_IJ = forced_IJ | torch.zeros_like(forced_IJ).scatter(1, order_IJ, needed_IJ)
    causal_IJ = torch.arange(columns, device=mass_IJ.device) <= own[:, None]
    return chosen_IJ & causal_IJ


def _groups(x_SD: Tensor, block: int, stride: int) -> Tensor:
    """Groups of ``stride`` tokens, padded with zeros to whole blocks."""
    padded = F.pad(x_SD, (0, 0, 0, -len(x_SD) % block))
    return padded.unflatten(0, (-1, stride))
