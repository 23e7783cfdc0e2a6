"""A decode step of all layers of a transformers model as one CUDA graph.

The step reads and writes tensors of fixed address: last token, next position, logits. It contains
the greedy choice, so replaying needs nothing from the host. The attention owner must keep its
lengths in device memory. On other devices the same step runs eagerly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.engine import hf


class StepGraph:
    """Greedy decode steps; the first runs eagerly (it compiles kernels), then one graph replays."""

    def __init__(
        self,
        model: PreTrainedModel,
        owner: hf.AttentionOwner,
        token_B1: Tensor,
        position_B1: Tensor,
        use_graph: bool = True,
    ) -> None:
        """``token_B1`` is the newest token and ``position_B1`` its position (int64)."""
        self.model, self.owner = model, owner
        self.cache, served = hf.make_cache(model)
        total = len(self.cache.layers)
        if len(served) != total:
            raise ValueError(
                f"{type(model).__name__} keeps {total - len(served)} sliding-window layers in its "
                "own growing cache, which a CUDA graph cannot hold; decode it without a graph"
            )
        self.token_B1, self.position_B1 = token_B1.clone(), position_B1.clone()
        self.logits_BV = torch.empty(0)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.use_graph = use_graph and token_B1.is_cuda

    @torch.inference_mode()
    def step(self) -> Tensor:
        """One step: logits ``BV`` of the newest token, which its greedy successor replaces."""
        if not self.use_graph:
            self._forward()
        elif self.logits_BV.numel() == 0:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._forward()
            torch.cuda.current_stream().wait_stream(side)
        else:
            graph = self.graph
            if graph is None:
                graph = self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._forward()
            graph.replay()
        return self.logits_BV

    def _forward(self) -> None:
        output = self.model(
            input_ids=self.token_B1,
            position_ids=self.position_B1,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            session=self.owner,
        )
        logits = output.logits[:, -1].float()
        if self.logits_BV.numel() == 0:
            self.logits_BV = torch.empty_like(logits)
        self.logits_BV.copy_(logits)
        self.token_B1.copy_(logits.argmax(-1, keepdim=True))
        self.position_B1.add_(1)
