"""The index: what heads keep of the prompt, and when they exchange it."""

from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.evicting import best
from retrobench.engine.attention.exact import attention_mass
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.parts import logits
from retrobench.memory.placement import allocate, placed, resolve_place, vector_bytes
from retrobench.memory.prefetch import Prefetcher
from retrobench.memory.ragged import RaggedStore
from retrobench.memory.selection import Everything
from retrobench.memory.store import KVStore
from retrobench_methods.heterocache.config import head_tokens
from retrobench_methods.heterocache.roles import Roles

Move = tuple[int, int, Tensor]  # row, head, and the prompt tokens that it is to hold


class DriftIndex(Index):
    """Every head holds its best tokens of the prompt; those of satellites follow their pivot."""

    prefetcher: Prefetcher
    roles: Roles

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        rows, layers = shape.batch, len(shape.layers)
        queries = (layers, rows, shape.num_heads, config.steps, shape.head_dim)
        self.q_LBHWD = torch.zeros(*queries, dtype=getattr(torch, shape.dtype), device=shape.device)
        self.filled = [0] * layers  # queries since the last look
        sets = (layers, rows, shape.num_kv_heads, shape.prompt_tokens)
        self.reference_LBGS = torch.zeros(*sets, dtype=torch.bool, device=shape.device)
        self.place = resolve_place(config.placement, shape.device)
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # K and V of the prompt
        self.context_B: list[int] = []  # tokens of the prompt
        self.watched_LB: list[list[list[int]]] = [[]] * layers
        self.moved_bytes = 0  # over the bus, in the last step
        self.noted: dict[int, tuple[int, int]] = {}  # by the look in flight: looks, reloads
        self.looks, self.reloads = 0, 0

    def assign(self, roles: Roles) -> None:
        """Take the roles; ValueError for a budget below their floor."""
        self.roles = roles
        self.count_LBG, self.base_B = head_tokens(self.config, self.shape, self.budget, roles)

    def _read_tokens(self, i: int, tokens: int) -> None:
        """So many tokens of the prompt were read before the build, left padding included."""
        self.context_B = [tokens - pad for pad in self.shape.pad_tokens]
        pairs = list(zip(self.count_LBG[i], self.context_B, strict=True))
        self.count_LBG[i] = [[min(n, context) for n in count_G] for count_G, context in pairs]
        self.watched_LB[i] = [self._watched(i, row) for row in range(self.shape.batch)]

    def _watched(self, i: int, row: int) -> list[int]:
        """Heads that look at the whole prompt, for themselves or for satellites that lack part."""
        context, count_G = self.context_B[row], self.count_LBG[i][row]
        return [
            head
            for head, leaves in enumerate(self.roles.satellites_LG[i])
            if self.roles.full(i, head) and min(count_G[h] for h in (head, *leaves)) < context
        ]

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Copy the prompt; every head keeps the tokens that the prompt's last one attends."""
        assert prompt.q_BHWD is not None
        i, shape = self.shape.layers.index(layer), self.shape
        device, copies = prompt.k_BGSD.device, []
        self._read_tokens(i, prompt.k_BGSD.shape[2])
        for part in (prompt.k_BGSD, prompt.v_BGSD):
            copies.append(allocate(part.shape, shape, self.place).copy_(part))
        self.copies[layer] = copies[0], copies[1]
        q_BH1D = prompt.q_BHWD[:, :, -1:]
        mass_BHS = attention_mass(q_BH1D, prompt.k_BGSD, prompt.args, shape.pad_tokens)
        score_BGS = self._pooled(mass_BHS).unflatten(1, (shape.num_kv_heads, -1)).amax(2)
        for row, pad in enumerate(shape.pad_tokens):
            score_BGS[row, :, :pad] = -torch.inf
            for head in self.watched_LB[i][row]:
                token_1R = ranked(score_BGS[row, head][None])[:, : self.base_B[row]]
                self.reference_LBGS[i, row, head, token_1R[0]] = True
        store.evict(layer, best(score_BGS, torch.tensor(self.count_LBG[i], device=device)))

    def _pooled(self, mass_BHS: Tensor) -> Tensor:
        return avg_pool1d(mass_BHS, self.config.pool_tokens, 1, self.config.pool_tokens // 2)

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Everything:
        """All that the heads hold. Every ``steps`` steps a look begins, for the next step."""
        assert isinstance(store, RaggedStore)
        i, index_bytes = self.shape.layers.index(layer), 0
        self.moved_bytes = self._reload(layer, store)
        if any(self.watched_LB[i]):
            self.q_LBHWD[i, :, :, self.filled[i]] = q_BHTD[:, :, 0]
            self.filled[i] += 1
        if self.filled[i] == self.config.steps:
            self.filled[i], q_BHWD = 0, self.q_LBHWD[i].clone()
            index_bytes = self._look_bytes(i)
            if self.config.full_heads == "top" and self.place != "gpu":  # it reads the copy
                self.moved_bytes += index_bytes
            self.prefetcher.submit(layer, lambda: self._look(layer, q_BHWD, store, args))
        return Everything(index_bytes=index_bytes)

    def _look_bytes(self, i: int) -> int:
        """Prompt keys that a look reads."""
        pairs = zip(self.watched_LB[i], self.context_B, strict=True)
        return sum(len(heads) * n for heads, n in pairs) * vector_bytes(self.shape) // 2

    def _look(
        self, layer: int, q_BHWD: Tensor, store: RaggedStore, args: AttentionArgs
    ) -> tuple[Tensor, ...]:
        """Compare what watched heads attend with their references; read what is to be reloaded."""
        i, looks, reloads = self.shape.layers.index(layer), 0, 0
        moves: list[Move] = []
        for row, pad in enumerate(self.shape.pad_tokens):
            for head in self.watched_LB[i][row]:
                order_WS = ranked(self._scores(layer, row, head, q_BHWD, store, args))
                drifted = self._drifted(i, row, head, order_WS)
                leaves = self.roles.satellites_LG[i][head]
                if leaves:
                    looks, reloads = looks + 1, reloads + drifted
                own = [head] if self.config.full_heads == "top" else []
                for target in own + (leaves if drifted else []):
                    count = self.count_LBG[i][row][target]
                    if count < self.context_B[row]:
                        moves.append((row, target, order_WS[-1, :count].sort().values + pad))
        self.noted[layer] = looks, reloads
        return self._read(layer, moves, store) if moves else ()

    def _scores(
        self,
        layer: int,
        row: int,
        head: int,
        q_BHWD: Tensor,
        store: RaggedStore,
        args: AttentionArgs,
    ) -> Tensor:
        """How much the queries attend a row's prompt tokens, pooled, best of the group, ``WS``."""
        if self.config.full_heads == "keep":
            k_SD = store.kept_keys(layer, row, head)
        else:
            k_SD = self.copies[layer][0][row, head, self.shape.pad_tokens[row] :]
            k_SD = k_SD.to(q_BHWD.device)
        q_NWD = q_BHWD[row].unflatten(0, (self.shape.num_kv_heads, -1))[head]
        return self._pooled(logits(q_NWD, k_SD, args).softmax(-1)).amax(0)

    def _drifted(self, i: int, row: int, head: int, order_WS: Tensor) -> bool:
        """Whether a head's best tokens have changed; then the newest query's are the reference."""
        base = min(self.base_B[row], self.context_B[row])
        reference_S = self.reference_LBGS[i, row, head, self.shape.pad_tokens[row] :]
        common = reference_S[order_WS[:, :base]].sum(-1).tolist()
        if median(common) >= self.config.drift * base:
            return False
        reference_S.zero_()
        reference_S[order_WS[-1, :base]] = True
        return True

    def _read(self, layer: int, moves: list[Move], store: RaggedStore) -> tuple[Tensor, ...]:
        """``(slot_R, token_R, k_RD, v_RD)`` of all moves, in memory of their own."""
        tokens, groups = self.copies[layer][0].shape[2], self.shape.num_kv_heads
        slots = [store.kept_slots(layer, row, head) for row, head, _ in moves]
        device = moves[0][2].device
        slot_R = torch.cat([torch.arange(s.start, s.stop, device=device) for s in slots])
        token_R = torch.cat([token for _, _, token in moves])
        place_R = torch.cat([(row * groups + head) * tokens + token for row, head, token in moves])
        found = []
        for copy in self.copies[layer]:
            part = copy.flatten(0, 2).index_select(0, place_R.to(copy.device))
            if part.device != device:
                part = part.pin_memory().to(device, non_blocking=True)
            found.append(part)
        return slot_R, token_R, found[0], found[1]

    def _reload(self, layer: int, store: RaggedStore) -> int:
        """Put in place what a look has read; bytes over the bus."""
        moved = self.prefetcher.take(layer)
        looks, reloads = self.noted.pop(layer, (0, 0)) if moved is not None else (0, 0)
        self.looks, self.reloads = self.looks + looks, self.reloads + reloads
        if not moved:
            return 0
        store.overwrite(layer, *moved)
        return len(moved[0]) * vector_bytes(self.shape) if self.place != "gpu" else 0

    def footprint(self) -> Footprint:
        """Queries and references on the device, and the copy."""
        copied = sum(part.nbytes for parts in self.copies.values() for part in parts)
        return super().footprint() + placed(copied, self.place)

    def close(self) -> None:
        """Free everything."""
        super().close()
        self.copies.clear()


def ranked(score_WS: Tensor) -> Tensor:
    """Tokens from the best to the worst; of equal ones the earlier one is better."""
    return score_WS.sort(dim=-1, descending=True, stable=True).indices
