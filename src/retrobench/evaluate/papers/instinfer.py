"""InstInfer (arXiv 2409.04992): OPT-13B in batches of 64, 1024 tokens in and out."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from retrobench.core.registry import method_class
from retrobench.evaluate.counted import traffic_curve
from retrobench.evaluate.papers.beside import Row, hardware
from retrobench.serving.dims import DIMS, ModelDims
from retrobench.serving.hardware.csd import Csd
from retrobench.serving.traffic import TrafficCurve, full_attention

BATCH, IN, OUT = 64, 1024, 1024  # table III
TABLE_SHARE = 0.527  # 1085.65 GB of table III over the formula for dense attention in one layer
RATIO = 8  # SparF's compression
ONE_LAYER = "of one layer (ours: the table's volumes fit one, not 40)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the paper's measured steps are read: what is not said there."""

    note: str
    layers: int = DIMS["opt_13b"].layers  # whose pages a step reads
    changes: dict[str, Any]  # to the machine


READINGS = (
    Reading(note="flash alone", changes={"engine_hidden": True}),
    Reading(note="and units after it, as by default", changes={}),
    Reading(note="and weights from the host", changes={"weights_on": "host"}),
    Reading(note="bytes of one layer, flash alone", layers=1, changes={"engine_hidden": True}),
)


def rows() -> list[Row]:
    """Volumes, the gain of SparF, and several drives in all readings."""
    dims = DIMS["opt_13b"]
    dense = full_attention(dims.kv_token_bytes, IN + OUT)
    found = _volumes(dims, dense)
    for reading in READINGS:
        found += _drives(dims, reading, dense)
    return found


def _volumes(dims: ModelDims, dense: TrafficCurve) -> list[Row]:
    counted = _sparf(dims)
    layer = dims.kv_token_bytes / dims.layers * BATCH
    contexts = IN + np.arange(1, OUT + 1)
    read_dense = layer * contexts.sum() / 1e9
    read_counted = sum(counted.at(float(c)).flash for c in contexts) * BATCH / dims.layers / 1e9
    config = hardware("csd").config
    rate = config.flash_channels * config.channel_bytes_per_s * config.read_efficiency / 1e9
    shares = {
        "pages counted on synthetic keys": read_counted / read_dense,
        "the table's share of pages": TABLE_SHARE,
        "tokens and channels at random": pages_at_random(dims),
    }
    found = [
        Row("K and V of a token, MB", dims.kv_token_bytes / 2**20, 0.78, "VI-F"),
        Row("prompt written, GB", layer * IN / 1e9, 1.34, f"table III; {ONE_LAYER}"),
        Row("dense attention would read, GB", read_dense, None, f"formula; {ONE_LAYER}"),
        Row("drive reads, GB/s", rate, 7.66, "table III; fitted: `read_efficiency`"),
    ]
    for what, share in shares.items():
        if share != TABLE_SHARE:
            note = f"{what}; paper: 1085.65 GB of table III"
            found.append(Row("SparF reads, share of dense", share, TABLE_SHARE, note))
    for what, share in shares.items():
        gain = decode_s(_csd(dims, dense)) / decode_s(_csd(dims, _part(dense, share)))
        found.append(Row("SparF over dense attention, x", gain, 2.08, f"evaluation; {what}"))
    return found


def _drives(dims: ModelDims, reading: Reading, dense: TrafficCurve) -> list[Row]:
    """Shares of flash in a step on one and two drives, and 20 drives over one."""
    scale = reading.layers / dims.layers
    found = []
    for name, curve, shares, faster in (
        ("dense", _part(dense, scale, scale), (0.807, 0.764), 8.99),
        ("SparF", _part(dense, scale * TABLE_SHARE, scale / RATIO), (0.823, 0.740), 7.29),
    ):
        steps = {n: _csd(dims, curve, drives=n, **reading.changes) for n in (1, 2, 20)}
        for drives, share in zip((1, 2), shares, strict=True):
            what = f"{name}: flash in a step, {drives} drive{'s' * (drives > 1)}"
            found.append(Row(what, flash_share(steps[drives]), share, reading.note))
        gain = decode_s(steps[1]) / decode_s(steps[20])
        found.append(Row(f"{name}: 20 drives over 1, x", gain, faster, reading.note))
    return found


def _csd(dims: ModelDims, curve: TrafficCurve, **changes: Any) -> Csd:
    return Csd(hardware("csd", **changes).config, dims, curve)


def _sparf(dims: ModelDims) -> TrafficCurve:
    """Pages that SparF touches, counted."""
    cls = method_class("sparf")
    return traffic_curve(cls, cls.Config(), None, dims, IN + OUT, flash=True, device="cuda")


def _part(curve: TrafficCurve, pages: float, chosen: float = 1 / RATIO) -> TrafficCurve:
    """A share of the pages, and of what passes the filters."""
    points = [
        (n, moved._replace(flash=pages * moved.flash, kv=chosen * moved.kv))
        for n, moved in curve.points
    ]
    return TrafficCurve(points, curve.source)


def decode_s(model: Csd) -> float:
    """Mean step while the answers of a batch grow from none to ``OUT`` tokens."""
    contexts = IN + np.linspace(1, OUT, 33)
    return float(np.mean([model.step_s(BATCH, BATCH * context) for context in contexts]))


def flash_share(model: Csd) -> float:
    """Share of a mean step in which flash is read."""
    contexts = IN + np.linspace(1, OUT, 33)
    read = np.mean([model.flash_s(BATCH * model.traffic.at(c).flash) for c in contexts])
    return float(read) / decode_s(model)


def pages_at_random(dims: ModelDims, ratio: int = RATIO, together: int = 2) -> float:
    """Share of dense reads if tokens and channels were chosen at random.

    A token page has ``4096 / (head dim x 2)`` tokens, a channel page ``together`` channels; each is
    chosen with probability 1 / (2 ratio) and 1 / ratio. Keys by channel; keys and values by token.
    """
    tokens = 4096 // (dims.head_dim * 2)
    token_page = 1 - (1 - 1 / (2 * ratio)) ** tokens
    channel_page = 1 - (1 - 1 / ratio) ** together
    return (channel_page + 2 * token_page) / 2
