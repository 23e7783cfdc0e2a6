"""Keys of the prompt as a product of low rank, values elsewhere, and what is kept exactly."""

from dataclasses import replace

import torch
from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.rotary import rotate, unrotate
from retrobench.memory.placement import Holder, allocate, placed, resolve_place
from retrobench.memory.store import KVStore, row_numbers, take
from retrobench_methods.shadowkv.config import ShadowKVConfig, Zones


class HeldChunks(Holder):
    """The rebuilt keys and the values of each layer's last selection of ``selected`` chunks.

    Places count the tokens of a row's chunks from its first one. A copy never changes, so what is
    held is right whoever put it there.
    """

    def __init__(self, shape: KVShape, chunks: int, selected: int, chunk_tokens: int) -> None:
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        options = {"dtype": getattr(torch, shape.dtype), "device": shape.device}
        self.chunk_tokens = chunk_tokens
        self.k_LBGWD = torch.zeros(*head, selected * chunk_tokens, shape.head_dim, **options)
        self.v_LBGWD = torch.zeros_like(self.k_LBGWD)
        # where a chunk is held, -1: nowhere; the last entry stands for no chunk
        size = (*head, chunks + 1)
        self.slot_LBGC = torch.full(size, -1, dtype=torch.int32, device=shape.device)

    def find(self, i: int, place_BGR: Tensor) -> Tensor:
        """Rows of layer number ``i`` in which tokens are held, ``BGR``; -1: not held."""
        size = self.chunk_tokens
        slot = self.slot_LBGC[i].gather(-1, place_BGR // size).long()
        return (slot * size + place_BGR % size).masked_fill(slot < 0, -1)

    def read(self, i: int, row_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows; -1 gives any."""
        return take(self.k_LBGWD[i], row_BGR), take(self.v_LBGWD[i], row_BGR)

    def keep(
        self, i: int, place_BGR: Tensor, wanted_BGR: Tensor, k_BGRD: Tensor, v_BGRD: Tensor
    ) -> None:
        """Hold these tokens instead, if they are as many whole chunks as there is room for."""
        if k_BGRD.shape[2] != self.k_LBGWD.shape[3]:
            return
        place = place_BGR.unflatten(-1, (-1, self.chunk_tokens))
        within = torch.arange(self.chunk_tokens, device=place.device)
        wanted = wanted_BGR.unflatten(-1, place.shape[-2:])
        if bool(((place - place[..., :1] != within) & wanted).any()):
            return
        self.k_LBGWD[i], self.v_LBGWD[i] = k_BGRD, v_BGRD
        nothing = self.slot_LBGC.shape[-1] - 1
        chunk = place[..., 0] // self.chunk_tokens
        chunk = chunk.masked_fill(~wanted[..., 0], nothing)
        slot = torch.arange(chunk.shape[-1], device=chunk.device, dtype=torch.int32)
        self.slot_LBGC[i] = -1
        self.slot_LBGC[i].scatter_(-1, chunk, slot.expand(chunk.shape).contiguous())
        self.slot_LBGC[i, ..., nothing] = -1


class LowRankStore(KVStore, Holder):
    """The prompt's chunks without their keys, and an exact part on the device.

    Keys before their rotation, all KV heads side by side, are ``left @ right``; they are rebuilt
    and rotated when they are gathered. Outlier chunks, the prompt's tail and new tokens are exact.
    """

    def __init__(self, config: ShadowKVConfig, shape: KVShape, zones: list[Zones]) -> None:
        super().__init__(shape)
        self.config, self.zones = config, zones
        self.place = resolve_place(config.placement, shape.device)
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        tokens = config.chunk_tokens * max(zone.chunks for zone in zones)
        self.rank = min(config.rank, shape.num_kv_heads * shape.head_dim)
        options = {"dtype": getattr(torch, shape.dtype), "device": shape.device}
        self.left_LBSZ = torch.zeros(*head[:2], tokens, self.rank, **options)
        self.right_LBGZD = torch.zeros(*head, self.rank, shape.head_dim, **options)
        self.outliers = config.chunk_tokens * max(zone.outliers for zone in zones)
        new_tokens = shape.max_tokens - shape.prompt_tokens
        exact = self.outliers + max(zone.tail for zone in zones) + new_tokens
        self.k_exact_LBGWD = torch.zeros(*head, exact, shape.head_dim, **options)
        self.v_exact_LBGWD = torch.zeros_like(self.k_exact_LBGWD)
        chunks = tokens // config.chunk_tokens
        # number of a chunk among the outliers, -1 for the others
        self.outlier_LBGC = torch.full((*head, chunks), -1, dtype=torch.int32, device=shape.device)
        self.cos_BSD = torch.zeros(shape.batch, tokens, shape.head_dim, **options)
        self.sin_BSD = torch.zeros_like(self.cos_BSD)
        self.v_pool: list[Tensor] = [torch.empty(0)] * len(shape.layers)  # BGSD
        self.pool_size = (*head[1:], tokens, shape.head_dim)
        self.pad_B = torch.tensor(shape.pad_tokens, device=shape.device)
        self.chunks_B = torch.tensor([zone.chunks for zone in zones], device=shape.device)
        self.tail_B = torch.tensor([zone.tail for zone in zones], device=shape.device)
        self.held: HeldChunks | None = None
        if config.reuse:
            selected = max(zone.selected for zone in zones)
            self.held = HeldChunks(shape, chunks, selected, config.chunk_tokens)
        self.fetched = torch.zeros(len(shape.layers), device=shape.device)  # by the last gather
        self.kept: list[float] = []  # share of the keys' squared norm that the product has

    @classmethod
    def plan(cls, config: ShadowKVConfig, shape: KVShape, zones: list[Zones]) -> Footprint:
        """Bytes before allocation."""
        device = cls(config, replace(shape, device="meta"), zones)
        batch, groups, tokens, dim = device.pool_size
        values = len(shape.layers) * batch * groups * tokens * dim * shape.value_bytes
        return device.footprint() + placed(values, resolve_place(config.placement, shape.device))

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Factor the keys of the chunks, move their values, keep the tail."""
        i, size, length = self.index[layer], self.config.chunk_tokens, prompt.k_BGSD.shape[2]
        self.lengths[i] = length
        self.v_pool[i] = allocate(self.pool_size, self.shape, self.place)
        for row, zone in enumerate(self.zones):
            first = self.shape.pad_tokens[row]
            end = first + zone.chunks * size
            self._factor(i, row, prompt, slice(first, end))
            self.v_pool[i][row, :, : end - first] = prompt.v_BGSD[row, :, first:end].to(
                self.v_pool[i].device
            )
            tail = slice(self.outliers, self.outliers + length - end)
            self.k_exact_LBGWD[i, row, :, tail] = prompt.k_BGSD[row, :, end:]
            self.v_exact_LBGWD[i, row, :, tail] = prompt.v_BGSD[row, :, end:]

    def _factor(self, i: int, row: int, prompt: PromptLayer, chunks: slice) -> None:
        """The best product of this rank: keys on their leading right singular vectors."""
        assert prompt.cos_BSD is not None and prompt.sin_BSD is not None
        tokens = chunks.stop - chunks.start
        cos, sin = (part[row, None, chunks] for part in (prompt.cos_BSD, prompt.sin_BSD))
        self.cos_BSD[row, :tokens], self.sin_BSD[row, :tokens] = cos[0], sin[0]
        k_GSD = unrotate(prompt.k_BGSD[row, None, :, chunks], cos, sin)[0]
        x_SD = k_GSD.transpose(0, 1).flatten(1)
        value, vector_DZ = torch.linalg.eigh((x_SD.mT @ x_SD).double())
        vector_DZ = vector_DZ[:, -self.rank :].float()
        self.left_LBSZ[i, row, :tokens] = x_SD @ vector_DZ
        self.right_LBGZD[i, row] = vector_DZ.mT.unflatten(1, (len(k_GSD), -1)).transpose(0, 1)
        if tokens:
            self.kept.append(float(value[-self.rank :].sum() / value.sum().clamp_min(1e-30)))

    def keep(self, layer: int, prompt: PromptLayer, outlier_BGK: Tensor) -> None:
        """Keep these chunks (-1 padded) exactly."""
        i, size = self.index[layer], self.config.chunk_tokens
        number = torch.arange(outlier_BGK.shape[-1], device=outlier_BGK.device).int()
        for row, zone in enumerate(self.zones):
            chosen = outlier_BGK[row, :, : zone.outliers]
            self.outlier_LBGC[i, row].scatter_(
                -1, chosen, number[: zone.outliers].expand(chosen.shape).contiguous()
            )
        token = self.pad_B[:, None, None, None] + outlier_BGK.clamp_min(0)[..., None] * size
        token = (token + torch.arange(size, device=token.device)).flatten(2)
        token = token.clamp_max(prompt.k_BGSD.shape[2] - 1)  # of -1 in a row shorter than a chunk
        self.k_exact_LBGWD[i, :, :, : self.outliers] = take(prompt.k_BGSD, token)
        self.v_exact_LBGWD[i, :, :, : self.outliers] = take(prompt.v_BGSD, token)

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add one token to the exact part."""
        i = self.index[layer]
        assert self.lengths[i] < self.shape.max_tokens, "session longer than planned"
        slot_B = self.outliers + self.tail_B + self.lengths[i] - self.shape.prompt_tokens
        row_B = torch.arange(self.shape.batch, device=slot_B.device)
        self.k_exact_LBGWD[i][row_B, :, slot_B] = k_BGTD[:, :, 0]
        self.v_exact_LBGWD[i][row_B, :, slot_B] = v_BGTD[:, :, 0]
        self.lengths[i] += 1

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at positions of KV heads; keys of chunks are rebuilt."""
        i, size = self.index[layer], self.config.chunk_tokens
        place = (token_BGR - self.pad_B[:, None, None]).clamp_min(0)
        chunks_B11 = self.chunks_B[:, None, None]
        after = place - chunks_B11 * size
        slot = self.outliers + after
        rebuilt = torch.zeros_like(place, dtype=torch.bool)
        if self.outlier_LBGC.shape[-1]:
            chunk = (place // size).clamp_max(self.outlier_LBGC.shape[-1] - 1)
            number = self.outlier_LBGC[i].gather(-1, chunk).long()
            slot = torch.where(after < 0, number * size + place % size, slot)
            rebuilt = (after < 0) & (number < 0) & (token_BGR >= 0)
        slot = slot.clamp_min(0)
        keys, values = take(self.k_exact_LBGWD[i], slot), take(self.v_exact_LBGWD[i], slot)
        column = rebuilt.flatten(0, 1).any(0).nonzero()[:, 0]
        if len(column):
            which, at = rebuilt[..., column], place[..., column]
            chunks = self._chunks(i, at.clamp_max(self.left_LBSZ.shape[2] - 1), which)
            row, source = (x.flatten().nonzero()[:, 0] for x in (rebuilt, which))
            for part, found in zip((keys, values), chunks, strict=True):
                part.flatten(0, 2).index_copy_(0, row, found.flatten(0, 2).index_select(0, source))
        return keys, values

    def _chunks(self, i: int, place_BGR: Tensor, which_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of those tokens among the chunks that are asked for."""
        if self.held is None:
            self.fetched[i] = which_BGR.sum()
            return self._fetch(i, place_BGR)
        row_BGR = self.held.find(i, place_BGR)
        missed_BGR = which_BGR & (row_BGR < 0)
        self.fetched[i] = missed_BGR.sum()
        keys, values = self.held.read(i, row_BGR)
        first = missed_BGR.int().argsort(dim=-1, descending=True, stable=True)
        first = first[..., : int(missed_BGR.sum(-1).max())]
        fetched = self._fetch(i, place_BGR.gather(-1, first))
        row = row_numbers(keys, first)
        for x, y in zip((keys, values), fetched, strict=True):
            x.flatten(0, 2).index_copy_(0, row, y.flatten(0, 2))
        self.held.keep(i, place_BGR, which_BGR, keys, values)
        return keys, values

    def _fetch(self, i: int, place_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys rebuilt, and values from where they are."""
        values = take(self.v_pool[i], place_BGR).to(self.left_LBSZ.device)
        return self._rebuild(i, place_BGR), values

    def _rebuild(self, i: int, place_BGR: Tensor) -> Tensor:
        """Rotated keys at places among the chunks."""
        parts = (self.left_LBSZ[i], self.cos_BSD, self.sin_BSD)
        left, cos, sin = (take(part[:, None], place_BGR) for part in parts)
        k_BGRD = left @ self.right_LBGZD[i]
        turned = rotate(k_BGRD.flatten(0, 1)[:, None], cos.flatten(0, 1), sin.flatten(0, 1))[:, 0]
        return turned.to(k_BGRD.dtype).unflatten(0, k_BGRD.shape[:2])

    def footprint(self) -> Footprint:
        pools = sum(pool.nbytes for pool in self.v_pool)
        return Holder.footprint(self) + placed(pools, self.place)

    def close(self) -> None:
        Holder.close(self)
        super().close()
        self.v_pool = [torch.empty(0)] * len(self.shape.layers)
