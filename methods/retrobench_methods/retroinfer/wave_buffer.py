"""The wave buffer: where RetroInfer's keys and values are (paper 4.3).

Indexed tokens live once, in cluster order, in a *pool* on the model's device or in host memory;
sinks and tokens that wait for an index live in a small *steady* zone on the model's device;
recently used pages of the pool may also be in a fast *cache*.

The pool takes the prompt in its original order first and is rearranged in place, layer by layer, so
that no second copy ever exists. Where pool and model do not share memory, the prompt waits on the
device instead and each layer leaves it as soon as it is arranged.
"""

from __future__ import annotations

import torch
from retrobench_kernels.cluster_layout import Layout, place_tokens
from retrobench_kernels.wave_attention import Pool, Steady
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import CacheSize, PageCache, make_cache
from retrobench.memory.placement import Tiers, allocate, free, kv_bytes, placed
from retrobench_methods.retroinfer.config import RetroInferConfig, pool_tokens, steady_tokens


class WaveBuffer:
    """Pool, steady zone and cache of all layers. ``i`` is a layer's number among the served."""

    def __init__(self, config: RetroInferConfig, shape: KVShape, tiers: Tiers) -> None:
        self.config, self.shape, self.tiers = config, shape, tiers
        self.page_tokens = page_tokens(tiers)
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        pool = (*head, pool_tokens(config, shape, self.page_tokens), shape.head_dim)
        steady = (*head, steady_tokens(config, shape), shape.head_dim)
        self.k_LBGSD = allocate(pool, shape, tiers.place)
        self.v_LBGSD = allocate(pool, shape, tiers.place)
        self.k_LBGWD = allocate(steady, shape, "gpu")
        self.v_LBGWD = allocate(steady, shape, "gpu")
        self.count_LB = torch.zeros(*head[:2], dtype=torch.int32, device=shape.device)
        self.row_B = torch.arange(shape.batch, device=shape.device)
        self.count = [[0] * shape.batch for _ in shape.layers]  # the same, known to the host
        self.length = [0] * len(shape.layers)  # padding included
        self.cache: PageCache | None = None
        if tiers.cached:
            self.cache = make_cache(tiers, shape, cache_size(config, shape, tiers))
        self.one_memory = self.k_LBGSD.device == self.k_LBGWD.device
        self.waiting: dict[int, tuple[Tensor, Tensor]] = {}  # prompts of layers, on the device

    @staticmethod
    def plan(config: RetroInferConfig, shape: KVShape, tiers: Tiers) -> Footprint:
        """Bytes of the tensors above, before allocation."""
        positions = pool_tokens(config, shape, page_tokens(tiers))
        held = placed(kv_bytes(shape, positions), tiers.place)
        rows = len(shape.layers) * shape.batch
        held += Footprint(device=kv_bytes(shape, steady_tokens(config, shape)) + 4 * rows)
        if tiers.cached:
            held += PageCache.plan(shape, cache_size(config, shape, tiers), tiers)
        return held

    def footprint(self) -> Footprint:
        """Bytes held."""
        held = placed(self.k_LBGSD.nbytes + self.v_LBGSD.nbytes, self.tiers.place)
        steady = self.k_LBGWD.nbytes + self.v_LBGWD.nbytes + self.count_LB.nbytes
        held += Footprint(device=steady)
        return held if self.cache is None else held + self.cache.footprint()

    def append_prompt(self, i: int, k_BGTD: Tensor, v_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Take a chunk; all keys and values of the layer so far, in order, on the device."""
        k, v = self.k_LBGSD[i], self.v_LBGSD[i]
        if not self.one_memory:
            if i not in self.waiting:
                size = (*k.shape[:2], self.shape.prompt_tokens, k.shape[3])
                self.waiting[i] = k_BGTD.new_empty(size), v_BGTD.new_empty(size)
            k, v = self.waiting[i]
        start, end = self.length[i], self.length[i] + k_BGTD.shape[2]
        k[:, :, start:end], v[:, :, start:end] = k_BGTD, v_BGTD
        self.length[i] = end
        return k[:, :, :end], v[:, :, :end]

    def prompt(self, i: int) -> tuple[Tensor, Tensor]:
        """The prompt of a layer in its order, before ``arrange``."""
        k, v = self.waiting.get(i, (self.k_LBGSD[i], self.v_LBGSD[i]))
        return k[:, :, : self.length[i]], v[:, :, : self.length[i]]

    def settle(self, i: int, row: int, num_indexed: int) -> tuple[Tensor, Tensor]:
        """Copy a row's steady tokens out; ``k_GSD, v_GSD`` of the tokens to index."""
        k, v = (x[row, :, self.shape.pad_tokens[row] :] for x in self.prompt(i))
        sinks = self.config.sink_tokens if num_indexed else 0
        keep = [slice(0, sinks), slice(sinks + num_indexed, k.shape[1])]
        for source, steady in ((k, self.k_LBGWD), (v, self.v_LBGWD)):
            part = torch.cat([source[:, span] for span in keep], 1)
            steady[i, row, :, : part.shape[1]] = part
        self._recount(i, row, k.shape[1] - num_indexed)
        indexed = slice(sinks, sinks + num_indexed)
        return k[:, indexed], v[:, indexed]

    def place(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, layout: Layout) -> None:
        """Write tokens to their places in the pool, in cluster order."""
        for tokens, pool in ((k_GSD, self.k_LBGSD[i, row]), (v_GSD, self.v_LBGSD[i, row])):
            if tokens.device == pool.device:
                place_tokens(tokens.clone(), layout, pool)  # tokens may be a view of the pool
                continue
            # Arranged on the device, then one copy: heads begin at different places after updates
            base = int(layout.target_GS.min())
            span = int(layout.target_GS.max()) + 1 - base
            ordered = pool[:, base : base + span].to(tokens.device)
            near = layout._replace(target_GS=layout.target_GS - base)
            place_tokens(tokens, near, ordered)
            pool[:, base : base + span] = ordered

    def release_prompt(self, i: int) -> None:
        """The layer is arranged: the device no longer holds its prompt."""
        self.waiting.pop(i, None)

    def append(self, i: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add one token to the steady zone of every row."""
        count = self.count[i][0]
        if all(other == count for other in self.count[i]):  # one copy, where the host knows it
            self.k_LBGWD[i, :, :, count] = k_BGTD[:, :, 0]
            self.v_LBGWD[i, :, :, count] = v_BGTD[:, :, 0]
            self.count_LB[i] += 1
        else:
            self.write_token(i, k_BGTD, v_BGTD)
        self.count_token(i)

    def write_token(self, i: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """The device's part of ``append``."""
        place_B = self.count_LB[i].long()
        self.k_LBGWD[i][self.row_B, :, place_B] = k_BGTD[:, :, 0]
        self.v_LBGWD[i][self.row_B, :, place_B] = v_BGTD[:, :, 0]
        self.count_LB[i] += 1

    def count_token(self, i: int) -> None:
        """The host's part of ``append``."""
        self.length[i] += 1
        self.count[i] = [count + 1 for count in self.count[i]]

    def num_waiting(self, i: int, row: int) -> int:
        """Tokens of a row that left the local window and are in no cluster yet."""
        return self.count[i][row] - self.config.sink_tokens - self.config.local_tokens

    def oldest_position(self, i: int, row: int) -> int:
        """Position (padding included) of the first token after the sinks that is in no cluster."""
        return self.length[i] - self.count[i][row] + self.config.sink_tokens

    def take_oldest(self, i: int, row: int) -> tuple[Tensor, Tensor]:
        """Remove the oldest ``update_tokens`` after the sinks from a row's steady zone."""
        count, sinks = self.count[i][row], self.config.sink_tokens
        taken = slice(sinks, sinks + self.config.update_tokens)
        found = []
        for steady in (self.k_LBGWD[i, row], self.v_LBGWD[i, row]):
            found.append(steady[:, taken].clone())
            rest = steady[:, taken.stop : count].clone()
            steady[:, sinks : sinks + rest.shape[1]] = rest
        self._recount(i, row, count - self.config.update_tokens)
        return found[0], found[1]

    def steady(self, i: int) -> Steady:
        """The steady zone of a layer, cut to its longest row."""
        most = max(self.count[i])
        return Steady(self.k_LBGWD[i, :, :, :most], self.v_LBGWD[i, :, :, :most], self.count_LB[i])

    def pool(self, i: int, first_BGC: Tensor, size_BGC: Tensor) -> Pool:
        """The pool of a layer with an index's clusters."""
        return Pool(self.k_LBGSD[i], self.v_LBGSD[i], first_BGC, size_BGC)

    def close(self) -> None:
        """Free everything."""
        for pool in (self.k_LBGSD, self.v_LBGSD):
            free(pool, self.shape, self.tiers.place)
        empty = torch.empty(0)
        self.k_LBGSD, self.v_LBGSD, self.k_LBGWD, self.v_LBGWD = empty, empty, empty, empty
        self.count_LB = empty
        self.waiting.clear()
        if self.cache is not None:
            self.cache.close()

    def _recount(self, i: int, row: int, count: int) -> None:
        assert count <= self.k_LBGWD.shape[3], "steady zone smaller than planned"
        self.count[i][row] = count
        self.count_LB[i, row] = count


def page_tokens(tiers: Tiers) -> int:
    """Clusters begin at pages where a cache is in use, and are packed where it is not."""
    return tiers.page_tokens if tiers.cached else 1


def cache_size(config: RetroInferConfig, shape: KVShape, tiers: Tiers) -> CacheSize:
    """Pages of the pool, and slots for ``cache_frac`` of the context."""
    pages = page_tokens(tiers)
    return CacheSize.of(tiers, pool_tokens(config, shape, pages), shape.max_tokens, pages)


def cluster_pages(pool: Pool, cluster_BGR: Tensor, page_tokens: int) -> tuple[Tensor, Tensor]:
    """Pages of clusters (-1 padded) and the tokens in each: ``page_BGN``, ``tokens_BGN``, int32."""
    index = cluster_BGR.clamp_min(0).long()
    size = pool.size_BGC.gather(-1, index) * (cluster_BGR >= 0)
    first = pool.first_BGC.gather(-1, index) // page_tokens
    end = ((size + page_tokens - 1) // page_tokens).cumsum(-1)
    total = end[..., -1:]
    nth = torch.arange(int(total.max()), device=end.device).expand(*end.shape[:2], -1)
    which = torch.searchsorted(end, nth.contiguous(), right=True).clamp_max(end.shape[-1] - 1)
    pages = (size + page_tokens - 1) // page_tokens
    inside = nth - (end - pages).gather(-1, which)
    page = first.gather(-1, which) + inside
    tokens = (size.gather(-1, which) - inside * page_tokens).clamp(0, page_tokens)
    absent = nth >= total
    return page.masked_fill(absent, -1).int(), tokens.masked_fill(absent, 0).int()
