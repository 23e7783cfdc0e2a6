"""MInference's vertical-slash pattern (arXiv 2407.02490; microsoft/MInference fb56c91).

The last 64 queries of the prompt are attended to all keys. Keys with most mass (vertical lines) and
distances with most mass (slashes) are what every query of the head attends to. A slash reaches a
block of 64 queries as the 64 keys at that distance from it, so that slashes become blocks of keys;
the released kernel may round runs of such blocks up. The paper finds one of three patterns for each
head of a model offline; here every head has this one, which it uses where nothing was found.
"""

import torch
from torch import Tensor

from retrobench.engine.sparse_prefill.config import PrefillConfig

BLOCK_TOKENS = 64
LAST_QUERIES = 64
SINK_TOKENS, LOCAL_DIAGONALS = 30, 100  # always chosen
LEAST_DIAGONALS = 50


def chosen_keys(q_TD: Tensor, k_SD: Tensor, scale: float, config: PrefillConfig) -> Tensor:
    """Keys that each block of queries attends to, boolean ``IS``, of one head.

    The queries are the whole prompt, T = S.
    """
    vertical_V, slash_D = lines(q_TD, k_SD, scale, config)
    tokens = k_SD.shape[0]
    ends = torch.arange(BLOCK_TOKENS, tokens + BLOCK_TOKENS, BLOCK_TOKENS, device=k_SD.device)
    last_ID = ends[:, None] - slash_D  # end of the keys that a slash reaches
    reached_ID = last_ID > 0
    last_ID = last_ID.clamp_min(BLOCK_TOKENS)
    step_IS = torch.zeros(len(ends), int(ends[-1]) + 1, dtype=torch.int32, device=k_SD.device)
    one = reached_ID.to(torch.int32)
    step_IS.scatter_add_(1, last_ID - BLOCK_TOKENS, one)
    step_IS.scatter_add_(1, last_ID, -one)
    chosen_IS = step_IS.cumsum(1)[:, :tokens] > 0
    chosen_IS[:, vertical_V] = True
    return chosen_IS


def lines(q_TD: Tensor, k_SD: Tensor, scale: float, config: PrefillConfig) -> tuple[Tensor, Tensor]:
    """(vertical lines: positions of keys; slashes: distances from query to key)."""
    tokens = k_SD.shape[0]
    last = min(LAST_QUERIES, tokens)
    query = torch.arange(tokens - last, tokens, device=k_SD.device)
    key = torch.arange(tokens, device=k_SD.device)
    logit_WS = (q_TD[-last:] @ k_SD.T).float() * scale
    mass_WS = logit_WS.masked_fill(key > query[:, None], -torch.inf).softmax(-1)
    vertical_S = mass_WS.sum(0)
    vertical_S[:SINK_TOKENS] = torch.inf
    distance_WS = (query[:, None] - key).clamp_min(0)  # no mass beyond the query
    slash_S = torch.zeros(tokens, device=k_SD.device)
    slash_S.scatter_add_(0, distance_WS.flatten(), mass_WS.flatten())
    slash_S[:LOCAL_DIAGONALS] = torch.inf
    verticals = min(tokens, max(config.vertical_tokens, SINK_TOKENS))
    slashes = min(tokens, max(config.slash_diagonals, LEAST_DIAGONALS))
    return vertical_S.topk(verticals).indices, slash_S.topk(slashes).indices
