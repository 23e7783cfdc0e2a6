"""Reads a checkpoint: all weights or none, since a hole would be filled with random numbers."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from retrobench.core.words import first_line

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
