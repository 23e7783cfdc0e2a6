"""Prefilled prompts on disk: who develops a method waits for decode steps alone.

Off by default (``engine.prefill_cache_gib``). An entry is one safetensors file, named by a hash of
everything that decides it: model, prompts, split, chunks, what was asked to be kept. Its metadata
holds a checksum of the tensors; a damaged entry is computed again. The folder is bounded: what was
used longest ago goes first.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.cell import digest
from retrobench.core.method import AttentionArgs, Needs, PromptLayer
from retrobench.core.paths import cache_root, regular, replacing
from retrobench.engine.model_cache import fully_managed, make_cache
from retrobench.engine.prefill import PrefilledPrompt, pad_left, prefill
from retrobench.engine.rope import varies
from retrobench.engine.sparse_prefill import PrefillConfig, SparsePrefill

VERSION = 5  # of the file's layout
_PARTS = ("k_BGSD", "v_BGSD", "q_BHWD", "mass_BHS", "input_BWM", "cos_BSD", "sin_BSD")


class PrefillCache:
    """``capacity_gib`` of files; 0 keeps none."""

    def __init__(self, capacity_gib: float, folder: Path | None = None) -> None:
        self.capacity_bytes = int(capacity_gib * 2**30)
        self.folder = folder if folder is not None else cache_root() / "prefill"

    def prefill(
        self,
        model: PreTrainedModel,
        identity: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        *,
        needs: Needs,
        chunk_tokens: int,
        tail_tokens: int,
        kind: PrefillConfig | None = None,
        **options: Any,
    ) -> PrefilledPrompt:
        """``engine.prefill.prefill``, or what an earlier one left on disk."""
        settings = {"needs": needs, "chunk_tokens": chunk_tokens, "tail_tokens": tail_tokens}
        options["sparse"] = None if kind is None else SparsePrefill.of(kind)
        if not self.capacity_bytes or not _portable(model):
            return prefill(model, prompts, **settings, **options)
        kept = {name: value for name, value in asdict(needs).items() if name.startswith("prompt")}
        key = {
            "version": VERSION,
            "torch": torch.__version__,
            "device": model.device.type,
            "model": dict(identity),
            "prompts": list(map(list, prompts)),
            **settings,
            "needs": kept,
            **({} if kind is None else kind.identity),
        }
        if varies(model):
            key["room"] = options.get("room", 0)
        file = self.folder / f"{digest(key, 32)}.safetensors"
        if file.exists():
            found = self._read(file, model, prompts)
            if found is not None:
                return found
        made = prefill(model, prompts, **settings, **options)
        self._write(file, made)
        return made

    def _read(
        self, file: Path, model: PreTrainedModel, prompts: Sequence[Sequence[int]]
    ) -> PrefilledPrompt | None:
        try:
            with safe_open(regular(file), "pt") as stream:
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
                about = stream.metadata() or {}
            if about.pop("checksum") != _checksum(tensors, about):
                raise ValueError("its checksum differs")
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            print(f"prefill cache: {file.name} is computed again: {error}", file=sys.stderr)  # noqa: T201
            with contextlib.suppress(OSError):  # a folder
                file.unlink(missing_ok=True)
            return None
        os.utime(file)
        ids_BS, pads = pad_left(prompts, model.device)
        cache, managed = make_cache(model)
        tensors = {name: tensors[of] for name, of in json.loads(about["same"]).items()}
        layers = {}
        for layer in managed:
            parts = {name: tensors.get(f"{layer}.{name}") for name in _PARTS}
            parts = {name: x.to(model.device) for name, x in parts.items() if x is not None}
            scale, softcap = tensors[f"{layer}.args"].tolist()
            args = AttentionArgs(scale=scale, softcap=None if softcap < 0 else softcap)
            layers[layer] = PromptLayer(args=args, **parts)
        num_tokens = int(about["num_tokens"])
        for layer in cache.layers:
            layer.num_tokens = num_tokens  # type: ignore[attr-defined]
        return PrefilledPrompt(
            ids_BS=ids_BS,
            pad_tokens=pads,
            num_tokens=num_tokens,
            rope_tokens=tuple(map(int, about["rope_tokens"].split(","))),
            num_heads=int(about["num_heads"]),
            layers=layers,
            cache=cache,
            logits_BV=tensors["logits_BV"].to(model.device),
            seconds=float(about["seconds"]),
            attention=set(json.loads(about.get("attention", "[]"))),
            computed_frac=json.loads(about.get("computed_frac", "null")),
            origin="disk",
        )

    def _write(self, file: Path, prompt: PrefilledPrompt) -> None:
        tensors = {"logits_BV": prompt.logits_BV}
        for number, layer in prompt.layers.items():
            for name in _PARTS:
                if (part := getattr(layer, name)) is not None:
                    tensors[f"{number}.{name}"] = part
            softcap = -1.0 if layer.args.softcap is None else layer.args.softcap
            values = [layer.args.scale, softcap]
            tensors[f"{number}.args"] = torch.tensor(values, dtype=torch.float64)
        held: dict[Any, str] = {}  # a tensor that layers share is written once
        same = {
            name: held.setdefault((x.data_ptr(), x.shape, x.stride(), x.dtype), name)
            for name, x in tensors.items()
        }
        tensors = {name: tensors[name].cpu().contiguous() for name in held.values()}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if num_bytes > self.capacity_bytes:
            return
        about = {"num_tokens": str(prompt.num_tokens), "seconds": repr(prompt.seconds)}
        about["attention"] = json.dumps(sorted(prompt.attention))
        about["computed_frac"] = json.dumps(prompt.computed_frac)
        about["rope_tokens"] = ",".join(map(str, prompt.rope_tokens))
        about["num_heads"] = str(prompt.num_heads)
        about["same"] = json.dumps(same)
        about["checksum"] = _checksum(tensors, about)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(num_bytes)
            with replacing(file) as temporary:
                save_file(tensors, temporary, metadata=about)
        except (OSError, RuntimeError, SafetensorError) as error:
            print(f"prefill cache: {self.folder} cannot be written: {error}", file=sys.stderr)  # noqa: T201

    def _make_room(self, num_bytes: int) -> None:
        """Remove the files that were used longest ago; those of other processes may vanish."""
        known = []
        for path in self.folder.glob("*.safetensors"):
            try:
                known.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:
                continue
        held = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if held + num_bytes <= self.capacity_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size


def _portable(model: PreTrainedModel) -> bool:
    """Whether all of a prompt's state is in managed layers (no sliding windows, no trace)."""
    cache, managed = make_cache(model)
    return fully_managed(cache, managed) and not getattr(model, "replays", False)


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    hasher = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        hasher.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        hasher.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()
