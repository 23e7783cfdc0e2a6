"""Recorded queries, keys and values of a model on prompts, and a model that replays them.

A trace is a folder: ``manifest.json`` (what was recorded, of which weights, by which commit) and
one safetensors shard per prompt and layer with ``q_HSD``, ``k_GSD``, ``v_GSD`` over all positions
of full attention's trajectory, and ``guess_HSD``, the queries that a layer would compute from the
input of the layer before (InfiniGen), over its decode positions. Replaying needs no model: every
method sees, bit for bit, what it would have seen in the recorded layers of the recorded run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from retrobench.core import traces
from retrobench.core.cell import digest
from retrobench.core.method import ALL_QUERIES, AttentionArgs, ModelView, Needs, PromptLayer
from retrobench.core.paths import replacing
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.hf import current_owner
from retrobench.engine.traits import Traits


class TraceRecorder(DenseMethod):
    """Full attention that keeps what it sees."""

    name = "recorder"
    needs = Needs(layer_inputs=True, prompt_queries=ALL_QUERIES)

    def setup(self) -> None:
        """Make the store and the lists of what is seen."""
        super().setup()
        shape = self.shape
        self.queries: dict[int, list[Tensor]] = {layer: [] for layer in shape.layers}
        self.predicted: dict[int, list[Tensor]] = {layer: [] for layer in shape.layers}
        self.args: dict[int, AttentionArgs] = {}
        self.model: ModelView | None = None

    def bind(self, model: ModelView) -> None:
        """The model whose queries are approximated."""
        self.model = model

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """Keep the next layer's queries as this layer's input predicts them."""
        if layer + 1 in self.predicted:
            assert self.model is not None
            query = self.model.queries(layer + 1, hidden_BTM)
            if query is not None:
                self.predicted[layer + 1].append(query)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Keep the prompt's queries too."""
        super().build(layer, prompt)
        assert prompt.q_BHWD is not None
        self.queries[layer].append(prompt.q_BHWD.cpu())
        self.args[layer] = prompt.args

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over everything."""
        self.queries[layer].append(q_BHTD.cpu())
        return super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)

    def save(
        self, folder: Path, index: int, layers: Sequence[int], dtype: torch.dtype
    ) -> dict[str, list[Any]]:
        """Write the shards of one prompt, a file per layer; their names, sizes and digests."""
        written = {}
        for layer in layers:
            parts = {
                "q_HSD": torch.cat(self.queries[layer], 2)[0],
                "k_GSD": self.store.keys(layer)[0],
                "v_GSD": self.store.values(layer)[0],
            }
            if self.predicted[layer]:
                parts["guess_HSD"] = torch.cat(self.predicted[layer], 2)[0]
            file = shard(folder, index, layer)
            kept = {name: part.to("cpu", dtype).contiguous() for name, part in parts.items()}
            with replacing(file) as temporary:
                save_file(kept, temporary)
            written[file.name] = traces.shard_mark(file)
        return written

    def geometry(self, layers: Sequence[int]) -> dict[str, Any]:
        """What a replay of these layers must know of the model."""
        shape = self.shape
        return {
            "layers": list(layers),
            "heads": shape.num_heads,
            "kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "args": {str(i): [self.args[i].scale, self.args[i].softcap] for i in layers},
        }

    def close(self) -> None:
        super().close()
        self.queries.clear()
        self.predicted.clear()


def shard(folder: Path, index: int, layer: int) -> Path:
    """File of one prompt and layer."""
    return folder / f"{index:05d}-layer{layer:03d}.safetensors"


class TraceView:
    """The ``ModelView`` of a replay: recorded predictions instead of projections."""

    def __init__(self, model: TraceModel) -> None:
        self._model = model

    @property
    def weights_id(self) -> str:
        """Of the recorded model."""
        return self._model.recorded_weights_id

    def queries(self, layer: int, hidden_BTM: Tensor) -> Tensor | None:
        """The recorded prediction for the position at hand."""
        return self._model.predicted_query(layer)

    def projection_bytes(self, layer: int) -> int:
        """As recorded."""
        return self._model.manifest["projection_bytes"]

    def attention_module(self, layer: int) -> Any:
        """There is none."""
        raise ValueError("a recorded trace has no modules of the model; use the model itself")

    def rotary(self, layer: int, like: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """There is none."""
        return self.attention_module(layer)


class TraceModel(torch.nn.Module):
    """Feeds recorded tensors to a session, layer by layer, as a model of that shape would.

    Its logits put all weight on the recorded next token, then on ``end_id``. ``replays`` tells a
    prefill that nobody reads its attention.
    """

    replays = True

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__()
        self.folder, self.manifest = folder, traces.read_manifest(folder)
        self.device = torch.device(device)
        self.dtype = getattr(torch, self.manifest["dtype"])
        self.recorded_weights_id = self.manifest["weights_id"]
        self.end_id = 1 + max(max(s["ids"]) for s in self.manifest["samples"])
        self.config = LlamaConfig(
            num_hidden_layers=max(self.manifest["layers"]) + 1,
            num_attention_heads=self.manifest["heads"],
            num_key_value_heads=self.manifest["kv_heads"],
            head_dim=self.manifest["head_dim"],
            hidden_size=self.manifest["heads"] * self.manifest["head_dim"],
            max_position_embeddings=max(len(s["ids"]) for s in self.manifest["samples"]) + 1,
            vocab_size=self.end_id + 1,
            eos_token_id=self.end_id,
        )
        self.recorded_layers = tuple(self.manifest["layers"])
        self.traits = Traits(
            layers=self.recorded_layers,
            num_heads=self.manifest["heads"],
            num_kv_heads=self.manifest["kv_heads"],
            head_dim=self.manifest["head_dim"],
            no_pre_rope_keys="a trace holds no rotary factors",
        )
        self.view = TraceView(self)
        self._sample: dict[str, Any] = {}
        self._position = 0

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """One chunk or step of the recorded prompt that a prefill or session runs."""
        session = current_owner()
        start, end = session.length, session.length + input_ids.shape[1]
        if start == 0:
            self._sample = self._find(session.ids_BS)
        if end > len(self._sample["ids"]):
            raise ValueError(f"{self._sample['id']}: the trace ends after {start} tokens")
        self._position = start
        for layer in self.recorded_layers:
            if layer and layer - 1 not in self.recorded_layers:
                session.layer_input(layer - 1, input_ids)
            session.layer_input(layer, input_ids)
            with safe_open(self._shard(layer), "pt", device=str(self.device)) as stream:
                q, k, v = (
                    stream.get_slice(name)[:, start:end][None]
                    for name in ("q_HSD", "k_GSD", "v_GSD")
                )
            scale, softcap = self.manifest["args"][str(layer)]
            session.attend(layer, q, k, v, AttentionArgs(scale=scale, softcap=softcap))
        following = [*self._sample["ids"], self.end_id][end]
        logits = torch.zeros(1, 1, self.end_id + 1, device=self.device)
        logits[..., following] = 1
        return SimpleNamespace(logits=logits)

    def get_memory_footprint(self) -> int:
        """No weights."""
        return 0

    def predicted_query(self, layer: int) -> Tensor | None:
        """Recorded speculation of a layer's queries at the position at hand, ``q_BHTD``.

        None where the model had none either (the first layer with full attention).
        """
        with safe_open(self._shard(layer), "pt", device=str(self.device)) as stream:
            if "guess_HSD" not in stream.keys():  # noqa: SIM118
                return None
            offset = self._position - self._sample["first_decode"]
            recorded = stream.get_slice("guess_HSD")
            if 0 <= offset < recorded.get_shape()[1]:
                return recorded[:, offset : offset + 1][None]
        raise ValueError(
            f"{self._sample['id']}: no speculated queries were recorded for token "
            f"{self._position}; record the trace with the same protocol"
        )

    def _shard(self, layer: int) -> Path:
        return shard(self.folder, self._sample["index"], layer)

    def _find(self, ids_BS: Tensor) -> dict[str, Any]:
        if ids_BS.shape[0] != 1:
            raise ValueError("a trace replays one prompt at a time: engine.batch=1")
        prompt = ids_BS[0].tolist()
        for sample in self.manifest["samples"]:
            if sample["ids"][: sample["prompt_tokens"]] == prompt:
                return sample
        raise ValueError("this prompt is not in the trace; replay with task=trace")


class TraceTokenizer:
    """Maps the name of a recorded prompt to its ids. There is no text."""

    chat_template = None
    bos_token_id = None
    bos_token = None

    def __init__(self, manifest: dict[str, Any], end_id: int) -> None:
        self.eos_token_id = end_id
        self._ids = {s["id"]: s["ids"][: s["prompt_tokens"]] for s in manifest["samples"]}

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Ids of a prompt by name; other texts are empty."""
        return SimpleNamespace(input_ids=list(self._ids.get(text, [])))

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str:
        """Ids as numbers."""
        return " ".join(map(str, ids))

    def get_vocab(self) -> dict[str, int]:
        """Stands for the content of the trace in fingerprints."""
        return {digest(self._ids): 0}
