"""Records one prompt of ``task=trace``: full attention's trajectory to shards and manifest."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from retrobench.core import traces
from retrobench.core.paths import replace_text
from retrobench.core.task import Sample
from retrobench.engine import loader, replay
from retrobench.engine.generation import Decoding, Generation
from retrobench.engine.queries import weights_id
from retrobench.engine.session import Session
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import commit
from retrobench.measure.probe import CountingProbe
from retrobench.tasks.prompt import EncodedPrompt


@torch.inference_mode()
def record(
    open_session: Callable[..., Session],
    loaded: loader.Loaded,
    sample: Sample,
    encoded: EncodedPrompt,
    folder: Path,
    *,
    steps: int,
    layers: Sequence[int] = (),
    dtype: str = "auto",
) -> tuple[Generation, dict[str, Any], int]:
    """Decode the prompt and write it; (times and counts, counts, bytes written).

    ``layers``: those that are written; none: all with full attention. ValueError for others.
    ``dtype`` of what is written; auto: the model's.
    """
    probe, ends = CountingProbe(), loaded.stop_ids
    with open_session(steps, method_class=replay.TraceRecorder, probe=probe) as session:
        if strange := sorted({*layers} - {*session.layers}):
            here = ", ".join(map(str, session.layers))
            raise ValueError(f"task.layers={strange}: the layers with full attention are {here}")
        split = session.prompt.num_tokens
        result = session.generate(Decoding(max_new_tokens=steps), ends)
        stepped = [int(token_11) for token_11 in session.stepped]
        ids = [*encoded.ids[:split], *stepped]
        written = _write(loaded, sample, encoded, folder, session.method, ids, split, layers, dtype)
    return result, probe.row(), written


def _write(
    loaded: loader.Loaded,
    sample: Sample,
    encoded: EncodedPrompt,
    folder: Path,
    recorder: Any,
    ids: list[int],
    split: int,
    layers: Sequence[int],
    dtype: str,
) -> int:
    dtype = recorder.shape.dtype if dtype == "auto" else dtype
    layers = sorted(layers or recorder.shape.layers)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        manifest = traces.read_manifest(folder)
    except ValueError:
        manifest = {"samples": []}
    about = {
        "model": loaded.identity,
        "weights_id": weights_id(loaded.model),
        "projection_bytes": recorder.model.projection_bytes(recorder.shape.layers[-1]),
        **recorder.geometry(layers),
        "dtype": dtype,
    }
    if manifest["samples"] and manifest["weights_id"] != about["weights_id"]:
        raise ValueError(f"{folder} holds a trace of another model; use another task.path")
    for name in ("layers", "dtype"):
        if manifest["samples"] and manifest[name] != about[name]:
            raise ValueError(
                f"{folder} holds {name} {manifest[name]}, not {about[name]}; use another task.path"
            )
    known = {s["id"]: s["index"] for s in manifest["samples"]}
    index = known.get(sample.id, len(known))
    entry = {
        "index": index,
        "id": sample.id,
        "task": sample.task,
        "length": sample.length,
        "stand_in": bool(sample.meta.get("stand_in")),
        "prompt_hash": encoded.text_hash,
        "prompt_tokens": encoded.num_tokens,
        "first_decode": split,
        "ids": ids,
        "recorded": {**commit(), "torch": torch.__version__, "time": utc_now()},
    }
    entry["shards"] = recorder.save(folder, index, layers, getattr(torch, dtype))
    others = [s for s in manifest["samples"] if s["id"] != sample.id]
    written = json.dumps({**about, "samples": [*others, entry]}, indent=1)
    replace_text(folder / traces.MANIFEST, written)
    return sum(size for size, _ in entry["shards"].values())
