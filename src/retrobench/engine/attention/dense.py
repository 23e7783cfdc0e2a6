"""Full attention over keys and values on the model's device, with a choice of who computes it."""

from typing import Any

import torch
from retrobench_kernels.dense_decode import dense_decode as masked_decode
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.backends import BackendChooser
from retrobench.memory.store import ResidentStore


class DenseMethod(Method):
    """Every token, exactly. The engine routes dense layers and reference runs to it."""

    name = "dense"
    budgeted = False

    def setup(self) -> None:
        shape = self.shape
        self.store = ResidentStore(shape)
        self.backend = BackendChooser(getattr(self.config, "backend", "auto"))
        # what a captured graph needs on the device: where each row begins, and every layer's length
        self.start_B = torch.tensor(shape.pad_tokens, dtype=torch.int32, device=shape.device)
        self.length_LB = self.start_B.new_zeros(len(shape.layers), shape.batch)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """K and V of all tokens."""
        return ResidentStore.plan(shape)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        self.store.load(layer, prompt)
        self.length_LB[self.store.index[layer]] = self.store.length(layer)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append and attend everything."""
        if self.static:
            return self._decode_static(layer, q_BHTD, k_BGTD, v_BGTD, args)
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        with self.probe.span("attend"):
            out = self.backend.run(q_BHTD, keys, values, args, self.shape.pad_tokens)
        if self.probe.counting:
            tokens = sum(keys.shape[2] - pad for pad in self.shape.pad_tokens)
            self._count(layer, tokens)
        return out

    def _decode_static(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Likewise with addresses and shapes that stay: lengths are in device memory."""
        i = self.store.index[layer]
        keys, values = self.store.k[i][0], self.store.v[i][0]
        end_B, place_1 = self.length_LB[i], self.length_LB[i, :1].long()
        keys.index_copy_(2, place_1, k_BGTD)
        values.index_copy_(2, place_1, v_BGTD)
        end_B += 1
        with self.probe.span("attend"):
            q_BHD = q_BHTD[:, :, 0].contiguous()
            out_BHD, _ = masked_decode(
                q_BHD, keys, values, args.scale,
                start_B=self.start_B, end_B=end_B, softcap=args.softcap or 0.0,
            )  # fmt: skip
        if self.probe.counting:
            self._count(layer, (end_B - self.start_B).sum())
        return out_BHD[:, :, None]

    def _count(self, layer: int, tokens: int | Tensor) -> None:
        num_bytes = tokens * self.shape.num_kv_heads * self.store.bytes_per_token()
        self.probe.count(layer, attended=tokens / self.shape.batch, kv=num_bytes)

    @classmethod
    def no_graph(cls, config: Any, shape: KVShape) -> str | None:
        """A graph can hold it."""
        return None

    def allocated(self) -> Footprint:
        return self.store.footprint()

    def close(self) -> None:
        self.store.close()
