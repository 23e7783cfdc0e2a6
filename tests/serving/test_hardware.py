"""Machines by hand: every formula on numbers that fit on paper; constants with their sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from retrobench.core.shapes import Footprint
from retrobench.serving.dims import DIMS, ModelDims
from retrobench.serving.hardware import KINDS, parse_hardware
from retrobench.serving.hardware.csd import Csd, CsdConfig
from retrobench.serving.hardware.dimm_pim import DimmPim, bubble_free_chips, score_s
from retrobench.serving.hardware.gpu import Gpu, GpuConfig
from retrobench.serving.hardware.hbm_pim import HbmPim, HbmPimConfig
from retrobench.serving.traffic import Traffic, TrafficCurve, full_attention

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"
FILES = sorted(CONF.glob("*.yaml"))
# 2 layers, 4 query heads, 2 KV heads of 8: 128 bytes per token, 1000 weights
SMALL = ModelDims(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, matmul_params=1000)
GPU = {
    "gpus": 2, "flop_per_s": 1e6, "hbm_bytes_per_s": 1e5, "hbm_bytes": 1e4, "flop_efficiency": 0.5,
    "hbm_efficiency": 0.5, "link_bytes_per_s": 1e5, "host_bytes": 5e4, "usd_per_hour": 1.0,
    "sum_start_s": 0.0, "sum_bytes_per_s": 1e12,
}  # fmt: skip
MOVED = TrafficCurve([(100, Traffic(kv=2000.0, index=500.0, h2d=100.0, flash=4096.0))], "by hand")


def loaded(name, **changes):
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return parse_hardware({**values, **changes})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_constant_has_a_source(path):
    hardware = loaded(path.stem)
    values = OmegaConf.to_container(OmegaConf.load(path))
    constants = set(values) - {"name", "kind", "sources"}
    assert hardware.name == path.stem and constants == set(hardware.sources)
    assert all(len(text) > 5 for text in hardware.sources.values())


def test_missing_and_wrong_constants_are_named():
    with pytest.raises(ValueError, match="hardware: no value for drives; write hardware.drives="):
        values = OmegaConf.to_container(OmegaConf.load(CONF / "csd.yaml"))
        del values["drives"]
        parse_hardware(values)
    with pytest.raises(ValueError, match="hardware.kind=gup: no such kind, did you mean gpu"):
        parse_hardware({"name": "x", "kind": "gup"})
    with pytest.raises(ValueError, match=r"hardware.read_efficiency must be in \(0, 1\]"):
        loaded("csd", read_efficiency=1.5)
    with pytest.raises(ValueError, match="hardware.drive: no such option, did you mean"):
        loaded("csd", drive=3)


def test_dims_of_public_models():
    def billions(name):
        return DIMS[name].matmul_params / 1e9

    assert DIMS["opt_13b"].kv_token_bytes == 819_200  # arXiv 2409.04992: 0.78 MB
    assert DIMS["gpt_175b"].kv_token_bytes == pytest.approx(4.72e6, rel=0.001)
    assert billions("llama31_8b") == pytest.approx(8.03 - 0.53, rel=0.01)  # without the embedding
    assert billions("gpt_175b") == pytest.approx(175, rel=0.01)
    assert billions("opt_66b") == pytest.approx(66, rel=0.02)
    assert billions("qwen_72b") == pytest.approx(72.7 - 1.2, rel=0.01)


def test_gpu_by_hand():
    model = Gpu(GpuConfig(**GPU), SMALL, MOVED)
    # 2 x 1e6 x 0.5 flop/s and 2 x 1e5 x 0.5 bytes/s; 2000 bytes of weights
    assert model.linear_s(1) == pytest.approx(2000 / 1e5)  # memory: 0.02 s; products: 0.002 s
    assert model.linear_s(20) == pytest.approx(2 * 1000 * 20 / 1e6)
    # half of the traffic at 100 tokens: (1000 + 250) bytes x 3 requests
    assert model.step_s(3, 150) == pytest.approx(0.02 + 3 * 1250 / 1e5)
    slow = Gpu(GpuConfig(**{**GPU, "link_bytes_per_s": 1.0}), SMALL, MOVED)
    assert slow.step_s(3, 150) == pytest.approx(3 * 50 / 2)
    pairs = 10 * 5 + 10 * 11 / 2  # 10 tokens after 5
    assert SMALL.attention_flop(10, 5) == 4 * 2 * 4 * 8 * pairs
    # its 15 tokens of K and V take 0.0192 s, its flop 0.0269 s
    assert model.prompt_attention_s(10, 5) == pytest.approx(4 * 2 * 4 * 8 * pairs / 1e6)
    assert model.prompt_attention_s(1, 14) == pytest.approx(15 * 128 / 1e5)
    assert model.step_s(0, 0, 1, 14) == pytest.approx(0.02 + 15 * 128 / 1e5)
    assert model.capacity == (2 * 1e4 - 2000, 5e4)
    assert model.held(Footprint(device=5, pinned=2, host=1)) == (5, 3)
    # 0.02 s of weights are time for 10 tokens; one batch member among them
    assert model.chunk_tokens(1, 100, 1000, 0) == 16
    with pytest.raises(ValueError, match="hardware.gpus=2: the weights take"):
        _ = Gpu(GpuConfig(**{**GPU, "hbm_bytes": 100.0}), SMALL, MOVED).capacity


def test_gpus_add_up_by_hand():
    slow = {**GPU, "gpus": 4, "sum_start_s": 0.5, "sum_bytes_per_s": 16.0}
    model, free = (
        Gpu(GpuConfig(**slow), SMALL, MOVED),
        Gpu(GpuConfig(**GPU | {"gpus": 4}), SMALL, MOVED),
    )
    # twice in 2 layers; 3 rounds, each with a quarter of 5 tokens x 32 numbers x 2 bytes
    expected = 2 * 2 * 3 * (0.5 + 5 * 32 * 2 / 4 / 16)
    assert model.sum_s(5) == pytest.approx(expected)
    assert model.linear_s(5) == pytest.approx(free.linear_s(5) + expected)
    assert model.linear_s(0) == 0
    assert Gpu(GpuConfig(**{**slow, "gpus": 1}), SMALL, MOVED).sum_s(5) == 0


DRIVE = {
    "drives": 1, "flash_channels": 4, "channel_bytes_per_s": 100.0, "read_efficiency": 0.5,
    "drive_link_bytes_per_s": 1e4, "write_bytes_per_s": 1e3, "flash_bytes": 1e6, "key_copies": 2,
    "engine_flop_per_s": 1e3, "engine_hidden": True, "weights_on": "gpu",
}  # fmt: skip


def csd(**changes):
    return Csd(CsdConfig(**{**GPU, **DRIVE, **changes}), SMALL, MOVED)


def test_csd_by_hand():
    model, two = csd(), csd(drives=2)
    link = 2 * (2 * 4 + 2 * 2) * 8 * 2  # layers x (q, output; k, v) x numbers x 2 bytes
    gpu = 0.02 + 2 * 500 / 1e5  # weights, and indexes of 2 requests
    assert model.step_s(2, 200) == pytest.approx(gpu + 2 * 4096 / 200 + 2 * link / 1e4)
    assert model.step_s(0, 0, 10, 0) == pytest.approx(10 * 128 * 1.5 / 1e3)  # writing is slower
    assert two.step_s(2, 200) == pytest.approx(gpu + 4096 / 200 + link / 1e4)
    assert csd(drives=3).step_s(2, 200) == two.step_s(2, 200)  # of 2 KV heads
    assert model.held(Footprint(device=10)) == (15,) and two.capacity == (2e6,)


def test_units_and_weights_of_csd_by_hand():
    # 2000 bytes are 1000 numbers, each multiplied for 2 query heads: 4000 operations
    assert csd().engine_s(2000) == pytest.approx(4.0)
    assert csd(drives=2).engine_s(2000) == pytest.approx(2.0)
    read = csd().flash_s(2 * 4096)
    assert csd().drive_s(2, MOVED.at(100)) == pytest.approx(max(read, 8.0)) == pytest.approx(read)
    assert csd(engine_flop_per_s=10.0).drive_s(2, MOVED.at(100)) == pytest.approx(800.0)
    after = csd(engine_hidden=False)
    assert after.drive_s(2, MOVED.at(100)) == pytest.approx(read + 8.0)
    # 2000 bytes of weights over a link of 2 x 5 bytes per second
    host = csd(weights_on="host", link_bytes_per_s=5.0)
    assert host.gpu_s(1) == pytest.approx(200.0) and csd().gpu_s(1) == pytest.approx(0.02)
    assert csd(weights_on="host", hbm_bytes=100.0).capacity == (1e6,)  # they need not fit


def test_hbm_pim_by_hand():
    banks = {"bank_factor": 4.0, "sub_batches": 1}
    energy = {"cell_pj_per_byte": 2.0, "wires_pj_per_byte": 10.0, "multiply_pj": 0.5}
    moved = TrafficCurve([(100, Traffic(kv=20000.0))], "by hand")
    turns = HbmPim(HbmPimConfig(**GPU, **banks, **energy), SMALL, moved)
    attention, weights = 20000 / (2 * 1e5 * 4), 0.02
    assert turns.attention_s(20000) == pytest.approx(attention)
    assert turns.step_s(3, 300) == pytest.approx(weights + 3 * attention)
    both = HbmPim(HbmPimConfig(**GPU, **{**banks, "sub_batches": 2}, **energy), SMALL, moved)
    assert both.step_s(3, 300) == pytest.approx(max(weights, attention) + 2 * attention)
    assert both.step_s(1, 100) == turns.step_s(1, 100)  # nothing to overlap with
    assert both.step_s(0, 0, 5, 0) == turns.step_s(0, 0, 5, 0)
    # 100 bytes are 50 numbers, each multiplied for 2 query heads
    assert turns.attention_j(100) == pytest.approx((100 * 2 + 100 * 0.5) * 1e-12)
    assert turns.attention_j(100, banks=False) == pytest.approx((100 * 12 + 100 * 0.5) * 1e-12)


def test_scores_leave_no_bubbles_where_the_paper_says_so():
    config = loaded("dimm_pim").config
    assert min(8, bubble_free_chips(config, 128, 1)) == 8  # arXiv 2504.17584, V-B: 8 for MHA
    assert bubble_free_chips(config, 128, 8) == 2  # the paper takes 1
    for group, chips in ((1, 8), (8, 1), (8, 2)):
        sent, computed = score_s(config, 128, group, chips)
        assert sent <= computed
    sent, computed = score_s(config, 128, 8, 8)
    assert sent == pytest.approx(4 * computed)
    # all banks together read keys at 8 x 25.6 GB/s per rank: 128 numbers of 2 bytes
    assert computed == pytest.approx(256 / (8 * 25.6e9))


def test_dimm_pim_by_hand():
    values = OmegaConf.to_container(OmegaConf.load(CONF / "dimm_pim.yaml"))
    changes = dict(GPU, ranks=2, ranksets=4, rank_bytes_per_s=1e3, bank_factor=8.0, chips=8)
    hardware = parse_hardware({**values, **changes})
    moved = TrafficCurve([(100, Traffic(kv=2000.0))], "by hand")
    model = DimmPim(hardware.config, SMALL, moved)
    rate = 2 * 1e3 * 8
    # head dim 8, 2 query heads: T_comm = 2 x 8 / 500 over T_comp = 8 / (500 x chips): never free
    assert model.head_chips() == 1
    sent, computed = score_s(hardware.config, 8, 2, 1)
    stretch = (sent / computed + 1) / 2
    assert model.attention_s(2000) == pytest.approx(2000 / rate * stretch)
    link = SMALL.exchanged_bytes(1) / (2 * 1e5) / 4  # a rankset of four waits
    pim = 2000 / rate * stretch + link
    gpu = 2000 / 1e5
    assert model.step_s(2, 200) == pytest.approx(2 * max(pim, gpu))
    assert model.step_s(1, 100) == pytest.approx(gpu + pim)  # nothing to overlap with
    three = max(gpu, pim) + max(gpu, 2 * 2000 / rate * stretch + 2 * link)
    assert model.step_s(3, 300) == pytest.approx(three)
    rank = parse_hardware({**values, **changes, "level": "rank"})
    assert DimmPim(rank.config, SMALL, moved).attention_s(2000) == pytest.approx(2000 / 2e3)
    host = parse_hardware({**values, **changes, "relayout": "host", "dimm_bytes_per_s": 1e3})
    again = DimmPim(host.config, SMALL, moved)
    assert model.relayout_s(3) == 0 and again.relayout_s(3) == pytest.approx(2 * 3 * 128 / 1e3)
    assert again.pim_s(1, 100, 2) == pytest.approx(model.pim_s(1, 100, 2) + again.relayout_s(3))


def test_the_adaptive_chunk_fills_the_time_of_the_dimms():
    hardware = loaded("dimm_pim")
    dims = DIMS["gpt_175b"]
    model = DimmPim(hardware.config, dims, full_attention(dims.kv_token_bytes, 32768))
    chunk = model.chunk_tokens(64, 64 * 16000, 30000, 0)
    pim = model.pim_s(32, 16000, chunk)

    def gpu(tokens):
        return model.linear_s(32 + tokens) + model.prompt_attention_s(tokens, 0)

    assert 16 < chunk < 30000 and gpu(chunk) <= pim < gpu(chunk + 16)
    assert model.chunk_tokens(0, 0, 500, 0) == 500
    assert model.chunk_tokens(64, 64 * 10, 500, 0) == 16  # DIMMs that wait anyway


@pytest.mark.parametrize("name", sorted(p.stem for p in FILES if p.stem != "measured"))
def test_steps_cost_more_with_more_to_do(name):
    hardware, dims = loaded(name), DIMS["llama31_8b"]
    curve = full_attention(dims.kv_token_bytes, 32768)
    model = KINDS[hardware.kind](hardware.config, dims, curve)
    for batch in (1, 7, 64):
        steps = [model.step_s(batch, batch * context) for context in (100, 1000, 30000)]
        assert steps == sorted(steps) and steps[0] > 0
        assert model.step_s(batch, 1000 * batch, 512) >= model.step_s(batch, 1000 * batch)
        assert 1 <= model.chunk_tokens(batch, 1000 * batch, 512, 0) <= 512
    assert model.step_s(2, 2000) < 2 * model.step_s(1, 1000)


def test_traffic_between_counted_contexts():
    curve = TrafficCurve(
        [(100, Traffic(kv=10.0, weights=4.0)), (300, Traffic(kv=30.0, index=8.0, weights=4.0))], ""
    )
    assert curve.at(50) == Traffic(kv=5.0, weights=4.0)
    assert curve.at(200) == Traffic(kv=20.0, index=4.0, weights=4.0)
    assert curve.at(300) == curve.points[1][1]
    with pytest.raises(ValueError, match="301 tokens: bytes were counted up to 300"):
        curve.at(301)
