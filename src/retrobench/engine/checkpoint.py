"""Checkpoints of transformers: a Hub id, a folder, or a model that was fetched."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from retrobench.core.paths import regular
from retrobench.core.words import first_line
from retrobench.engine.context import claimed_limit, set_rope
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.weights import architecture, read_weights, readable
from retrobench.fetch import digests
from retrobench.fetch.models import fetched, from_gguf

logging.disable_progress_bar()  # a run has its own line, and none where progress=false


def describe(config: ModelConfig, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Architecture on the meta device, tokenizer, revision; ValueError naming what is missing."""
    if config.source == "local":
        if not config.path:
            raise ValueError(
                "model=local needs model.path=FOLDER (a transformers checkpoint) or FILE.gguf"
            )
        path = Path(config.path).expanduser()
        if not path.is_file() and not (path / "config.json").exists():
            raise ValueError(f"model.path={config.path}: no config.json in that folder")
    elif not config.id and not config.config_json:
        raise ValueError("model=hf needs model.id=org/name")
    source, common = _source(config)
    for folder in filter(None, (source, config.tokenizer)):
        _check_files(Path(folder).expanduser())
    _, pinned = _made(config) or (None, None)
    with _missing(config), readable(source or config.config_json):
        if config.config_json and config.weights == "random":
            model_config, source = architecture(config.config_json), ""
        else:
            model_config = AutoConfig.from_pretrained(source, **common)
        set_rope(model_config, config.rope_scaling)
        if config.weights == "random":
            revision = "random-seed0"
        else:
            commit = getattr(model_config, "_commit_hash", None)
            revision = pinned or commit or folder_hash(Path(source))
        tokenizer_source = config.tokenizer or source
        if tokenizer_source:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, **common)
        else:
            from retrobench.engine.embedded.tokenizer import build_tokenizer

            tokenizer = build_tokenizer()
        meta_model = build_meta_model(model_config, dtype, config.trust_remote_code)
        tokenizer("a")  # values of a wrong type show here
        claimed_limit(model_config)
    return meta_model, tokenizer, revision


def load(config: ModelConfig, dtype: torch.dtype, described: Any) -> PreTrainedModel:
    """The model with its weights, from safetensors alone; ``described`` is its changed config."""
    source, common = _source(config)
    if config.rope_scaling:
        common["config"] = described
    if config.device_map:
        common["device_map"] = config.device_map
    with _missing(config):
        return read_weights(source, dtype=dtype, **common)


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    common: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if (made := _made(config)) is not None:
        return str(made[0]), common
    if config.source == "local":
        return config.path, common
    return config.id, {**common, "revision": config.revision}


def weight_files(config: ModelConfig) -> list[Path]:
    """The safetensors files of a model that is here; empty for one of random weights."""
    if config.weights == "random":
        return []
    folder, _ = _source(config)
    if not Path(folder).expanduser().is_dir():
        try:
            folder = snapshot_download(folder, revision=config.revision, local_files_only=True)
        except (OSError, ValueError):
            return []
    return sorted(Path(folder).expanduser().glob("*.safetensors"))


def shown_name(config: ModelConfig) -> str:
    """The name in rows: a GGUF file goes by its own name, wherever it lies."""
    path = Path(config.path)
    named = path.stem if path.suffix == ".gguf" else config.path
    return config.name or config.id or named


def _made(config: ModelConfig) -> tuple[Path, str] | None:
    """Folder and revision of a checkpoint that was converted from GGUF; None for any other."""
    if config.source == "fetched":
        return fetched(config.id)
    path = Path(config.path).expanduser()
    if config.source == "local" and path.is_file():
        return from_gguf(path, lambda text: print(text, file=sys.stderr))  # noqa: T201
    return None


@contextlib.contextmanager
def _missing(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what, advice = config.path or config.id, ""
        if config.source == "hf":
            what = config.id
            advice = f"Fetch it with `retrobench fetch {what}` or use model=local model.path=FOLDER"
        raise ValueError(
            f"model {what!r} could not be loaded: {first_line(error)} {advice}"
        ) from error


def build_meta_model(config: Any, dtype: torch.dtype, remote: bool = False) -> PreTrainedModel:
    """The architecture without data: no memory, well under a second for an 8B model."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=remote)


def folder_hash(folder: Path) -> str:
    """Hash of names and contents of the files that decide a checkpoint."""
    return digests.of_files(path for path in _deciding_files(folder) if path.is_file())


def _deciding_files(folder: Path) -> list[Path]:
    suffixes = {".json", ".safetensors", ".jinja", ".model"}
    return [path for path in sorted(folder.glob("*")) if path.suffix in suffixes]


def _check_files(folder: Path) -> None:
    """ValueError for what stands in a file's place in a checkpoint (a pipe would be waited for)."""
    for path in _deciding_files(folder):
        regular(path)
