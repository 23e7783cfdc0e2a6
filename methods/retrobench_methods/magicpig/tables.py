"""Hash tables of keys (SimHash), and how likely a token is to be found in them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.index import Index, StaticZone, retrieved_tokens
from retrobench.memory.selection import Everything, Selection, Tokens
from retrobench.memory.store import KVStore
from retrobench_methods.magicpig.config import MagicPigConfig

LAYERS_PER_HASH = 16  # layers that share hash functions (released)
_CHUNK_TOKENS = 512  # products of as many tokens fit the cache of a core
_LEAST = 1e-4  # smallest sampling probability (released: added to it)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Tokens):
    """Tokens of each query head; the last ``sampled`` columns were sampled.

    A token is among them if it collides in more tables than ``threshold_BH``, and with the chance
    ``share_BH`` if it does in as many.
    """

    sampled: int
    threshold_BH: Tensor
    share_BH: Tensor


class HashTables(Index):
    """Prompt tokens outside the static zone, sorted by their hash code in every table."""

    def __init__(self, config: MagicPigConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        # tokens that each query head of a row samples; without a budget: as chance has it
        self.wanted = None if budget is None else retrieved_tokens(config, shape, budget)
        dense = config.dense(shape)
        sparse = [layer for layer in shape.layers if layer not in dense]
        self.slot = {layer: i for i, layer in enumerate(sparse)}
        # a question that is decoded is in no table
        self.local_tokens = max(config.local_tokens, shape.tail_tokens)
        static = config.sink_tokens + self.local_tokens
        self.free = [max(0, context - static) for context in shape.contexts]
        head, device = (len(sparse), shape.batch, shape.num_kv_heads), shape.device
        tokens, buckets = max(self.free), 2**config.bits
        ints = {"dtype": torch.int32, "device": device}
        self.order_LBGYS = torch.zeros(*head, config.tables, tokens, **ints)
        self.start_LBGYC = torch.zeros(*head, config.tables, buckets + 1, **ints)
        self.mean_LBGD = torch.zeros(*head, shape.head_dim, device=device)
        generator = torch.Generator().manual_seed(config.seed)
        size = (max(shape.layers) // LAYERS_PER_HASH + 1, shape.num_kv_heads, shape.head_dim)
        # a code's bits are the sides of as many random planes
        planes = torch.randn(*size, config.tables * config.bits, generator=generator)
        self.plane_LGDC = planes.to(device)
        self.free_B = torch.tensor(self.free, device=device)
        self.first_B = torch.tensor(shape.pad_tokens, device=device) + config.sink_tokens
        self.lot_SH: Tensor | None = None  # decides among tokens that collide equally often
        if self.wanted is not None:
            self.lot_SH = torch.rand(tokens, shape.num_heads, generator=generator).to(device)

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Hash the prompt's free tokens."""
        if layer not in self.slot:
            return
        i, buckets = self.slot[layer], 2**self.config.bits
        code_C = torch.arange(buckets + 1, device=prompt.k_BGSD.device)
        for row, tokens in enumerate(self.free):
            if not tokens:
                continue
            first = self.shape.pad_tokens[row] + self.config.sink_tokens
            place_S1 = torch.arange(tokens, device=code_C.device)[:, None]
            k_GSD = prompt.k_BGSD[row, :, first : first + tokens].float()
            if self.config.centre:
                self.mean_LBGD[i, row] = k_GSD.mean(1)
            for head in range(len(k_GSD)):
                code_SY = self.codes(layer, head, k_GSD[head] - self.mean_LBGD[i, row, head])
                # by code, then by place
                ordered_YS = _sorted((code_SY.long() * tokens + place_S1).mT.contiguous())
                self.order_LBGYS[i, row, head, :, :tokens] = ordered_YS % tokens
                ends_YC = (code_C * tokens).expand(len(ordered_YS), -1).contiguous()
                self.start_LBGYC[i, row, head] = torch.searchsorted(ordered_YS, ends_YC)

    def codes(self, layer: int, head: int, x_SD: Tensor) -> Tensor:
        """Code of each vector in every table, int32 ``SY``."""
        bits = self.config.bits
        plane_DC = self.plane_LGDC[layer // LAYERS_PER_HASH, head]
        plane_DC = plane_DC.unflatten(-1, (-1, bits)).mT.flatten(1)  # bit after bit
        code_SY = x_SD.new_zeros(len(x_SD), self.config.tables, dtype=torch.int32)
        for part, code in zip(x_SD.split(_CHUNK_TOKENS), code_SY.split(_CHUNK_TOKENS), strict=True):
            side = (part @ plane_DC > 0).unflatten(-1, (bits, -1))
            for bit in range(bits):
                code |= side[:, bit].int() << bit
        return code_SY

    def collisions(self, layer: int, q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """In how many tables each free token meets the query, ``BHS``; entries that were read."""
        i, (groups, heads) = self.slot[layer], (self.shape.num_kv_heads, self.shape.num_heads)
        group, width = heads // groups, self.order_LBGYS.shape[-1]
        q_GND = q_BHTD[:, :, 0].float().unflatten(1, (groups, group)).transpose(0, 1).flatten(1, 2)
        code = torch.stack([self.codes(layer, head, q_GND[head]) for head in range(groups)])
        code_BGYN = code.unflatten(1, (-1, group)).permute(1, 0, 3, 2).long()
        start_BGYN = self.start_LBGYC[i].gather(-1, code_BGYN).long()
        end_BGYN = self.start_LBGYC[i].gather(-1, code_BGYN + 1)
        count, start = (end_BGYN - start_BGYN).flatten(), start_BGYN.flatten()
        # entries of all buckets, one after the other
        bucket = torch.arange(len(count), device=count.device)
        first = bucket // group * width + start - (count.cumsum(0) - count)
        entry = first.repeat_interleave(count)
        entry += torch.arange(len(entry), device=count.device)
        head = bucket // (group * self.config.tables) * group + bucket % group
        place = (head * width).repeat_interleave(count)
        place += self.order_LBGYS[i].flatten()[entry]
        found = place.bincount(minlength=len(q_BHTD) * heads * width)
        return found.view(len(q_BHTD), heads, width), count.sum()

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Selection:
        """The static zone, and what collides often enough or, with a budget, most often."""
        if layer not in self.slot:
            return Everything()
        config, length = self.config, store.length(layer)
        new_tokens = length - self.shape.prompt_tokens
        zone = StaticZone(self.shape.pad_tokens, config.sink_tokens, self.local_tokens + new_tokens)
        fixed_B1R = zone.tokens(length, q_BHTD.device)[:, None]
        count_BHS, entries = self.collisions(layer, q_BHTD)
        real_BS = torch.arange(count_BHS.shape[-1], device=q_BHTD.device) < self.free_B[:, None]
        count_BHS = count_BHS.masked_fill(~real_BS[:, None], -1)
        slot_BHR, threshold_BH, share_BH = self.sample(count_BHS)
        token = (slot_BHR + self.first_B[:, None, None]).masked_fill(slot_BHR < 0, -1)
        bounds = 8 * config.tables * self.shape.num_heads * self.shape.batch
        return Sampled(
            token_BGR=torch.cat([fixed_B1R.expand(-1, token.shape[1], -1), token], -1),
            sampled=token.shape[-1],
            threshold_BH=threshold_BH,
            share_BH=share_BH,
            index_bytes=4 * entries + bounds,
        )

    def sample(self, count_BHS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the sampled tokens, -1 padded; threshold and share (see ``Sampled``)."""
        if self.wanted is None or self.lot_SH is None:
            least = self.config.min_collisions
            most = int((count_BHS >= least).sum(-1).max())
            count, slot = count_BHS.topk(most, -1)
            threshold = count_BHS.new_full(count_BHS.shape[:2], least)
            return (
                slot.masked_fill(count < least, -1),
                threshold,
                torch.ones_like(threshold).float(),
            )
        wanted_B1 = torch.tensor(self.wanted, device=count_BHS.device)[:, None]
        score = count_BHS + self.lot_SH.mT
        slot = score.topk(min(max(self.wanted), score.shape[-1]), -1).indices
        count = count_BHS.gather(-1, slot)
        rank = torch.arange(slot.shape[-1], device=slot.device)
        missing = (rank >= wanted_B1[..., None]) | (count < 0)
        last_BH = (~missing).sum(-1).clamp_min(1) - 1
        # where nothing is left out, nothing was found by chance
        whole_B1 = wanted_B1 >= self.free_B[:, None]
        threshold = _at(count, last_BH).masked_fill(whole_B1, 0)
        tied = (count_BHS == threshold[..., None]).sum(-1)
        taken = ((count == threshold[..., None]) & ~missing).sum(-1)
        share = (taken / tied.clamp_min(1)).masked_fill(whole_B1, 1)
        return slot.masked_fill(missing, -1), threshold, share

    def log_weight(self, layer: int, q_BHTD: Tensor, k_BHRD: Tensor, chosen: Sampled) -> Tensor:
        """Minus the log of each token's sampling probability, ``BHR``; 0 in the static zone."""
        group = self.shape.num_heads // self.shape.num_kv_heads
        mean_BHD = self.mean_LBGD[self.slot[layer]].repeat_interleave(group, 1)
        k_BHRD = k_BHRD[:, :, k_BHRD.shape[2] - chosen.sampled :] - mean_BHD[:, :, None]
        product_BHR = (k_BHRD @ q_BHTD.float().mT)[..., 0]
        lengths = k_BHRD.norm(dim=-1) * q_BHTD.float().norm(dim=-1)
        cosine = (product_BHR / lengths.clamp_min(1e-30)).clamp(-1, 1)
        agree = (1 - cosine.acos() / torch.pi) ** self.config.bits  # chance to meet in a table
        least, tables = chosen.threshold_BH[..., None], self.config.tables
        tied = at_least(agree, tables, least)
        more = tied - exactly(agree, tables, least)
        chance = more.lerp(tied, chosen.share_BH[..., None].double()).clamp(_LEAST, 1)
        fixed = k_BHRD.new_zeros(*k_BHRD.shape[:2], chosen.token_BGR.shape[-1] - chosen.sampled)
        return torch.cat([fixed, -chance.log().float()], -1)


def at_least(chance_BHR: Tensor, tables: int, least_BH1: Tensor) -> Tensor:
    """Probability of ``least`` or more successes in ``tables`` trials of the given chance."""
    chance, least = chance_BHR.double(), least_BH1.expand_as(chance_BHR)
    fewer, likely = _fewer(chance.clamp_max(0.9), tables, least), chance > 0.9
    if likely.any():  # here the sum from the other end does not underflow
        fewer[likely] = 1 - _fewer(1 - chance[likely], tables, tables - least[likely] + 1)
    return (1 - fewer).clamp(0, 1)


def _fewer(chance: Tensor, tables: int, limit: Tensor) -> Tensor:
    """Probability of fewer than ``limit`` successes, for chances up to 0.9."""
    term, odds = (tables * (-chance).log1p()).exp(), chance / (1 - chance)
    total = torch.zeros_like(chance)
    for hits in range(min(int(limit.max()), tables + 1) if limit.numel() else 0):
        total += torch.where(hits < limit, term, 0.0)
        term *= odds
        term *= (tables - hits) / (hits + 1)
    return total


def exactly(chance_BHR: Tensor, tables: int, hits_BH1: Tensor) -> Tensor:
    """Probability of as many successes in ``tables`` trials of the given chance."""
    hits, all_ = hits_BH1.double(), torch.tensor(float(tables), device=hits_BH1.device)
    log_ways = (all_ + 1).lgamma() - (hits + 1).lgamma() - (all_ - hits + 1).lgamma()
    chance = chance_BHR.double()
    log_chance = torch.xlogy(hits, chance) + torch.special.xlog1py(all_ - hits, -chance)
    return (log_ways + log_chance).exp()


def _sorted(x_YS: Tensor) -> Tensor:
    """Sorted along the last axis."""
    if x_YS.device.type != "cpu":
        return x_YS.sort(-1).values
    return torch.from_numpy(np.sort(x_YS.numpy(), -1))  # many times faster than torch's


def _at(count_BHR: Tensor, rank_BH: Tensor) -> Tensor:
    """The value at one rank of each head."""
    if not count_BHR.shape[-1]:
        return torch.zeros_like(rank_BH)
    return count_BHR.gather(-1, rank_BH[..., None])[..., 0]
