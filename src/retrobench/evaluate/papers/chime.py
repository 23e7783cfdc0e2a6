"""CHIME, formerly L3 (arXiv 2504.17584): GPT-175B on eight A100, OpenR1-Math, by formula."""

from typing import Any

from retrobench.evaluate.papers.beside import Row, hardware
from retrobench.serving.dims import DIMS
from retrobench.serving.hardware.dimm_pim import DimmPim, bubble_free_chips, score_s
from retrobench.serving.hardware.disaggregated import Plane
from retrobench.serving.hardware.hbm_pim import HbmPim
from retrobench.serving.requests import PRESETS
from retrobench.serving.traffic import full_attention

DIMS_175B, LENGTHS = DIMS["gpt_175b"], PRESETS["openr1_math"]
MEAN = LENGTHS.input_mean + LENGTHS.output_mean / 2
WHOLE = LENGTHS.input_mean + LENGTHS.output_mean
CURVE = full_attention(DIMS_175B.kv_token_bytes, 32768)
HEAD_DIM = DIMS_175B.head_dim


def rows() -> list[Row]:
    """Capacity and bandwidth, bubbles, transfers, re-layout."""
    return _capacity_and_bandwidth() + _banks_of_hbm() + _bubbles() + _transfers()


def plane(config: Any, reserved_tokens: float) -> Plane:
    """The model on the GPUs of a machine; memory is reserved for so much context."""
    return Plane(
        dims=DIMS_175B, flop_per_s=config.gpus * config.flop_per_s,
        hbm_bytes_per_s=config.gpus * config.hbm_bytes_per_s,
        context_tokens=MEAN, reserved_tokens=reserved_tokens,
    )  # fmt: skip


def _capacity_and_bandwidth() -> list[Row]:
    config = hardware("dimm_pim").config
    half = plane(config, reserved_tokens=MEAN)
    bank = config.ranks * config.rank_bytes_per_s * config.bank_factor
    ratio = half.batch(2e12) / half.batch(310e9)
    found = [Row("requests that fit, over HBM-PIM, x", ratio, 6.6, "evaluation")]
    fitted = "reading chosen because it fits: whole requests reserved, bandwidth of 4 ranksets"
    for name, asked, rate, note in (
        ("", plane(config, reserved_tokens=WHOLE), bank, fitted),
        (" (1 rankset)", half, bank / config.ranksets,
         "literal reading: 1 rankset, half of the answer held"),
    ):  # fmt: skip
        base = asked.rate(512e9, rate)
        for what, capacity, bandwidth, paper in (
            ("capacity x8", 8, 1, 2.28), ("bandwidth x8", 1, 8, 1.01), ("both x8", 8, 8, 8.23)
        ):  # fmt: skip
            gain = asked.rate(512e9 * capacity, rate * bandwidth) / base
            found.append(Row(f"{what}{name}, throughput x", gain, paper, f"III; {note}"))
    return found


def _banks_of_hbm() -> list[Row]:
    """What more bandwidth in the GPUs' memory brings, whose capacity stays."""
    found = []
    for sub_batches, note in ((2, "two sub-batches"), (1, "in turns, as AttAcc")):
        models = (_hbm(bank_factor=b, sub_batches=sub_batches) for b in (1.0, 16.0))
        slow, fast = (batch / seconds for batch, seconds in map(_full, models))
        gain = fast / slow
        found.append(Row("HBM-PIM, bandwidth x16, throughput x", gain, 1.01, f"III, below; {note}"))
    return found


def _hbm(**changes: Any) -> HbmPim:
    return HbmPim(hardware("hbm_pim", **changes).config, DIMS_175B, CURVE)


def _dimms(**changes: Any) -> DimmPim:
    return DimmPim(hardware("dimm_pim", **changes).config, DIMS_175B, CURVE)


def _full(model: Any) -> tuple[int, float]:
    """Requests that fill the memory, and the seconds of a step of theirs."""
    batch = int(model.capacity[0] / (DIMS_175B.kv_token_bytes * MEAN))
    return batch, model.step_s(batch, batch * MEAN)


def _bubbles() -> list[Row]:
    config = hardware("dimm_pim").config
    chips = [min(8, bubble_free_chips(config, HEAD_DIM, group)) for group in (1, 8)]
    found = [
        Row("chips per head without bubbles, MHA", chips[0], 8, "mapping"),
        Row("chips per head without bubbles, GQA-8", chips[1], 1,
            "mapping; 2 are the limit of its formula"),
    ]  # fmt: skip
    for name, group, paper in (("MHA", 1, -0.279), ("GQA-8", 8, -0.744)):
        sent, computed = score_s(config, HEAD_DIM, group, config.chips)
        scores, whole = 1 + sent / computed, 2 + sent / computed
        for what, before, after in (("scores", scores, 1), ("whole attention", whole, 2)):
            change = after / before - 1
            found.append(Row(f"no bubbles, {name}: {what}, change", change, paper, "ablation"))
    return found


def _transfers() -> list[Row]:
    model = _dimms()
    change = _full(model)[1] / _full(_dimms(relayout="host"))[1] - 1
    hidden = 1 - 1 / model.config.ranksets
    return [
        Row("transfers hidden by ranksets", hidden, 0.7508, "PCIe overhead"),
        Row("re-layout in flight, step, change", change, -0.17,
            "ablation; ours: else the host reads and writes new keys and values once more"),
    ]  # fmt: skip
