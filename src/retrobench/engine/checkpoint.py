"""Checkpoints of transformers: a Hub id, a folder, or a model that was fetched.

All weights are read or none, since a hole would be filled with random numbers.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from retrobench.core.paths import regular
from retrobench.core.words import first_line
from retrobench.engine.context import claimed_limit, set_rope
from retrobench.engine.model_config import ModelConfig
from retrobench.fetch import digests
from retrobench.fetch.models import fetched, from_gguf

_SHOWN = 5  # tensors named in a message
_LAYER = re.compile(r"\.\d+\.")


def read_weights(source: str, **options: Any) -> PreTrainedModel:
    """The model of a folder or Hugging Face id, from safetensors.

    ``options`` as ``from_pretrained`` takes them. ValueError names tensors that are missing (tied
    ones are not), of another shape than the configuration says or left over in the model's own
    layers, and files that are damaged.
    """
    try:
        model, about = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, all at once
            **options,
        )
    except SafetensorError as error:
        where = _damaged_file(source)
        raise ValueError(f"{where} is damaged ({error}); fetch the checkpoint again") from error
    wrong = []
    if missing := about["missing_keys"]:
        wrong.append(f"has no {_listed(missing)}")
    if mismatched := about["mismatched_keys"]:
        shapes = (f"{name} {tuple(has)} not {tuple(wants)}" for name, has, wants in mismatched)
        wrong.append(f"has other shapes than its config.json says: {_listed(shapes)}")
    if left := _of_layers(about["unexpected_keys"], model):
        wrong.append(f"has tensors that its config.json has no place for: {_listed(left)}")
    if wrong:
        raise ValueError(
            f"model {source!r} {'; '.join(wrong)}. Fetch the checkpoint again, or use the "
            "config.json that belongs to it"
        )
    return model


def architecture(text: str) -> Any:
    """The configuration that ``model.config_json`` writes out."""
    try:
        values = dict(json.loads(text))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:
        raise ValueError(
            f"model.config_json={text}: not the configuration of a model ({first_line(error)}); "
            'write a JSON object like {"model_type": "llama", "hidden_size": 64}'
        ) from error


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Whatever transformers raises on files that it does not understand, as a ValueError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and what in str(error):
            raise
        raise ValueError(
            f"model {what!r}: config.json or the tokenizer's files are not as transformers wants "
            f"them: {first_line(error)}; fetch the checkpoint again"
        ) from error


def _of_layers(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Names in the stacks of layers that the model has (not in a vision tower, for instance)."""
    stacks = {_LAYER.split(name)[0] for name in model.state_dict() if _LAYER.search(name)}
    found = (name for name in names if _LAYER.search(name) and "rotary_emb" not in name)
    return [name for name in found if _LAYER.split(name)[0] in stacks]


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _damaged_file(source: str) -> str:
    """The first weights file of a folder that cannot be opened, or the source itself."""
    for path in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return str(path)
    return f"a weights file of {source}"


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
