"""Makes the file that a method needs beforehand (``needs.calibration``), on a calibration text."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from retrobench.core.method import NullProbe
from retrobench.core.registry import method_class
from retrobench.engine.loader import Loaded
from retrobench.engine.queries import weights_id
from retrobench.engine.session import Session
from retrobench.measure.clock import monotonic_s
from retrobench.run.spec import RunSpec
from retrobench.tasks.haystack import Haystack

TOKENS = 2048  # InfiniGen: the first 2048 tokens of a book
EMBEDDED = frozenset({"constructed", "tiny"})


def calibrated(spec: RunSpec, loaded: Loaded) -> str | None:
    """Content hash of the method's calibration file, None if it needs none.

    ValueError naming the command where the file is missing; embedded models, which take a few
    seconds, are calibrated at once.
    """
    method = method_class(spec.method)
    if not method.needs.calibration:
        return None
    identity = weights_id(loaded.model)
    try:
        return method.calibration(spec.method_config, identity)
    except ValueError:
        if loaded.identity["source"] not in EMBEDDED:
            raise
        print(f"calibrated: {calibrate(spec, loaded)}", file=sys.stderr)  # noqa: T201
    return method.calibration(spec.method_config, identity)


def calibrate(spec: RunSpec, loaded: Loaded, text: str | None = None, tokens: int = TOKENS) -> Path:
    """Prefill a text and let the method write its file. Without a text: RULER's essays, or their
    stand-in (the file's metadata says which).
    """
    method = method_class(spec.method)
    if method.Calibrator is None:
        raise ValueError(f"method={spec.method} needs no calibration")
    source = "given text"
    if text is None:
        haystack = Haystack(spec.data_root)
        text, source = " ".join(haystack.words(tokens)), haystack.name
    ids = loaded.tokenizer(text, add_special_tokens=False).input_ids[:tokens]
    if len(ids) < 256:
        raise ValueError(f"the calibration text has {len(ids)} tokens; give at least 256")
    session = Session(
        loaded.model,
        method.Calibrator,
        spec.method_config,
        [ids],
        probe=NullProbe(),
        clock=monotonic_s,
        max_new_tokens=1,
    )
    about = {
        "model": str(loaded.identity["name"]),
        "revision": str(loaded.identity["revision"]),
        "text": source,
        "text_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "tokens": str(len(ids)),
    }
    try:
        with torch.inference_mode():
            session.prefill(len(ids))
            assert isinstance(session.method, method.Calibrator)
            return session.method.save(weights_id(loaded.model), about)
    finally:
        session.close()
