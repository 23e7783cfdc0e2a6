"""GGUF to a transformers checkpoint: bfloat16 weights, config, tokenizer, generation config.

Done once, because it takes up to minutes; runs then load safetensors.
"""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

from retrobench.fetch import gguf_file

VERSION = 1  # part of a model's identity: raise it when the same file converts to something else
# Vocabularies whose merges were learned with every digit a word of its own (as llama.cpp splits
# them); transformers reads the vocabulary and the merges, but not this.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}


def convert(file: Path, folder: Path) -> None:
    """Write the checkpoint of a GGUF file into ``folder``. The weights are dequantised.

    ValueError if transformers cannot read the file or finds no value for some weight.
    """
    import torch
    import transformers

    check_packages()
    reader = gguf_file.open_file(file)
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
    }
    with _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, output_loading_info=True, **_dequantise(transformers)
        )
        if lost := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
            raise ValueError(f"{file}: no value for {', '.join(lost[:4])} ({len(lost)} weights)")
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{file} is damaged: {name} holds values that are not finite")
        if scaling := gguf_file.rope_scaling(file, reader, model.config):
            model.config.rope_parameters = scaling
        if gguf_file.value(reader, "tokenizer.ggml.pre") in _SINGLE_DIGITS:
            _split_digits(tokenizer)
        _as_unquantised(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Progress bars for a terminal, nothing for a log file."""
    if sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())


def check_packages() -> None:
    """ValueError naming what has to be installed before a GGUF file can be read."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"reading GGUF needs {' and '.join(missing)}: pip install 'retrobench[gguf]'"
        )


def _dequantise(transformers: Any) -> dict[str, Any]:
    """The option that unpacks all weights, for versions that could keep them packed."""
    config_class = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config_class(dequantize=True)} if config_class else {}


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _as_unquantised(model: Any) -> None:
    """Take away the marks of the packed file, which forbid saving; the weights are plain."""
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.is_quantized = False
    model.hf_quantizer = None
