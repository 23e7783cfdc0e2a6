"""Speculation (paper 4.3): a few skewed channels of the keys tell which tokens will matter."""

from collections.abc import Mapping

import torch
from retrobench_kernels.logit_margin import head_margins, logit_margin
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.index import Index, enough
from retrobench.engine.attention.parts import logits
from retrobench_methods.infinigen.config import InfiniGenConfig, num_channels, pool_tokens
from retrobench_methods.infinigen.pool import put

_CHUNK_TOKENS = 4096


class PartialKeys(Index):
    """Skewed keys reduced to the chosen channels, for the layers that are speculated."""

    def __init__(self, config: InfiniGenConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.layers = [layer for layer in shape.layers if not config.is_dense(layer)]
        self.slot = {layer: i for i, layer in enumerate(self.layers)}
        head = (len(self.layers), shape.batch, shape.num_kv_heads)
        channels = num_channels(config, shape.head_dim)
        dtype, device = getattr(torch, shape.dtype), shape.device
        # channel by channel in memory: scoring reads all tokens of a channel at full width
        self.key_LBGPC = torch.empty(
            *head, channels, pool_tokens(config, shape), dtype=dtype, device=device
        ).mT
        self.basis_LBGDC = torch.zeros(*head, shape.head_dim, channels, device=device)
        self.q_abs_LBGD = torch.zeros(*head, shape.head_dim, device=device)
        self.k_abs_LBGD = torch.zeros_like(self.q_abs_LBGD)

    def choose_channels(self, layer: int, prompt: PromptLayer, skew: Mapping[str, Tensor]) -> None:
        """Pick the channels; ``skew`` holds the layer's basis and the calibration text's sums."""
        skew_GDD = skew["skew_LGDD"]
        self._sum_channels(layer, prompt, skew_GDD)
        self._choose(layer, skew_GDD, skew["q_abs_LGD"], skew["k_abs_LGD"])

    def _sum_channels(self, layer: int, prompt: PromptLayer, skew_GDD: Tensor) -> None:
        """Sums of |Q| and |K| over the prompt in the skewed basis; padding does not count."""
        queries, keys = prompt.q_BHWD, prompt.k_BGSD
        assert queries is not None
        i, tokens = self.slot[layer], keys.shape[2]
        pad_B1 = torch.tensor(self.shape.pad_tokens, device=keys.device)[:, None]
        for start in range(0, tokens, _CHUNK_TOKENS):
            chunk = slice(start, min(tokens, start + _CHUNK_TOKENS))
            position = torch.arange(chunk.start, chunk.stop, device=keys.device)
            real = (position >= pad_B1)[:, None, :, None]
            q_BGNTD = queries[:, :, chunk].float().unflatten(1, (self.shape.num_kv_heads, -1))
            skewed = (q_BGNTD @ skew_GDD[:, None]).abs() * real[:, :, None]
            self.q_abs_LBGD[i] += skewed.sum((2, 3))
            self.k_abs_LBGD[i] += ((keys[:, :, chunk].float() @ skew_GDD).abs() * real).sum(2)

    def _choose(self, layer: int, skew_GDD: Tensor, q_abs_GD: Tensor, k_abs_GD: Tensor) -> None:
        i, dim = self.slot[layer], self.shape.head_dim
        count = max(1, round(self.config.partial_frac * dim))
        if self.config.channels == "accuracy":
            picked = torch.zeros_like(q_abs_GD, dtype=torch.bool)
            for ranking in (q_abs_GD, k_abs_GD):
                picked.scatter_(-1, ranking.topk(count, -1).indices, True)
            index_GC = picked.int().sort(dim=-1, descending=True, stable=True).indices
            index_GC = index_GC[:, : self.basis_LBGDC.shape[-1]]
            used = picked.gather(-1, index_GC)
            self.basis_LBGDC[i] = _columns(skew_GDD, index_GC) * used[:, None]
            return
        ranking = self.q_abs_LBGD[i]
        if self.config.channels == "paper":
            ranking = ranking + self.k_abs_LBGD[i]
        for row in range(self.shape.batch):
            index_GC = ranking[row].topk(count, -1).indices
            self.basis_LBGDC[i, row] = _columns(skew_GDD, index_GC)

    def write(self, layer: int, slot: slice | Tensor, k_BGTD: Tensor) -> None:
        """Partial keys of tokens at pool slots: a slice, or ``slot_BG`` for one token per head."""
        i = self.slot[layer]
        partial = (k_BGTD.float() @ self.basis_LBGDC[i]).to(self.key_LBGPC.dtype)
        put(self.key_LBGPC[i], slot, partial)

    def scores(
        self, layer: int, q_BHTD: Tensor, exists_BGS: Tensor, args: AttentionArgs, per_head: bool
    ) -> Tensor:
        """How far below each head's best a token's speculated logit is: ``BHS`` or ``BGS``."""
        i = self.slot[layer]
        q_BGND = q_BHTD[:, :, 0].float().unflatten(1, (self.shape.num_kv_heads, -1))
        keys = self.key_LBGPC[i, :, :, : exists_BGS.shape[-1]]
        q_BGNC = q_BGND @ self.basis_LBGDC[i]
        if args.softcap is None:
            return logit_margin(q_BGNC, keys, exists_BGS, args.scale, per_head)
        return head_margins(logits(q_BGNC, keys, args), exists_BGS, per_head=per_head)

    def scores_and_mass(
        self, layer: int, q_BHTD: Tensor, exists_BGS: Tensor, args: AttentionArgs
    ) -> tuple[Tensor, Tensor]:
        """``scores``, and each token's share of the softmax by its speculated logits.

        For a KV head, the share is the mean over its query heads.
        """
        margin_BHS = self.scores(layer, q_BHTD, exists_BGS, args, per_head=True)
        mass_BHS = margin_BHS.softmax(-1)
        if self.config.scope == "query_head":
            return margin_BHS, mass_BHS
        groups = (self.shape.num_kv_heads, -1)
        return margin_BHS.unflatten(1, groups).amax(2), mass_BHS.unflatten(1, groups).mean(2)


def choose_tokens(
    score: Tensor, config: InfiniGenConfig, max_fetched: tuple[int, ...], fixed: bool
) -> Tensor:
    """Slots to fetch, ``slot_BGR`` (or ``BHR``), -1 padded, by scores of tokens (``scores``).

    ``fixed`` fetches ``max_fetched`` tokens, otherwise those within ``alpha``, so many at most.
    """
    limit, size = torch.tensor(max_fetched, device=score.device)[:, None], max(max_fetched)
    if not fixed:
        count = (score > -config.alpha).sum(-1)
        if config.count == "mean":
            count = count.float().mean(1, keepdim=True).long().clamp_min(1)
        limit = torch.minimum(count, limit)
        size = int(limit.max())  # how many are fetched depends on the scores
    return _best(score, limit, size)


def choose_mass(score: Tensor, mass: Tensor, top_p: float, max_fetched: tuple[int, ...]) -> Tensor:
    """As ``choose_tokens``: the fewest of the best tokens that hold ``top_p`` of the mass.

    One at least, and ``max_fetched`` at most.
    """
    slot = _best(score, torch.tensor(max_fetched, device=score.device)[:, None], max(max_fetched))
    held = mass.gather(-1, slot.clamp_min(0)).masked_fill(slot < 0, 0)
    done = enough(held, torch.ones_like(held[..., :1]), top_p)
    done[..., :1] = False
    slot = slot.masked_fill(done, -1)
    return slot[..., : int((slot >= 0).sum(-1).max())]  # no wider than the widest head


def _best(score: Tensor, limit: Tensor, size: int) -> Tensor:
    size = min(size, score.shape[-1])
    value, slot = score.topk(size, -1)
    rank = torch.arange(size, device=score.device)
    return slot.masked_fill((rank >= limit[..., None]) | (value == -torch.inf), -1)


def _columns(skew_GDD: Tensor, index_GC: Tensor) -> Tensor:
    return skew_GDD.gather(-1, index_GC[:, None].expand(-1, skew_GDD.shape[1], -1))
