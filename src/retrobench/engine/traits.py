"""What an architecture needs of the engine, found by trying it before any weights are read.

Two looks, both at the configuration alone: a forward on the meta device tells which layers reach
the attention function, and with which shapes; a small copy with random weights
(``engine.small_model``) is compared with transformers' own forward (``engine.trial``). The answer
is kept on disk.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from retrobench.core import json_cache
from retrobench.core.cell import digest
from retrobench.core.paths import cache_root
from retrobench.engine import hf, small_model, trial
from retrobench.engine.context import context_limit
from retrobench.engine.model_cache import is_recurrent, make_cache
from retrobench.engine.pre_rope import Watcher, why_no_pre_rope_keys

Call = tuple[int, tuple[int, int, int]]  # layer, (query heads, KV heads, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The managed layers and their shapes; what the engine must do, or why it cannot serve.

    ``head_dim`` is that of keys or values, whichever is wider. ``whole_prompt``: the model's
    recurrent state is wrong after a second chunk. ``equal_rows``: rows of different length in one
    batch are wrong. ``untried`` says why no small copy could be compared. ``no_pre_rope_keys``: why
    keys cannot be had as they were before RoPE.
    """

    layers: tuple[int, ...] = ()
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    whole_prompt: bool = False
    equal_rows: bool = False
    refusal: str = ""
    untried: str = ""
    no_pre_rope_keys: str = ""


_known: dict[str, Traits] = {}  # of this process, by ``_key``


def traits(model: PreTrainedModel) -> Traits:
    """Of a model, its weights read or not."""
    own = getattr(model, "traits", None)  # a trace, or a small copy under trial
    if own is not None:
        return own
    key = _key(model)
    if key not in _known:
        file = cache_root() / "architectures" / f"{key}.json"
        values = json_cache.read(file)
        if values is None:
            found = examine(model)
            json_cache.write(file, dataclasses.asdict(found))
        else:
            found = Traits(**{**values, "layers": tuple(values["layers"])})
        _known[key] = found
    return _known[key]


def serve(model: PreTrainedModel) -> Traits:
    """Its traits; ``hf.Unserved`` with the reason if no method can serve it."""
    found = traits(model)
    if found.refusal:
        raise hf.Unserved(found.refusal)
    return found


def _key(model: PreTrainedModel) -> str:
    """Everything that decides the answer: class, config, limit, libraries and our own code."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "architectures", "dtype", "_attn_implementation"):
        config.pop(name, None)
    libraries = [transformers.__version__, torch.__version__, _our_code()]
    return digest([type(model).__name__, config, context_limit(model), libraries], 32)


@cache
def _our_code() -> str:
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


@dataclass(slots=True)
class Seen:
    """What a look at an architecture saw: the small copy, and its differences of each mode."""

    copied: PreTrainedModel | None = None
    allowed: float = trial.RIGHT
    differences: dict[str, float] = field(default_factory=dict)


def examine(model: PreTrainedModel, seen: Seen | None = None) -> Traits:
    """Look at an architecture; a refusal is part of the answer. ``seen`` is filled."""
    family, level = type(model).__name__, logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return _examined(model, Seen() if seen is None else seen)
    except (hf.Unserved, hf.MethodBypassed) as error:
        return Traits(refusal=str(error))
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Traits(refusal=f"model {family} cannot be served: {why}")
    finally:
        logging.set_verbosity(level)


def _examined(model: PreTrainedModel, seen: Seen) -> Traits:
    family = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise hf.Unserved(f"model {family} is an encoder and a decoder, not a decoder alone")
    layers = make_cache(model)[1]
    with torch.device("meta"):
        meta = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.bfloat16).eval()
    calls = _calls(meta, raises=False)
    copied, untried = _copy(model)
    if calls is None and copied is not None:  # a router that needs values: ask the small copy
        calls = _as_configured(model, layers, copied)
    if calls is None:
        raise hf.Unserved(
            f"model {family} does not run: {untried}"
            if untried
            else f"the shapes of the keys of model {family} are not what its config says"
        )
    hf.check_reached(model, layers, {layer for layer, _ in calls})
    found = _of_calls(model, layers, calls)
    if copied is None:
        unknown = "no small copy of this model could be tried"
        return dataclasses.replace(found, untried=untried, no_pre_rope_keys=unknown)
    seen.copied = copied
    found = _tried(copied, found, seen)
    return dataclasses.replace(found, no_pre_rope_keys=why_no_pre_rope_keys(copied))


@torch.inference_mode()
def _calls(model: PreTrainedModel, raises: bool = True) -> list[Call] | None:
    """Calls of managed layers in a forward of a few tokens; None where it cannot run (on meta).

    hf.Unserved for what no method can serve.
    """
    cache, layers = make_cache(model)
    watcher = Watcher(layers, model.device)
    try:
        hf.attach(model)
        hf.forward(model, watcher.ids_BS, cache, watcher)
    except hf.Unserved:
        raise
    except Exception:
        if raises:
            raise
        return None
    return watcher.calls


def _as_configured(
    model: PreTrainedModel, layers: tuple[int, ...], copied: PreTrainedModel
) -> list[Call] | None:
    """Calls with the shapes that the config names, if its names hold for the small copy."""
    seen = {shape for _, shape in _calls(copied) or ()}
    named = zip(_configured(copied), _configured(model), strict=True)
    shape = next((whole for small, whole in named if seen == {small}), None)
    return None if shape is None else [(layer, shape) for layer in layers]


def _configured(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, width) as configs may name them."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    names = ("head_dim", "kv_channels")
    dims = [getattr(config, name, None) or config.hidden_size // heads for name in names]
    if rope := getattr(config, "qk_rope_head_dim", None):  # latent attention
        dims.append(max(rope + config.qk_nope_head_dim, config.v_head_dim))
    return [(heads, groups, dim) for dim in dims] + [(heads, heads, dim) for dim in dims]


def _of_calls(model: PreTrainedModel, layers: tuple[int, ...], calls: list[Call]) -> Traits:
    family = type(model).__name__
    if len(calls) > len(layers):
        raise hf.Unserved(
            f"model {family} asks for attention {len(calls)} times in its {len(layers)} layers; a "
            "method keeps the keys and values of one call per layer"
        )
    shapes = sorted({shape for _, shape in calls})
    if len(shapes) > 1:
        listed = "; ".join(f"{h} query and {g} KV heads of {d}" for h, g, d in shapes)
        raise hf.Unserved(
            f"the full-attention layers of model {family} differ in shape ({listed}); a method "
            "needs them alike"
        )
    heads, groups, dim = shapes[0]
    if heads % groups:
        raise hf.Unserved(f"model {family} has {heads} query heads for {groups} KV heads")
    return Traits(layers=layers, num_heads=heads, num_kv_heads=groups, head_dim=dim)


def _copy(model: PreTrainedModel) -> tuple[PreTrainedModel | None, str]:
    """A small copy that runs in transformers, or why there is none."""
    reason = ""
    for small in (small_model.small_config, lambda config: config):
        try:
            config = small(model.config)
            copied = small_model.small_copy(model, config)
            trial.own_logits(copied, *trial.texts((5,), 1, 8))
            return copied, ""
        except Exception as error:
            reason = reason or f"{type(error).__name__}: {error}"
        if model.num_parameters() > 50_000_000:
            break
    return None, reason


def _tried(copied: PreTrainedModel, found: Traits, seen: Seen) -> Traits:
    """Compare; hf.Unserved or MethodBypassed for an architecture that is refused."""
    copied.traits = Traits()  # type: ignore[assignment]
    vocabulary = copied.config.get_text_config(decoder=True).vocab_size
    vocabulary = min(vocabulary, small_model.VOCABULARY)
    prompts, answers = trial.texts(trial.PROMPTS, trial.ANSWER, vocabulary)
    first = prompts[:1], answers[:1]
    family, wrong = type(copied).__name__, ""
    seen.allowed = trial.allowed(copied, prompts, answers)
    references: tuple[Any, ...] = trial.own_logits, trial.own_decoded
    for reference in references:
        expected = reference(copied, prompts, answers)
        now = _wrong("full", partial(trial.our_logits, copied, *first), expected[:1], seen)
        wrong = wrong or now
        if not now:
            break
    else:
        raise hf.Unserved(f"model {family} cannot be served: {wrong}")
    recurrent = is_recurrent(make_cache(copied)[0])
    in_chunks = partial(trial.our_logits, copied, *first, chunk_tokens=20)
    chunked = _wrong("chunks", in_chunks, expected[:1], seen)
    if chunked and not recurrent:
        raise hf.Unserved(f"model {family} cannot be served in chunks of a prompt: {chunked}")
    ragged = _wrong("batch", partial(trial.our_logits, copied, prompts, answers), expected, seen)
    return dataclasses.replace(found, whole_prompt=bool(chunked), equal_rows=bool(ragged))


def _wrong(mode: str, run: Callable[[], list[Tensor]], expected: list[Tensor], seen: Seen) -> str:
    """What is wrong with logits, or why there are none; empty if nothing is."""
    try:
        far = seen.differences[mode] = trial.difference(expected, run())
    except (hf.Unserved, hf.MethodBypassed):
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if far < seen.allowed:
        return ""
    return f"on a small copy its logits differ by {far:.2g} standard deviations from transformers'"
