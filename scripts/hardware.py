"""Make the tables of docs/hardware.md: constants of machines, and models beside papers."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from retrobench.core.registry import method_class
from retrobench.evaluate.counted import traffic_curve
from retrobench.serving.dims import DIMS, ModelDims
from retrobench.serving.hardware import KINDS, MEASURED, Hardware, parse_hardware
from retrobench.serving.hardware.csd import Csd
from retrobench.serving.hardware.dimm_pim import DimmPim, bubble_free_chips, score_s
from retrobench.serving.hardware.disaggregated import Plane
from retrobench.serving.hardware.hbm_pim import HbmPim
from retrobench.serving.requests import PRESETS
from retrobench.serving.traffic import TrafficCurve, full_attention

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "hardware.md"
BATCH, IN, OUT = 64, 1024, 1024  # InstInfer, table III
TABLE_SHARE = 0.527  # 1085.65 GB of its table over the formula for dense attention in one layer
ONE_LAYER = "of one layer (ours: the table's volumes fit one, not 40)"

Row = tuple[str, float, float | None, str]  # what, the model's, the paper's, a note


def hardware(name: str, **changes: Any) -> Hardware:
    """A machine of conf/hardware."""
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "hardware" / f"{name}.yaml"))
    assert isinstance(values, dict)
    return parse_hardware({**{str(k): v for k, v in values.items()}, **changes})


def csd(dims: ModelDims, curve: TrafficCurve, **changes: Any) -> Csd:
    """InstInfer's machine."""
    return Csd(hardware("csd", **changes).config, dims, curve)


def sparf_curve(dims: ModelDims) -> TrafficCurve:
    """Pages that SparF touches, counted."""
    cls = method_class("sparf")
    config = cls.Config()
    return traffic_curve(cls, config, None, dims, IN + OUT, flash=True, device="cuda")


def decode_s(model: Any, batch: int) -> float:
    """Mean step while the answers of a batch grow from none to ``OUT`` tokens."""
    contexts = IN + np.linspace(1, OUT, 33)
    return float(np.mean([model.step_s(batch, batch * context) for context in contexts]))


def flash_share(model: Csd, batch: int) -> float:
    """Share of a mean step in which flash is read or crossed."""
    contexts = IN + np.linspace(1, OUT, 33)
    read = np.mean([model.flash_s(batch * model.traffic.at(c).flash) for c in contexts])
    return float(read) / decode_s(model, batch)


def pages_at_random(dims: ModelDims, ratio: int = 8, together: int = 2) -> float:
    """Share of dense reads if tokens and channels were chosen at random.

    A token page has ``4096 / (head dim x 2)`` tokens, a channel page ``together`` channels; each is
    chosen with probability 1 / (2 ratio) and 1 / ratio. Keys by channel; keys and values by token.
    """
    tokens = 4096 // (dims.head_dim * 2)
    token_page = 1 - (1 - 1 / (2 * ratio)) ** tokens
    channel_page = 1 - (1 - 1 / ratio) ** together
    return (channel_page + 2 * token_page) / 2


def instinfer() -> list[Row]:
    """OPT-13B, 1024 tokens in and out."""
    dims = DIMS["opt_13b"]
    dense, counted = full_attention(dims.kv_token_bytes, IN + OUT), sparf_curve(dims)
    layer = dims.kv_token_bytes / dims.layers * BATCH
    contexts = IN + np.arange(1, OUT + 1)
    read_dense = layer * contexts.sum() / 1e9
    read_counted = sum(counted.at(c).flash for c in contexts) * BATCH / dims.layers / 1e9
    config = csd(dims, dense).config
    rate = config.flash_channels * config.channel_bytes_per_s * config.read_efficiency / 1e9
    shares = {
        "pages counted on synthetic keys": read_counted / read_dense,
        "the table's share of pages": TABLE_SHARE,
        "tokens and channels at random": pages_at_random(dims),
    }
    rows: list[Row] = [
        ("K and V of a token, MB", dims.kv_token_bytes / 2**20, 0.78, "VI-F"),
        ("prompt written, GB", layer * IN / 1e9, 1.34, f"table III; {ONE_LAYER}"),
        ("dense attention would read, GB", read_dense, None, f"formula; {ONE_LAYER}"),
        ("drive reads, GB/s", rate, 7.66, "table III; fitted: `read_efficiency`"),
    ]
    for what, share in shares.items():
        if share != TABLE_SHARE:
            note = f"{what}; paper: 1085.65 GB of table III"
            rows.append(("SparF reads, share of dense", share, TABLE_SHARE, note))
    one = csd(dims, dense)
    for what, share in shares.items():
        gain = decode_s(one, BATCH) / decode_s(csd(dims, part(dense, share)), BATCH)
        rows.append(("SparF over dense attention, x", gain, 2.08, f"evaluation; {what}"))
    for what, layers in (("whole model", dims.layers), ("reading: bytes of one layer", 1)):
        rows += _drives(dims, part(dense, layers / dims.layers), what)
    return rows


def part(curve: TrafficCurve, share: float) -> TrafficCurve:
    """A share of the pages."""
    points = [(n, moved._replace(flash=share * moved.flash)) for n, moved in curve.points]
    return TrafficCurve(points, curve.source)


def _drives(dims: ModelDims, dense: TrafficCurve, what: str) -> list[Row]:
    """Shares of flash in a step, and 20 drives over one."""
    sparse = part(dense, TABLE_SHARE)

    def faster(curve: TrafficCurve) -> float:
        return decode_s(csd(dims, curve), BATCH) / decode_s(csd(dims, curve, drives=20), BATCH)

    return [
        ("flash in a step, 1 drive", flash_share(csd(dims, dense), BATCH), 0.807,
         f"evaluation, dense; {what}"),
        ("flash in a step, 2 drives", flash_share(csd(dims, dense, drives=2), BATCH), 0.764,
         f"evaluation, dense; {what}"),
        ("20 drives over 1, dense, x", faster(dense), 8.99, f"evaluation; {what}"),
        ("20 drives over 1, SparF, x", faster(sparse), 7.29,
         f"evaluation; {what}, the table's share of pages"),
    ]  # fmt: skip


def chime() -> list[Row]:
    """GPT-175B on OpenR1, and scores of MHA and GQA-8."""
    dims, lengths = DIMS["gpt_175b"], PRESETS["openr1_math"]
    config = hardware("dimm_pim").config
    mean = lengths.input_mean + lengths.output_mean / 2
    whole = lengths.input_mean + lengths.output_mean
    gpus = config.gpus * config.hbm_bytes_per_s
    half = Plane(
        dims=dims, flop_per_s=config.gpus * config.flop_per_s, hbm_bytes_per_s=gpus,
        context_tokens=mean, reserved_tokens=mean,
    )  # fmt: skip
    kept = replace(half, reserved_tokens=whole)
    bank = config.ranks * config.rank_bytes_per_s * config.bank_factor
    literal = bank / config.ranksets
    rows: list[Row] = [
        (
            "requests that fit, over HBM-PIM, x",
            half.batch(2e12) / half.batch(310e9),
            6.6,
            "evaluation",
        )
    ]
    fitted = "reading chosen because it fits: whole requests reserved, bandwidth of 4 ranksets"
    for name, plane, rate, note in (
        ("", kept, bank, fitted),
        (" (1 rankset)", half, literal, "literal reading: 1 rankset, half of the answer held"),
    ):
        base = plane.rate(512e9, rate)
        for what, capacity, bandwidth, paper in (
            ("capacity x8", 8, 1, 2.28), ("bandwidth x8", 1, 8, 1.01), ("both x8", 8, 8, 8.23)
        ):  # fmt: skip
            found = plane.rate(512e9 * capacity, rate * bandwidth) / base
            rows.append((f"{what}{name}, throughput x", found, paper, f"III; {note}"))
    rows += [("chips per head without bubbles, MHA", min(8, bubble_free_chips(config, 128, 1)), 8,
              "mapping"),
             ("chips per head without bubbles, GQA-8", bubble_free_chips(config, 128, 8), 1,
              "mapping; 2 are the limit of its formula")]  # fmt: skip
    for name, group, paper in (("MHA", 1, -0.279), ("GQA-8", 8, -0.744)):
        sent, computed = score_s(config, 128, group, config.chips)
        scores, all_ = 1 + sent / computed, 2 + sent / computed
        rows.append((f"no bubbles, {name}: scores, change", 1 / scores - 1, paper, "ablation"))
        rows.append(
            (f"no bubbles, {name}: whole attention, change", 2 / all_ - 1, paper, "ablation")
        )
    rows.append(("transfers hidden by ranksets", 1 - 1 / config.ranksets, 0.7508, "PCIe overhead"))
    return rows + _chime_steps(dims, mean)


def _chime_steps(dims: ModelDims, mean: float) -> list[Row]:
    """Tokens per second with full memories."""
    curve = full_attention(dims.kv_token_bytes, 32768)

    def rate(model: Any) -> tuple[float, int]:
        batch = int(model.capacity[0] / (dims.kv_token_bytes * mean))
        return batch / model.step_s(batch, batch * mean), batch

    bank = rate(DimmPim(hardware("dimm_pim").config, dims, curve))
    rank = rate(DimmPim(hardware("dimm_pim", level="rank").config, dims, curve))
    hbm = rate(HbmPim(hardware("hbm_pim").config, dims, curve))
    gpu = rate(KINDS["gpu"](hardware("gpu_a100", gpus=8).config, dims, curve))
    most = "the paper's is the most over models and traces"
    return [
        ("over GPU alone, throughput x", bank[0] / gpu[0], 3.94, f"VII-B; {most}"),
        ("over HBM-PIM, throughput x", bank[0] / hbm[0], 5.15, f"VII-B; {most}"),
        ("over rank-level DIMM-PIM, throughput x", bank[0] / rank[0], 7.21, f"VII-B; {most}"),
    ]


def attacc() -> list[Row]:
    """What AttAcc's baseline is given."""
    config = hardware("hbm_pim").config
    rate = config.gpus * config.hbm_bytes_per_s * config.bank_factor / 1e12
    return [
        ("bandwidth of the banks, TB/s", rate, 260.8, "arXiv 2504.17584, tables I-III"),
        ("power limited (`bank_factor=9`), TB/s", rate * 9 / 16, None, "AttAcc's own default"),
    ]


def table(rows: Iterable[Row]) -> str:
    """Model beside paper, with the relative error."""
    lines = ["| what | model | paper | error | where, and remarks |", "|---|---|---|---|---|"]
    for what, model, paper, note in rows:
        error = "" if paper is None else f"{model / paper - 1:+.0%}"
        shown = "" if paper is None else f"{paper:.4g}"
        lines.append(f"| {what} | {model:.3g} | {shown} | {error} | {note} |")
    return "\n".join(lines)


def constants(name: str) -> str:
    """A machine's constants with their sources."""
    machine = hardware(name)
    lines = [f"### `hardware={name}`\n", "| constant | value | meaning | source |"]
    lines.append("|---|---|---|---|")
    for field in fields(machine.config):
        value = getattr(machine.config, field.name)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value).lower()
        text = f"{field.metadata['help']} | {machine.sources[field.name]}"
        lines.append(f"| `{field.name}` | {shown} | {text} |")
    return "\n".join(lines)


def render() -> str:
    """The page with its tables made anew; the text between them stays."""
    names = sorted(path.stem for path in (ROOT / "conf" / "hardware").glob("*.yaml"))
    parts = {"instinfer": table(instinfer()), "chime": table(chime()), "attacc": table(attacc())}
    parts["constants"] = "\n\n".join(constants(name) for name in names if name != MEASURED)
    text = DOC.read_text()
    for name, part in parts.items():
        begin, end = (f"<!-- {word} {name} -->" for word in ("begin", "end"))
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    asked, made = parser.parse_args(), render()
    if asked.check:
        stale = "docs/hardware.md is stale: run make hardware"
        sys.exit(stale if DOC.read_text() != made else 0)
    DOC.write_text(made)
