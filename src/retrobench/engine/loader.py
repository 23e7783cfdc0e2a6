"""Loads models and tokenizers: by Hugging Face id, local path, random weights, or embedded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from retrobench.core.cell import digest
from retrobench.engine import hf
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.replay import TraceModel, TraceTokenizer
from retrobench.fetch import digests
from retrobench.fetch.models import fetched

TINY_DIR = Path(__file__).parent / "tiny"
SUPPORTED = "supported_tasks.json"  # which tasks the model does; decided by its own scores


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A model ready for sessions. ``identity`` goes into the cell key."""

    model: PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    context_limit: int | None


@dataclass(slots=True, kw_only=True)
class ModelInfo:
    """A model before its weights are read: enough for keys, shapes and bytes.

    ``meta_model`` is the architecture on the meta device (or an embedded model, which is small).
    """

    meta_model: PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    context_limit: int | None
    device: str

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return self.meta_model.get_memory_footprint()


@lru_cache(maxsize=4)
def describe(config: ModelConfig) -> ModelInfo:
    """Architecture, tokenizer and revision; ValueError naming what is missing and how to get it."""
    device = _device(config.device)
    dtype_name = config.dtype
    if dtype_name == "auto":
        dtype_name = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, dtype_name)
    if config.source == "trace":
        return _describe_trace(config, device)
    if config.source == "constructed":
        from retrobench.engine import embedded

        meta_model, tokenizer = embedded.load_constructed(dtype)
        revision = embedded.content_hash()
    elif config.source == "tiny":
        meta_model = _build_meta_model(AutoConfig.from_pretrained(TINY_DIR), dtype)
        tokenizer = AutoTokenizer.from_pretrained(TINY_DIR)
        revision = _folder_hash(TINY_DIR)
    else:
        meta_model, tokenizer, revision = _describe_checkpoint(config, dtype)
    limit = hf.context_limit(meta_model)
    if config.max_context_tokens:
        limit = min(limit or config.max_context_tokens, config.max_context_tokens)
    template = {}
    if config.chat_template:
        tokenizer.chat_template = _template(config.chat_template)
        template = {"chat_template": digest(tokenizer.chat_template)}
    identity = {
        "name": config.name or config.id or config.path,
        "source": config.source,
        "revision": revision,
        "weights": config.weights,
        "dtype": dtype_name,
        "chat": config.chat,
        "max_context_tokens": config.max_context_tokens,
        **template,
    }
    return ModelInfo(
        meta_model=meta_model,
        tokenizer=tokenizer,
        identity=identity,
        context_limit=limit,
        device=device,
    )


def _device(name: str) -> str:
    """``auto`` resolved; ValueError for a device that torch does not know or that is not here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    here = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in here:
        lacks = "" if count or not name.startswith("cuda") else ": no CUDA device here"
        raise ValueError(f"model.device={name}{lacks}; use one of {', '.join(here)}")
    return name


def _template(text: str) -> str:
    """The template that ``model.chat_template`` names or is."""
    if "{{" in text or "{%" in text:
        return text
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"model.chat_template={text}: no such file, and no template")
    return path.read_text(encoding="utf-8")


def load(config: ModelConfig) -> Loaded:
    """Load weights and tokenizer; ValueError naming what is missing and how to get it."""
    info = describe(config)
    if config.source == "trace":
        return Loaded(
            model=info.meta_model,
            tokenizer=info.tokenizer,
            identity=info.identity,
            context_limit=info.context_limit,
        )
    dtype = info.meta_model.dtype
    if config.source == "constructed":
        model = info.meta_model
    elif config.source == "tiny":
        model = AutoModelForCausalLM.from_pretrained(TINY_DIR, dtype=dtype)
    elif config.weights == "random":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(info.meta_model.config, dtype=dtype)
    else:
        model = _load_checkpoint(config, dtype)
    if not config.device_map:
        model = model.to(info.device)  # type: ignore[arg-type]
    model.eval()
    hf.attach(model)
    return Loaded(
        model=model,
        tokenizer=info.tokenizer,
        identity=info.identity,
        context_limit=info.context_limit,
    )


_resident: dict[ModelConfig, Loaded] = {}


def resident(config: ModelConfig) -> Loaded:
    """The loaded model; the last one stays for the next cell of the process, two never do."""
    if config not in _resident:
        _resident.clear()
        _resident[config] = load(config)
    return _resident[config]


def is_resident(config: ModelConfig) -> bool:
    """Whether the weights are in memory already."""
    return config in _resident


def _describe_trace(config: ModelConfig, device: str) -> ModelInfo:
    """A recorded trace in the place of a model; its identity is the manifest's."""
    if not config.path:
        raise ValueError("model=trace needs model.path=FOLDER (model=trace:FOLDER says the same)")
    model = TraceModel(Path(config.path), device)
    recorded = model.manifest["model"]
    identity = {**recorded, "source": "trace", "trace": digest(model.manifest)}
    identity["name"] = config.name or f"trace of {recorded['name']}"
    return ModelInfo(
        meta_model=model,  # type: ignore[arg-type]
        tokenizer=TraceTokenizer(model.manifest, model.end_id),
        identity=identity,
        context_limit=None,
        device=device,
    )


def _describe_checkpoint(config: ModelConfig, dtype: torch.dtype) -> tuple[Any, Any, str]:
    if config.source == "local":
        if not config.path:
            raise ValueError("model=local needs model.path=FOLDER (a transformers checkpoint)")
        if not (Path(config.path) / "config.json").exists():
            raise ValueError(f"model.path={config.path}: no config.json in that folder")
    elif not config.id and not config.config_json:
        raise ValueError("model=hf needs model.id=org/name")
    source, common = _source(config)
    pinned = fetched(config.id)[1] if config.source == "fetched" else None
    with _missing(config):
        if config.config_json and config.weights == "random":
            values = json.loads(config.config_json)
            model_config = AutoConfig.for_model(values.pop("model_type"), **values)
            source = ""
        else:
            model_config = AutoConfig.from_pretrained(source, **common)
        if config.weights == "random":
            revision = "random-seed0"
        else:
            commit = getattr(model_config, "_commit_hash", None)
            revision = pinned or commit or _folder_hash(Path(source))
        tokenizer_source = config.tokenizer or source
        if tokenizer_source:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, **common)
        else:
            from retrobench.engine.embedded.tokenizer import build_tokenizer

            tokenizer = build_tokenizer()
    return _build_meta_model(model_config, dtype, config.trust_remote_code), tokenizer, revision


def _load_checkpoint(config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    source, common = _source(config)
    if config.device_map:
        common["device_map"] = config.device_map
    with _missing(config):
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **common
        )


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    common: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.source == "local":
        return config.path, common
    if config.source == "fetched":
        return str(fetched(config.id)[0]), common
    return config.id, {**common, "revision": config.revision}


@contextlib.contextmanager
def _missing(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = config.path if config.source == "local" else config.id
        raise ValueError(
            f"model {what!r} could not be loaded: {str(error).splitlines()[0]} "
            f"Fetch it with `hf download {what}` or use model=local model.path=FOLDER."
        ) from error


def _build_meta_model(config: Any, dtype: torch.dtype, remote: bool = False) -> PreTrainedModel:
    """The architecture without data: no memory, well under a second for an 8B model."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=remote)


def _folder_hash(folder: Path) -> str:
    """Hash of names and contents of the files that decide a checkpoint."""
    suffixes = {".json", ".safetensors", ".jinja", ".model"}
    paths = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in suffixes and path.name != SUPPORTED
    ]
    return digests.of_files(paths)
