"""Quest: pages ranked by an upper bound of their logits (arXiv 2406.10774)."""

from dataclasses import dataclass

import torch
from retrobench_kernels.page_bounds import page_extrema, upper_bound
from retrobench_kernels.page_select import best_pages, page_select
from torch import Tensor

from retrobench.core.budget import Budget, row_budgets
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.core.spec import choice, context_share, layer_list, option
from retrobench.engine.attention.index import Index, enough
from retrobench.engine.attention.parts import softcapped
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.placement import PlacementConfig
from retrobench.memory.selection import Selection, Spans
from retrobench.memory.store import KVStore


@dataclass(frozen=True, kw_only=True)
class QuestConfig(PlacementConfig):
    """Defaults of mit-han-lab/Quest 01c1623; the shared budget stands in for its token budget.

    The paper keeps all KV on the GPU; other placements are ours and move whole pages.
    """

    page_size: int = option(16, "consecutive tokens per page", low=1, high=1024)
    retrieval_frac: float = context_share(
        0.018, "share of the context in selected pages, the newest one included"
    )
    variant: str = choice(
        ("kernel", "accuracy"),
        "which released code path: kernel: tokens // page_size pages, two at least, the newest one "
        "always among them; accuracy: three at least, the newest one competes by its bound",
    )
    scope: str = choice(
        ("kv_head", "query_head"),
        "kv_head: one page set per KV head (bounds summed over its query heads, ours: the "
        "released kernels know no GQA); query_head: one per query head (the accuracy path)",
    )
    dense_layers: tuple[int, ...] = layer_list(
        (0, 1), "layers that attend everything (paper: the first two)"
    )

    @property
    def pool_page_tokens(self) -> int:
        """Pages of the pool are Quest's pages."""
        return self.page_size


def min_pages(config: QuestConfig) -> int:
    """Pages that are attended whatever the budget."""
    return 2 if config.variant == "kernel" else 3


def selected_pages(config: QuestConfig, shape: KVShape, budget: Budget | None) -> tuple[int, ...]:
    """Pages that each row attends in a sparse layer; a budget of everything takes them all."""
    counts = []
    for context, total in row_budgets(shape, budget):
        tokens = round(config.retrieval_frac * context) if total is None else total
        everything = -(-shape.max_tokens // config.page_size)
        counts.append(
            everything if tokens >= context else max(min_pages(config), tokens // config.page_size)
        )
    return tuple(counts)


class PageIndex(Index):
    """Minimum and maximum of the post-RoPE keys of every page, grown token by token."""

    def __init__(self, config: QuestConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.selected = selected_pages(config, shape, budget)
        self.lengths = [0] * len(shape.layers)
        pages = -(-shape.max_tokens // config.page_size)
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, pages, shape.head_dim)
        dtype = getattr(torch, shape.dtype)
        self.low_LBGCD = torch.full(size, torch.inf, dtype=dtype, device=shape.device)
        self.high_LBGCD = torch.full(size, -torch.inf, dtype=dtype, device=shape.device)
        self.pad_B1 = torch.tensor(shape.pad_tokens, device=shape.device)[:, None]
        self.selected_B = torch.tensor(self.selected, device=shape.device)

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Extrema of all pages of the prompt; the last one may be partial."""
        i, size, keys = self.slot[layer], self.config.page_size, prompt.k_BGSD
        self.lengths[i] = keys.shape[2]
        used = -(-keys.shape[2] // size)
        # a row's pages begin at its first real token, whatever its padding
        position_BS = self.pad_B1 + torch.arange(used * size, device=keys.device)
        valid = position_BS < keys.shape[2]
        row = torch.arange(self.shape.batch, device=keys.device)[:, None, None]
        head = torch.arange(self.shape.num_kv_heads, device=keys.device)[:, None]
        paged_BGSD = keys[row, head, position_BS.clamp_max(keys.shape[2] - 1)[:, None]]
        low, high = page_extrema(paged_BGSD, size, valid)
        self.low_LBGCD[i, :, :, :used], self.high_LBGCD[i, :, :, :used] = low, high

    def append(self, layer: int, k_BGTD: Tensor) -> None:
        """Grow the extrema of each row's newest page by the newest key."""
        i, key_BGD = self.slot[layer], k_BGTD[:, :, 0]
        newest_B1 = self.lengths[i] - self.pad_B1
        self.lengths[i] += 1
        row, page = torch.arange(self.shape.batch, device=key_BGD.device), newest_B1[:, 0]
        page = page // self.config.page_size
        low_BCGD, high_BCGD = (t[i].transpose(1, 2) for t in (self.low_LBGCD, self.high_LBGCD))
        low_BCGD[row, page] = torch.minimum(low_BCGD[row, page], key_BGD)
        high_BCGD[row, page] = torch.maximum(high_BCGD[row, page], key_BGD)

    def pages(self, layer: int, q_BHTD: Tensor, length: int, args: AttentionArgs) -> Tensor:
        """The best-bounded pages of each KV head or query head, int32, -1 padded."""
        size, i, used = self.config.page_size, self.slot[layer], -(-length // self.config.page_size)
        num_pages_B = (length - self.pad_B1[:, 0] + size - 1) // size
        if layer in self.config.dense_layers:
            page = torch.arange(used, device=q_BHTD.device, dtype=torch.int32)
            page = page.masked_fill(page >= num_pages_B[:, None], -1)
            return page[:, None].expand(-1, self.shape.num_kv_heads, -1).contiguous()
        low, high = self.low_LBGCD[i, :, :, :used], self.high_LBGCD[i, :, :, :used]
        most = min(used, max(self.selected))
        limits = {"max_selected": most, "newest": self.config.variant == "kernel"}
        q_BHD = q_BHTD[:, :, 0].contiguous()
        if self.config.scope == "kv_head" and self.top_p is None:
            return page_select(q_BHD, low, high, num_pages_B, self.selected_B, **limits)
        # pages without tokens hold infinities, whose product with 0 would be NaN
        page = torch.arange(used, device=q_BHTD.device)
        absent = (page >= num_pages_B[:, None])[:, None, :, None]
        bound = upper_bound(q_BHD, low.masked_fill(absent, 0), high.masked_fill(absent, 0))
        heads = self.shape.num_kv_heads if self.config.scope == "kv_head" else bound.shape[1]
        rank = bound.unflatten(1, (heads, -1)).sum(2)
        best = best_pages(rank, num_pages_B, self.selected_B, **limits)
        if self.top_p is None:
            return best
        return self._until_enough(best, self._mass(bound, heads, length, args))

    def _mass(self, bound_BHC: Tensor, heads: int, length: int, args: AttentionArgs) -> Tensor:
        """Share of the softmax that every page would have if its tokens reached its bound.

        The mean over the query heads that choose together.
        """
        size_BC = self.spans(length)[1][:, 0, : bound_BHC.shape[-1]]
        logit = softcapped(bound_BHC.float() * args.scale, args)
        weight = (logit + size_BC[:, None].float().log()).softmax(-1)
        return weight.unflatten(1, (heads, -1)).mean(2)

    def _until_enough(self, page_BXK: Tensor, mass_BXC: Tensor) -> Tensor:
        """The first pages of each ranking that hold ``top_p`` of the mass, and the least number."""
        assert self.top_p is not None
        mass = mass_BXC.gather(-1, page_BXK.clamp_min(0).long()).masked_fill(page_BXK < 0, 0)
        done = enough(mass, torch.ones_like(mass[..., :1]), self.top_p)
        done[..., : min_pages(self.config)] = False
        return page_BXK.masked_fill(done, -1)

    def spans(self, length: int) -> tuple[Tensor, Tensor]:
        """First position and tokens of every page, ``BGC`` int32."""
        size = self.config.page_size
        first_BC = self.pad_B1 + torch.arange(0, length, size, device=self.pad_B1.device)
        heads = (-1, self.shape.num_kv_heads, -1)
        tokens_BC = (length - first_BC).clamp(0, size)
        # contiguous: kernels on a GPU step through heads by one stride
        first, tokens = (x[:, None].int().expand(heads).contiguous() for x in (first_BC, tokens_BC))
        return first, tokens

    def index_bytes(self, layer: int, length: int) -> int:
        """Bytes of the extrema that a selection reads."""
        if layer in self.config.dense_layers:
            return 0
        pages = sum(-(-(length - pad) // self.config.page_size) for pad in self.shape.pad_tokens)
        return pages * self.shape.layer_token_bytes

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Selection:
        """The best-bounded pages; the newest page among them in the kernel variant."""
        length = store.length(layer)
        first, tokens = self.spans(length)
        page = self.pages(layer, q_BHTD, length, args)
        per_head = page.shape[1] != self.shape.num_kv_heads
        if per_head:
            first, tokens = (x[:, :1].expand(-1, page.shape[1], -1) for x in (first, tokens))
        chosen = Spans(
            first_BGC=first, size_BGC=tokens, chosen_BGN=page,
            largest=self.config.page_size, index_bytes=self.index_bytes(layer, length),
        )  # fmt: skip
        return chosen.tokens() if per_head else chosen


class Quest(SelectiveMethod):
    """Query-aware page selection.

    Where one page set serves a KV head and all keys and values are in one place, attention reads
    the pages there instead of gathering their tokens first.
    """

    name = "quest"
    index_class = PageIndex
    memory_knob = "cache_frac"
    adaptive = True
    Config = QuestConfig
