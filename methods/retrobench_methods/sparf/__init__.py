"""SparF: tokens ranked by the query's largest channels, and the mean value for all the others.

The sparse attention of InstInfer (arXiv 2409.04992, 4.2). It selects as SparQ does
(arXiv 2312.04985), from flash pages: ``flash=true`` counts those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.index import ScoringIndex
from retrobench.engine.attention.parts import logits
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.placement import Holder
from retrobench.memory.selection import Selection, Tokens
from retrobench.memory.store import KVStore, take
from retrobench_methods.sparf.config import SparfConfig

PAGE_BYTES = 4096


class FlashPages(Holder):
    """Pages that a step touches on a drive that computes attention (InstInfer, 4.2).

    They are counted by layer, row and KV head, and summed over steps. Pages hold 4 KiB. Keys are
    written twice: token pages hold consecutive tokens of one head, channel pages a few channels of
    many more tokens. Values have token pages only. A step reads every page that holds a selected
    channel or token, and a filter beside the flash drops the rest of the page. Tokens whose page is
    not full yet are read from the drive's memory.
    """

    def __init__(self, config: SparfConfig, shape: KVShape) -> None:
        self.shape = shape
        numbers = PAGE_BYTES // shape.value_bytes  # of a page
        self.group = page_channels(config, shape)
        self.channel_tokens = numbers // self.group  # tokens of a channel page
        self.token_tokens = max(1, numbers // shape.head_dim)  # tokens of a token page
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        self.channel_LBG = torch.zeros(head, dtype=torch.int64, device=shape.device)
        self.token_LBG = torch.zeros_like(self.channel_LBG)
        self.numbers_LBG = torch.zeros_like(self.channel_LBG)  # read from the drive's memory
        self.pad_B1 = torch.tensor(shape.pad_tokens, device=shape.device)[:, None]
        self.written_pages = self.dense_numbers = self.calls = 0

    def count(self, i: int, channel_BGC: Tensor, token_BGR: Tensor, length: int) -> None:
        """A step of layer number ``i``: channels and tokens (-1 padded) that it selects."""
        held_B1 = length - self.pad_B1
        channel_pages = distinct(channel_BGC // self.group)
        full_B1 = held_B1 // self.channel_tokens
        self.channel_LBG[i] += channel_pages * full_B1
        waiting_B1 = held_B1 % self.channel_tokens
        page_BGR = (token_BGR - self.pad_B1[..., None]) // self.token_tokens
        in_flash = page_BGR < (held_B1 // self.token_tokens)[..., None]
        in_flash, newest = in_flash & (token_BGR >= 0), ~in_flash & (token_BGR >= 0)
        self.token_LBG[i] += 2 * distinct(page_BGR.masked_fill(~in_flash, -1))
        values = 2 * self.shape.head_dim * newest.sum(-1)
        self.numbers_LBG[i] += channel_BGC.shape[-1] * waiting_B1 + values
        self.calls += i == 0
        for pad in self.shape.pad_tokens:
            held = length - pad
            self.written_pages += self.shape.num_kv_heads * self._completed(held)
            self.dense_numbers += 2 * held * self.shape.num_kv_heads * self.shape.head_dim

    def _completed(self, held: int) -> int:
        """Pages of one KV head that a new token fills."""
        channel_pages = -(-self.shape.head_dim // self.group) * (held % self.channel_tokens == 0)
        return channel_pages + 2 * (held % self.token_tokens == 0)

    def stats(self) -> dict[str, object]:
        """Means per step over what was counted, of all layers, rows and heads together."""
        steps = max(1, self.calls)
        pages_LG = (self.channel_LBG + self.token_LBG).sum(1)
        read = int(pages_LG.sum()) * PAGE_BYTES / steps
        dense = self.dense_numbers * self.shape.value_bytes / steps
        return {
            "flash_channel_pages": float(self.channel_LBG.sum()) / steps,
            "flash_token_pages": float(self.token_LBG.sum()) / steps,
            "flash_read_bytes": read,
            "flash_read_frac": read / max(1.0, dense),  # of what dense attention reads
            "flash_memory_bytes": float(self.numbers_LBG.sum()) * self.shape.value_bytes / steps,
            "flash_written_bytes": self.written_pages * PAGE_BYTES / steps,
            "flash_pages_of_head": [
                [round(x / steps, 1) for x in row] for row in pages_LG.tolist()
            ],
        }


def page_channels(config: SparfConfig, shape: KVShape) -> int:
    """Channels that share a channel page."""
    if config.flash_channels != "auto":
        return int(config.flash_channels)
    shortest = shape.prompt_tokens - max(shape.pad_tokens)
    fits = [c for c in (2, 4, 8) if PAGE_BYTES // shape.value_bytes // c <= shortest]
    return min(fits, default=8)


def distinct(page_BGR: Tensor) -> Tensor:
    """How many different pages each head names (-1: none), ``BG``."""
    page = page_BGR.sort(-1).values
    new = torch.ones_like(page, dtype=torch.bool)
    new[..., 1:] = page[..., 1:] != page[..., :-1]
    return (new & (page >= 0)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compensated(Tokens):
    """Tokens, the share of the softmax that they are thought to hold, and a value for the rest."""

    channel_BGC: Tensor
    share_BHT: Tensor
    mean_BHD: Tensor


class ChannelIndex(ScoringIndex):
    """A copy of the keys, channel by channel in memory, and the sum of all values."""

    def __init__(self, config: SparfConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.channels = config.num_channels(shape.head_dim)
        self.lengths = [0] * len(shape.layers)
        head = (len(shape.layers), shape.batch, shape.num_kv_heads, shape.head_dim)
        dtype, device = getattr(torch, shape.dtype), shape.device
        self.key_LBGDS = torch.empty(*head, shape.max_tokens, dtype=dtype, device=device)
        self.value_sum_LBGD = torch.zeros(*head, device=device)
        self.pad_B1 = torch.tensor(shape.pad_tokens, device=device)[:, None]
        self.flash = FlashPages(config, shape) if config.flash else None

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Copy the prompt's keys, sum its values."""
        i, self.lengths[self.slot[layer]] = self.slot[layer], prompt.k_BGSD.shape[2]
        self.key_LBGDS[i, ..., : self.lengths[i]] = prompt.k_BGSD.mT
        for row, pad in enumerate(self.shape.pad_tokens):
            self.value_sum_LBGD[i, row] = prompt.v_BGSD[row, :, pad:].float().sum(1)

    def append(self, layer: int, k_BGTD: Tensor) -> None:
        """Copy the newest key."""
        i = self.slot[layer]
        self.key_LBGDS[i, ..., self.lengths[i]] = k_BGTD[:, :, 0]
        self.lengths[i] += 1

    def append_value(self, layer: int, v_BGTD: Tensor) -> None:
        """Add the newest value to the sum."""
        self.value_sum_LBGD[self.slot[layer]] += v_BGTD[:, :, 0].float()

    def select(
        self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs
    ) -> Compensated:
        """The best tokens of each KV head, and what its query heads miss beside them."""
        i, groups = self.slot[layer], self.shape.num_kv_heads
        length = self.lengths[i]
        q_BGND = q_BHTD[:, :, 0].float().unflatten(1, (groups, -1))
        channel_BGC = q_BGND.abs().sum(2).topk(self.channels, -1).indices
        weight_BGNS = self.weights(i, q_BGND, channel_BGC, args)
        token_BGR = self.best(self.shared(weight_BGNS))
        chosen = token_BGR.clamp_min(0)[:, :, None].expand(-1, -1, q_BGND.shape[2], -1)
        share_BGNR = weight_BGNS.gather(-1, chosen) * (token_BGR >= 0)[:, :, None]
        mean_BGD = self.value_sum_LBGD[i] / (length - self.pad_B1)[..., None]
        return Compensated(
            token_BGR=token_BGR,
            channel_BGC=channel_BGC,
            share_BHT=share_BGNR.sum(-1, keepdim=True).flatten(1, 2),
            mean_BHD=mean_BGD.repeat_interleave(q_BGND.shape[2], 1),
            index_bytes=self.index_bytes(length),
        )

    def weights(self, i: int, q_BGND: Tensor, channel_BGC: Tensor, args: AttentionArgs) -> Tensor:
        """Softmax weights by the chosen channels alone, ``BGNS``.

        Their logits are spread by the square root of the share of the query's L1 norm that the
        channels hold, as if the other channels were like them (SparQ, eq. 7).
        """
        length, group = self.lengths[i], q_BGND.shape[2]
        k_BGCS = take(self.key_LBGDS[i], channel_BGC)[..., :length]
        q_BGNC = q_BGND.gather(-1, channel_BGC[:, :, None].expand(-1, -1, group, -1))
        norm_BGN1 = q_BGND.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        covered_BGN1 = q_BGNC.abs().sum(-1, keepdim=True) / norm_BGN1
        q_BGNC = q_BGNC / covered_BGN1.sqrt().clamp_min(torch.finfo(torch.float32).eps)
        logit_BGNS = logits(q_BGNC, k_BGCS.mT, args)
        if any(self.shape.pad_tokens):
            padding_BS = torch.arange(length, device=q_BGND.device) < self.pad_B1
            logit_BGNS = logit_BGNS.masked_fill(padding_BS[:, None, None], -torch.inf)
        return logit_BGNS.softmax(-1)

    def index_bytes(self, length: int) -> int:
        """Bytes of the channels that a selection reads."""
        tokens = sum(length - pad for pad in self.shape.pad_tokens)
        return tokens * self.shape.num_kv_heads * self.channels * self.shape.value_bytes


class Sparf(SelectiveMethod):
    """Top tokens by a few channels; the others count as their mean value."""

    name = "sparf"
    index_class = ChannelIndex
    memory_knob = "cache_frac"
    adaptive = True
    Config = SparfConfig
    index: ChannelIndex

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append (the sum of values too), select, attend."""
        self.index.append_value(layer, v_BGTD)
        return super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)

    def attend(
        self, layer: int, q_BHTD: Tensor, selection: Selection, args: AttentionArgs
    ) -> Tensor:
        """Attention over the selection, blended with the mean value by the share it holds."""
        assert isinstance(selection, Compensated)
        exact_BHD = super().attend(layer, q_BHTD, selection, args)[:, :, 0].float()
        if self.index.flash is not None and self.probe.counting:
            self._count_flash(layer, self.index.flash, selection)
        blended = selection.mean_BHD.lerp(exact_BHD, selection.share_BHT)
        return blended.to(q_BHTD.dtype)[:, :, None]

    def _count_flash(self, layer: int, flash: FlashPages, selection: Compensated) -> None:
        """Pages of the drive; the bus carries the query, the new token and the output only."""
        shape, i = self.shape, self.index.slot[layer]
        flash.count(i, selection.channel_BGC, selection.token_BGR, self.index.lengths[i])
        row = shape.batch * shape.head_dim * shape.value_bytes
        sent = (shape.num_heads + 2 * shape.num_kv_heads) * row
        self.probe.count(layer, d2h=sent, h2d=shape.num_heads * row)

    def stats(self) -> Mapping[str, Any]:
        """Channels that are read and, if asked for, the flash pages."""
        flash = {} if self.index.flash is None else self.index.flash.stats()
        return {"channels": self.index.channels, **flash}
