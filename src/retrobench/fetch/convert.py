"""GGUF to a transformers checkpoint: bfloat16 weights, config, tokenizer, generation config.

Done once, because it takes up to minutes; runs then load safetensors. A file is looked at before it
is converted: refusals name the file and the cause.
"""

import contextlib
import copy
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any


def open_file(file: Path) -> Any:
    """A ``gguf.GGUFReader``; ValueError naming a file that is no GGUF, damaged or unsupported."""
    from gguf import GGUFReader

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file")
    try:
        reader = GGUFReader(file)
    except Exception as error:  # a damaged file breaks the reader anywhere
        raise ValueError(
            f"{file} is damaged, cut off, or of a kind that the package gguf cannot read: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_parts(file, reader)
    _check_architecture(file, reader)
    _check_quantisation(file, reader)
    return reader


def value(reader: Any, key: str) -> Any:
    """A metadata value, or None."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _check_parts(file: Path, reader: Any) -> None:
    parts = value(reader, "split.count") or 1
    if parts > 1:
        raise ValueError(
            f"{file} is one of {parts} parts: join them first (llama-gguf-split --merge)"
        )


def _check_architecture(file: Path, reader: Any) -> None:
    from transformers import modeling_gguf_pytorch_utils as loading

    known = set(loading.GGUF_SUPPORTED_ARCHITECTURES)
    try:  # the newer of the two readers, where this version of transformers has it
        from transformers.integrations.gguf import GGUF_ARCHS  # type: ignore[attr-defined]

        known |= set(GGUF_ARCHS)
    except ImportError:
        pass
    # as the files spell some that transformers spells otherwise
    spelled = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}
    spelled["minimax-m2"] = "minimax_m2"
    name = value(reader, "general.architecture")
    if spelled.get(name, name) not in known:
        raise ValueError(
            f"{file}: architecture {name!r} is not among those that transformers reads from GGUF: "
            f"{', '.join(sorted(known))}"
        )


def _check_quantisation(file: Path, reader: Any) -> None:
    """Every type of tensor is dequantised once, on one row."""
    from gguf import quants

    for tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():
        try:
            quants.dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            names = sorted(kind.name for kind in quants._type_traits)
            raise ValueError(
                f"{file}: quantisation {tensor.tensor_type.name} ({tensor.name}) cannot be read. "
                f"Supported: F16, F32, {', '.join(names)}"
            ) from error


def rope_scaling(file: Path, reader: Any, config: Any) -> dict[str, Any]:
    """Rope parameters that the file has and transformers leaves out; empty if there are none.

    Linear and YaRN scaling stand in the metadata, llama3's factors in a tensor. ValueError for
    any other kind: a model that ignores its scaling is wrong in long contexts without a word.
    """
    own = getattr(config, "rope_parameters", None) or {}
    if own.get("rope_type", "default") != "default" or "full_attention" in own:
        return {}  # read by transformers, or by kind of layer
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "rope_freqs.weight" in tensors:
        return _llama3(file, tensors["rope_freqs.weight"].data, config)
    prefix = f"{value(reader, 'general.architecture')}.rope.scaling."
    keys = [key for key in reader.fields if key.startswith(prefix)]
    given = {key.removeprefix(prefix): value(reader, key) for key in keys}
    kind = given.pop("type", "none")
    if any(name.startswith("rope_factors_") for name in tensors):
        kind = "longrope"
    if kind == "none":
        return {}
    names = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    names |= {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
    unknown = sorted(set(given) - set(names) - {"finetuned"})
    if kind not in {"linear", "yarn"} or unknown:
        raise ValueError(
            f"{file}: rope scaling {kind!r} with {', '.join(unknown) or 'its factors'} cannot be "
            "converted; use the model's safetensors (model=hf or model=local model.path=FOLDER)"
        )
    found = {names[key]: v for key, v in given.items() if key in names}
    if kind == "linear":
        found.pop("original_max_position_embeddings", None)
    return {**own, "rope_type": kind, **found}


def _llama3(file: Path, factors: Any, config: Any) -> dict[str, Any]:
    """llama3's parameters whose factors by frequency are those of the file."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted = torch.tensor(factors.astype("float32").reshape(-1))
    dims = torch.arange(0, 2 * len(wanted), 2)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (dims.float() / (2 * len(wanted)))
    tried = copy.deepcopy(config)
    tried.rope_parameters = {
        **config.rope_parameters,
        "rope_type": "llama3",
        "factor": float(wanted.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made, _ = ROPE_INIT_FUNCTIONS["llama3"](tried, torch.device("cpu"))
    if not torch.allclose(plain / made, wanted, rtol=1e-3):
        raise ValueError(
            f"{file}: its rope_freqs are not those of llama3's scaling and cannot be converted; "
            "use the model's safetensors (model=hf or model=local model.path=FOLDER)"
        )
    return tried.rope_parameters


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
    reader = open_file(file)
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
        if scaling := rope_scaling(file, reader, model.config):
            model.config.rope_parameters = scaling
        if value(reader, "tokenizer.ggml.pre") in _SINGLE_DIGITS:
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
