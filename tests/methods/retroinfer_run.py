"""A RetroInfer method fed with random tokens, step by step."""

from __future__ import annotations

import torch
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig

from retrobench.core.method import AttentionArgs
from retrobench.measure.probe import CountingProbe
from tests.support import build, kv_shape

SMALL = {"update_tokens": 32, "tokens_per_cluster": 8, "retrieval_frac": 0.1}


def make_shape(prompt, new, pads=(0,), layers=(0, 3), dim=16, dtype="float32"):
    return kv_shape(
        pad_tokens=pads,
        layers=layers,
        head_dim=dim,
        prompt_tokens=prompt,
        max_tokens=prompt + new,
        dtype=dtype,
    )


class Run:
    """A method fed with sticky random tokens, so that clusters and hits mean something."""

    def __init__(self, prompt=300, new=0, pads=(0,), softcap=None, seed=0, budget=None, **options):
        torch.manual_seed(seed)
        self.args = AttentionArgs(scale=0.4, softcap=softcap)
        self.shape = make_shape(prompt, new, pads)
        self.probe = CountingProbe()
        config = RetroInferConfig(**{**SMALL, **options})
        self.method = RetroInfer(config, self.shape, self.probe, budget)
        size = (2, 2, self.shape.batch, 2, prompt + new, 16)
        topic = torch.randn(2, 2, self.shape.batch, 2, (prompt + new) // 8 + 1, 16)
        self.kv = topic.repeat_interleave(8, 4)[:, :, :, :, : prompt + new]
        self.kv = self.kv + 0.3 * torch.randn(size)
        self.q = topic[0, 0].repeat_interleave(2, 1) + 0.1
        layers = {
            layer: (None, *self.kv[i][..., :prompt, :]) for i, layer in enumerate(self.shape.layers)
        }
        build(self.method, layers, self.args)

    def step(self, n, query=None):
        """Outputs of both layers for token ``n``, stacked."""
        outputs = []
        self.method.begin_step()
        for i, layer in enumerate(self.shape.layers):
            q = self.q[:, :, (n // 4) % 9, None] if query is None else query
            outputs.append(self.method.decode(layer, q, *self.kv[i][..., n : n + 1, :], self.args))
        self.method.end_step()
        return torch.stack(outputs)

    def row(self):
        """What was counted, the cache's part included."""
        self.method.report_counts()
        return self.probe.row()

    def select(self, i, query):
        """The clusters that a step of layer number ``i`` would attend."""
        layer = self.shape.layers[i]
        return self.method.index.select(layer, query, self.method.store, self.args)
