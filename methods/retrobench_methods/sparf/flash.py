"""Flash pages that a step touches on a drive that computes attention (InstInfer, 4.2).

Pages hold 4 KiB. Keys are written twice: token pages hold consecutive tokens of one head, channel
pages a few channels of many more tokens. Values have token pages only. A step reads every page that
holds a selected channel or token, and a filter beside the flash drops the rest of the page. Tokens
whose page is not full yet are read from the drive's memory.
"""

import torch
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.memory.placement import Holder
from retrobench_methods.sparf.config import SparfConfig

PAGE_BYTES = 4096


class FlashPages(Holder):
    """Pages by layer, row and KV head, summed over the steps that were counted."""

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
