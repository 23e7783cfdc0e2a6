"""Loads models and tokenizers: by Hugging Face id, local path, random weights, or embedded."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from retrobench.core import traces
from retrobench.core.cell import digest
from retrobench.engine import checkpoint, hf
from retrobench.engine.context import beyond_claim, context_limit, parse_rope, set_limit
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.quantized import quantize
from retrobench.engine.queries import stored_weights_id, weights_id
from retrobench.engine.replay import TraceModel, TraceTokenizer
from retrobench.engine.traits import serve, traits


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A model ready for sessions. ``identity`` goes into the cell key."""

    model: PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    context_limit: int | None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends an answer."""
        return hf.stop_ids(self.model, self.tokenizer)


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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a row must say of the model."""
        name = self.identity["name"]
        found = [beyond_claim(self.meta_model, name)]
        if untried := traits(self.meta_model).untried:
            found.append(f"{name} was not compared with transformers' own attention: {untried}")
        return tuple(filter(None, found))


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
    else:
        meta_model, tokenizer, revision = checkpoint.describe(config, dtype)
    set_limit(meta_model, config.max_context_tokens)
    chosen: dict[str, Any] = {}
    if config.quantize != "none":
        if device != "cpu" or dtype_name != "bfloat16":
            raise ValueError(
                f"model.quantize={config.quantize} multiplies bfloat16 on a CPU, not {dtype_name} "
                f"on {device}: use model.dtype=bfloat16 model.device=cpu, or model.quantize=none"
            )
        quantize(meta_model)
        chosen["quantize"] = config.quantize
    if config.chat_template:
        tokenizer.chat_template = _template(config.chat_template)
        chosen["chat_template"] = digest(tokenizer.chat_template)
    if config.rope_scaling:
        chosen["rope_scaling"] = parse_rope(config.rope_scaling)
    identity = {
        "name": checkpoint.shown_name(config),
        "source": config.source,
        "revision": revision,
        "weights": config.weights,
        "dtype": dtype_name,
        "chat": config.chat,
        "max_context_tokens": config.max_context_tokens,
        **chosen,
    }
    return ModelInfo(
        meta_model=meta_model,
        tokenizer=tokenizer,
        identity=identity,
        context_limit=context_limit(meta_model),
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
    return Loaded(
        model=info.meta_model if config.source == "trace" else _with_weights(config, info),
        tokenizer=info.tokenizer,
        identity=info.identity,
        context_limit=info.context_limit,
    )


def _with_weights(config: ModelConfig, info: ModelInfo) -> PreTrainedModel:
    """The model on its device, attached to the engine."""
    found = serve(info.meta_model)
    dtype = info.meta_model.dtype
    if config.source == "constructed":
        model = info.meta_model
    elif config.weights == "random":
        torch.manual_seed(0)
        with torch.device(info.device):  # billions of random numbers take minutes on a CPU
            model = AutoModelForCausalLM.from_config(info.meta_model.config, dtype=dtype)
    else:
        model = checkpoint.load(config, dtype, info.meta_model.config)
    set_limit(model, config.max_context_tokens)
    model.whole_prompt = found.whole_prompt  # type: ignore[assignment]
    if not config.device_map:
        model = model.to(info.device)  # type: ignore[arg-type]
    model.eval()
    if config.quantize != "none":
        quantize(model)
    hf.attach(model)
    return model


_FEW_BYTES = 2**30  # of weights, that may be read for a plan
_resident: dict[ModelConfig, Loaded] = {}


def resident(config: ModelConfig) -> Loaded:
    """The loaded model; the last one stays for the next cell of the process, two never do."""
    if config not in _resident:
        _resident.clear()
        _resident[config] = load(config)
    return _resident[config]


def known_weights_id(config: ModelConfig) -> str | None:
    """``weights_id`` of a model, cheaply; None where only reading many weights would tell.

    None for the constructed model too: its calibration is made when a run asks for it.
    """
    info = describe(config)
    if config.source == "constructed":
        return None
    if config.source == "trace":
        return weights_id(info.meta_model)
    if not is_resident(config):
        found = stored_weights_id(info.meta_model, checkpoint.weight_files(config))
        if found is not None or info.weight_bytes > _FEW_BYTES:
            return found
    return weights_id(resident(config).model)


def model_devices(model: PreTrainedModel) -> tuple[str, ...]:
    """Every device that holds layers of a model, its first one first."""
    mapped = dict(getattr(model, "hf_device_map", None) or {}).values()
    places = (f"cuda:{place}" if isinstance(place, int) else str(place) for place in mapped)
    return tuple(dict.fromkeys((str(model.device), *places)))


def is_resident(config: ModelConfig) -> bool:
    """Whether the weights are in memory already."""
    return config in _resident


def _describe_trace(config: ModelConfig, device: str) -> ModelInfo:
    """A recorded trace in the place of a model; its identity is the manifest's."""
    if not config.path:
        raise ValueError("model=trace needs model.path=FOLDER (model=trace:FOLDER says the same)")
    folder = traces.trace_folder(config.path)
    try:
        model = TraceModel(folder, device)
        recorded = model.manifest["model"]
        content = traces.content_digest(model.manifest)
        identity = {**recorded, "source": "trace", "trace": content}
        identity["name"] = config.name or f"trace of {recorded['name']}"
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / traces.MANIFEST}: not the manifest of a trace (it lacks {error}); record "
            "the trace again with task=trace"
        ) from error
    return ModelInfo(
        meta_model=model,  # type: ignore[arg-type]
        tokenizer=TraceTokenizer(model.manifest, model.end_id),
        identity=identity,
        context_limit=None,
        device=device,
    )
