"""The training loop: stages, checkpoints after which it goes on bit for bit, progress."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, Qwen2ForCausalLM

from retrobench.measure import clock
from retrobench.training.alignment import Alignment
from retrobench.training.batches import Batch, Encoder, make_batch
from retrobench.training.plan import Plan, Stage

STEP_FILE, STATE_FILE = "step.json", "state.pt"


@dataclass(slots=True)
class Progress:
    """One line of the log: means since the last one."""

    step: int
    tokens: int
    loss: float
    accuracy: dict[str, float]
    tokens_per_s: float


def causal(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _mask: Any,
    scaling: float,
    alignment: Alignment | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention with the KV heads repeated: faster than grouped SDPA on a CPU."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    if alignment is not None and module.k_proj.weight.requires_grad:
        alignment.add(q, k, scaling)
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("retrobench_training", causal)


class Trainer:
    """A model, its optimiser and how many steps they have taken."""

    def __init__(self, model: Qwen2ForCausalLM, encoder: Encoder, plan: Plan, folder: Path) -> None:
        self.model, self.encoder, self.plan, self.folder = model, encoder, plan, folder
        self.device = next(model.parameters()).device
        model.config._attn_implementation = "retrobench_training"
        # the layers before are circuits as they stand; steps blur what they find
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for module in (model.model.layers[-1], model.model.norm):
            module.requires_grad_(True)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in trained if p.ndim > 1],
                "weight_decay": plan.config.weight_decay,
            },
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self.step = self.tokens = 0

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.plan.stages)

    def _stage(self) -> tuple[Stage, float]:
        """The stage of the current step and how far it is, in [0, 1)."""
        done = 0
        for stage in self.plan.stages:
            if self.step < done + stage.steps:
                return stage, (self.step - done) / stage.steps
            done += stage.steps
        raise ValueError(f"step {self.step}: training ended at step {done}")

    def run(self, report: Callable[[Progress], None]) -> None:
        """Train to the end of the last stage, from wherever the checkpoint stands."""
        start, tokens = clock.monotonic_s(), 0
        losses: list[float] = []
        right: dict[str, list[float]] = defaultdict(list)
        while self.step < self.total_steps:
            stage, _ = self._stage()
            losses.append(self._train_step(right))
            tokens += stage.rows * stage.tokens
            if self.step % self.plan.config.log_steps == 0 or self.step == self.total_steps:
                accuracy = {n: sum(a) / len(a) for n, a in sorted(right.items())}
                rate = tokens / (clock.monotonic_s() - start)
                loss = sum(losses) / len(losses)
                report(Progress(self.step, self.tokens, loss, accuracy, rate))
                start, tokens, losses = clock.monotonic_s(), 0, []
                right.clear()
            if self.step % self.plan.config.checkpoint_steps == 0 or self.step == self.total_steps:
                self.save()

    def _train_step(self, right: dict[str, list[float]]) -> float:
        """One step; everything random about it depends on the seed and its number alone."""
        stage, frac = self._stage()
        rng = random.Random(f"{self.plan.config.seed}/{self.step}")
        for group in self.optimizer.param_groups:
            warmup = min(1.0, (self.step + 1) / 50)
            group["lr"] = warmup * (stage.lr + (stage.lr_end - stage.lr) * frac)
        batch = make_batch(self.encoder, rng, stage.mix, stage.rows, stage.tokens)
        loss = self._loss(batch, rng, right)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += stage.rows * stage.tokens
        return float(loss.detach())

    def _loss(self, batch: Batch, rng: random.Random, right: dict[str, list[float]]) -> Tensor:
        """Cross entropy at answer tokens, over the batch's own words and some random ones; where
        several tokens are as right, their probabilities add up.

        The vocabulary is large and a batch uses little of it: the full softmax would cost as much
        as the model.
        """
        asked_BS = batch.targets_BS >= 0
        vocab = self.model.config.vocab_size
        own = torch.unique(batch.ids_BS)
        absent = torch.ones(vocab, dtype=torch.bool)
        absent[own] = False
        others = absent.nonzero().flatten()
        drawn = others[rng.sample(range(len(others)), min(len(others), self.plan.config.negatives))]
        words = torch.cat([own, drawn])
        stands_for = torch.ones(len(words))  # each random word for all that were not drawn
        stands_for[len(own) :] = len(others) / max(1, len(drawn))
        target = torch.searchsorted(own, batch.targets_BS[asked_BS]).to(self.device)
        alignment = Alignment(asked_BS) if self.plan.config.align else None
        with torch.autocast(
            self.device.type,
            getattr(torch, self.plan.config.dtype),
            self.plan.config.dtype != "float32",
        ):
            ids_BS = batch.ids_BS.to(self.device)
            hidden = self.model.model(
                ids_BS, use_cache=False, alignment=alignment
            ).last_hidden_state
            table = self.model.model.embed_tokens.weight[words.to(self.device)]
            logits = hidden[asked_BS.to(self.device)] @ table.T
        logits = logits.float() + stands_for.log().to(self.device)
        at = asked_BS.nonzero()
        right_NW = torch.zeros(logits.shape, dtype=torch.bool, device=self.device)
        right_NW[torch.arange(len(target)), target] = True
        for n, place in enumerate(map(tuple, at.tolist())):
            if place in batch.instead:
                right_NW[n, : len(own)] |= torch.isin(own, torch.tensor(batch.instead[place]))
        hit = right_NW.gather(1, logits.detach().argmax(-1, keepdim=True))[:, 0].cpu()
        rows = at[:, 0]
        for row, family in enumerate(batch.family_B):
            mine = hit[rows == row]
            if len(mine):
                right[family].append(float(mine.float().mean()))
        right = logits.masked_fill(~right_NW, float("-inf")).logsumexp(-1)
        loss = (logits.logsumexp(-1) - right).mean()
        return loss if alignment is None else loss + self.plan.config.align * alignment.loss()

    def save(self) -> None:
        """Write the checkpoint; a crash in between leaves the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
        }
        part = self.folder / f"{STATE_FILE}.part"
        torch.save(state, part)
        os.replace(part, self.folder / STATE_FILE)
        note = {"step": self.step, "tokens": self.tokens}
        (self.folder / STEP_FILE).write_text(json.dumps(note))

    def load(self) -> bool:
        """Go on from the folder's checkpoint; False where there is none."""
        path = self.folder / STATE_FILE
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens = state["step"], state["tokens"]
        return True
