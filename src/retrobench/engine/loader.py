"""Loads models and tokenizers: by Hugging Face id, local path, random weights, or embedded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from retrobench.core.spec import option
from retrobench.engine import hf

TINY_DIR = Path(__file__).parent / "tiny"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Options of ``model.*``."""

    name: str = option("", "name shown in rows and tables")
    source: str = option(
        "hf", "where weights come from", choices=("hf", "local", "constructed", "tiny")
    )
    id: str = option("", "Hugging Face id, e.g. meta-llama/Llama-3.1-8B-Instruct")
    revision: str = option("main", "branch, tag or commit of the id")
    path: str = option("", "folder of a local checkpoint")
    weights: str = option(
        "pretrained", "random: build from the config alone", choices=("pretrained", "random")
    )
    config_json: str = option("", "architecture for random weights, as JSON (needs no download)")
    tokenizer: str = option("", "tokenizer folder or id; empty: the model's own")
    dtype: str = option(
        "auto", "weights and KV cache", choices=("auto", "float32", "float16", "bfloat16")
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:0 ...")
    device_map: str = option("", "accelerate's device map, e.g. auto, for several GPUs")
    chat: bool = option(True, "use the tokenizer's chat template where it has one")
    trust_remote_code: bool = option(False, "run code from the model's repository")
    max_context_tokens: int = option(0, "lower the context limit; 0: the model's own", low=0)


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A model ready for sessions. ``identity`` goes into the cell key."""

    model: PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    context_limit: int | None
    supported_tasks: frozenset[str] | None = None


def load(config: ModelConfig) -> Loaded:
    """Load weights and tokenizer; ValueError naming what is missing and how to get it."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"model.device={config.device}: no CUDA device here; use model.device=cpu")
    dtype_name = config.dtype
    if dtype_name == "auto":
        dtype_name = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, dtype_name)
    supported = None
    if config.source == "constructed":
        from retrobench.engine import embedded

        model, tokenizer = embedded.load_constructed(dtype)
        revision, supported = embedded.content_hash(), frozenset(embedded.SUPPORTED_TASKS)
    elif config.source == "tiny":
        model = AutoModelForCausalLM.from_pretrained(TINY_DIR, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(TINY_DIR)
        revision = _folder_hash(TINY_DIR)
        card = TINY_DIR / "supported_tasks.json"
        supported = frozenset(json.loads(card.read_text())) if card.exists() else None
    else:
        model, tokenizer, revision = _load_checkpoint(config, dtype)
    if not config.device_map:
        model = model.to(device)  # type: ignore[arg-type]
    model.eval()
    hf.attach(model)
    limit = hf.context_limit(model)
    if config.max_context_tokens:
        limit = min(limit or config.max_context_tokens, config.max_context_tokens)
    identity = {
        "name": config.name or config.id or config.path,
        "source": config.source,
        "revision": revision,
        "weights": config.weights,
        "dtype": dtype_name,
        "chat": config.chat,
        "max_context_tokens": config.max_context_tokens,
    }
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        identity=identity,
        context_limit=limit,
        supported_tasks=supported,
    )


def _load_checkpoint(config: ModelConfig, dtype: torch.dtype) -> tuple[Any, Any, str]:
    source = config.path if config.source == "local" else config.id
    common: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.source == "local":
        if not config.path:
            raise ValueError("model=local needs model.path=FOLDER (a transformers checkpoint)")
        if not (Path(config.path) / "config.json").exists():
            raise ValueError(f"model.path={config.path}: no config.json in that folder")
    elif config.config_json and config.weights == "random":
        source = ""
    else:
        if not config.id:
            raise ValueError("model=hf needs model.id=org/name")
        common["revision"] = config.revision
    try:
        if config.weights == "random":
            model = _random(config, source, dtype, common)
            revision = "random-seed0"
        else:
            extra = {"device_map": config.device_map} if config.device_map else {}
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **extra, **common
            )
            commit = getattr(model.config, "_commit_hash", None)
            revision = commit or _folder_hash(Path(source))
        tokenizer_source = config.tokenizer or source
        tokenizer = _tokenizer(tokenizer_source, common) if tokenizer_source else None
    except OSError as error:
        what = config.path if config.source == "local" else config.id
        raise ValueError(
            f"model {what!r} could not be loaded: {str(error).splitlines()[0]} "
            f"Fetch it with `hf download {what}` or use model=local model.path=FOLDER."
        ) from error
    if tokenizer is None:
        from retrobench.engine.embedded.tokenizer import build_tokenizer

        tokenizer = build_tokenizer()
    return model, tokenizer, revision


def _tokenizer(source: str, common: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(source, **common)


def _random(
    config: ModelConfig, source: str, dtype: torch.dtype, common: dict[str, Any]
) -> PreTrainedModel:
    if config.config_json:
        values = json.loads(config.config_json)
        model_config = AutoConfig.for_model(values.pop("model_type"), **values)
    else:
        model_config = AutoConfig.from_pretrained(source, **common)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(model_config, dtype=dtype)


def _folder_hash(folder: Path) -> str:
    """Hash of names and contents of the files that decide a checkpoint."""
    hasher = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in {".json", ".safetensors", ".jinja", ".model"}:
            hasher.update(path.name.encode())
            with path.open("rb") as stream:
                while block := stream.read(1 << 24):
                    hasher.update(block)
    return hasher.hexdigest()[:16]
