"""Makes the file that a method needs beforehand (``needs.calibration``), on a calibration text."""

import sys
from pathlib import Path
from typing import Any

from retrobench.core.cell import text_hash
from retrobench.core.method import Method
from retrobench.engine.hf import attention_modules
from retrobench.engine.loader import Loaded
from retrobench.engine.prefill import prefill
from retrobench.engine.queries import weights_id
from retrobench.measure.clock import monotonic_s
from retrobench.tasks.haystack import Haystack

_MIN_TOKENS = 256


def calibrated(method: type[Method], config: Any, data_root: str, loaded: Loaded) -> str | None:
    """Content hash of the method's calibration file, None if it needs none.

    ValueError naming the command where the file is missing; the constructed model, which takes a
    few seconds, is calibrated at once.
    """
    if not method.needs.calibration:
        return None
    identity = weights_id(loaded.model)
    try:
        return method.calibration(config, identity)
    except ValueError:
        if loaded.identity["source"] != "constructed":
            raise
        made = calibrate(method, config, data_root, loaded)
        print(f"calibrated: {made}", file=sys.stderr)  # noqa: T201
    return method.calibration(config, identity)


def check(method: type[Method], config: Any, tokens: int | None = None) -> None:
    """ValueError if a calibration cannot succeed: asked before a model is read."""
    if method.Calibrator is None:
        raise ValueError(f"method={method.name} needs no calibration")
    if tokens is not None and tokens < _MIN_TOKENS:
        raise ValueError(f"--tokens {tokens}: give at least {_MIN_TOKENS}")
    method.Calibrator.check(config)


def calibrate(
    method: type[Method],
    config: Any,
    data_root: str,
    loaded: Loaded,
    text: str | None = None,
    tokens: int | None = None,
) -> Path:
    """Prefill so many tokens of a text (default: the method's own number) and write the file.

    Without a text: RULER's essays, or their substitute (the file's metadata says which).
    ValueError for a method that needs no file, for a folder that cannot be written, or for a text
    that is too short.
    """
    check(method, config, tokens)
    assert method.Calibrator is not None
    tokens = method.Calibrator.tokens if tokens is None else tokens
    if method.needs.layer_inputs:
        attention_modules(loaded.model)  # ValueError here, not after the calibration
    source = "given text"
    if text is None:
        haystack = Haystack(data_root)
        text, source = " ".join(haystack.words(tokens)), haystack.name
    ids = loaded.tokenizer(text, add_special_tokens=False).input_ids[:tokens]
    if len(ids) < _MIN_TOKENS:
        raise ValueError(f"the calibration text has {len(ids)} tokens; give at least {_MIN_TOKENS}")
    prompt = prefill(loaded.model, [ids], clock=monotonic_s, needs=method.Calibrator.needs)
    about = {
        "model": str(loaded.identity["name"]),
        "revision": str(loaded.identity["revision"]),
        "text": source,
        "text_hash": text_hash(text),
        "tokens": str(len(ids)),
    }
    return method.Calibrator.save(config, prompt.layers, weights_id(loaded.model), about)
