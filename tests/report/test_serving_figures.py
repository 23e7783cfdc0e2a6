"""Figures of replays show what rows say, and that they are replays; so does the table."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from retrobench.report.figures import serving
from retrobench.report.figures.draw import draw, load
from retrobench.report.rows import NotEnoughRows
from retrobench.report.tables.timed import replay_matrix


def replayed(sample, rate, scale=1.0, **more):
    found = {
        "kind": "replay", "request_rate": rate, "slo_ttft_s": 2.0, "slo_tpot_s": 0.2,
        "good_share": 0.9, "requests": "9 requests of fixed, poisson", "good_frac": 0.95,
        "usd_per_million_tokens": 3.0 * scale, "output_throughput": 50.0,
    }  # fmt: skip
    for name in ("ttft", "tpot", "e2el"):
        found |= {f"p{p}_{name}_ms": scale * rate * (p + 1) for p in (50, 90, 99)}
    row = {"sample": sample, "task": "serve", "length": 0, "status": "ok", "score": None}
    return {**row, "replay": found | more}


def write(lab):
    for number, machine in enumerate(("gpu", "csd"), 1):
        for method in ("full", "quest"):
            rows = [replayed(f"rate-{rate}", rate, number) for rate in (1, 2)]
            bound = "requests" if machine == "gpu" else "objectives"
            rate = 0.0 if (machine, method) == ("csd", "full") else 4.0 * number
            rows.append(replayed("largest", rate, number, bound=bound))
            labels = {"hardware": machine, "changed": ""}
            lab.cell(method, benchmark="serve", rows=rows, labels=labels, seed=number)


def texts(drawing):
    return [text.get_text() for axes in drawing.axes for text in axes.texts]


def test_latencies_by_rate_machine_and_method(lab):
    write(lab)
    drawing = serving.serving(load(lab.store))
    assert [axes.get_title() for axes in drawing.axes[:2]] == ["csd", "gpu"]
    csd = drawing.axes[0]
    (line,) = [line for line in csd.lines if line.get_label() == "full"]
    assert line.get_xydata().ravel().tolist() == pytest.approx([1.0, 0.102, 2.0, 0.204])
    limits = [line.get_ydata()[0] for line in (csd.lines[-1], drawing.axes[2].lines[-1])]
    assert limits == [2.0, 200.0]  # seconds to the first token, milliseconds per token
    assert "replay: simulated queue" in drawing._supxlabel.get_text()


def test_largest_rates_and_prices(lab):
    write(lab)
    frame = load(lab.store)
    shown = texts(serving.goodput(frame))
    assert sorted(shown) == ["8", "none", "≥4", "≥4"]
    assert sorted(texts(serving.serving_cost(frame))) == ["3", "3", "6", "6"]
    matrix = replay_matrix(frame)
    assert {"max >4/s", "max 8/s", "1/s"} <= set(matrix["rate"])


def test_budgets_and_kinds_of_requests_share_no_line(lab):
    for scale, more in enumerate(({}, {"budget": "1%"}, {"requests": "9 of another kind"}), 1):
        kind = {"requests": more.pop("requests")} if "requests" in more else {}
        rows = [replayed(f"rate-{rate}", rate, scale, **kind) for rate in (1, 2)]
        rows += [replayed("rate-4", 4, scale)] * (scale == 1)
        lab.cell(
            "quest", benchmark="serve", rows=rows, n=scale,
            labels={"hardware": "gpu", "changed": ""}, **more,
        )  # fmt: skip
    line = serving.serving(load(lab.store)).axes[0].lines[0]
    assert line.get_xydata()[:, 0].tolist() == [1, 2, 4]
    assert line.get_xydata()[:, 1].tolist() == pytest.approx([0.051, 0.102, 0.204])


def test_rates_that_nobody_reaches_are_said(lab):
    lab.cell("full", benchmark="serve", rows=[replayed("largest", 0.0)], labels={"hardware": "gpu"})
    with pytest.raises(NotEnoughRows, match=r"no rate had enough good requests .*within 2 s"):
        serving.goodput(load(lab.store))


def test_flash_against_sparsity(lab, tmp_path):
    for ratio in (2, 8):
        stats = {"flash_read_bytes": 400.0, "flash_read_frac": 0.4}
        live = {"bytes_per_step": {"kv": 60, "index": 40}, "decode_calls": {"0": 1}}
        row = {**lab.row(), "method_stats": stats, "live": live}
        lab.cell("sparf", benchmark="speed", rows=[row], ratio=float(ratio))
    (axes,) = serving.flash_bytes(load(lab.store)).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["pages read"] == [[0.5, 0.4], [0.125, 0.4]]
    # 100 bytes pass the filter where 400 are read, which are 40% of all
    assert lines["after the filter"] == [[0.5, pytest.approx(0.1)], [0.125, pytest.approx(0.1)]]
    assert all(path for _, path, _ in draw(lab.store, tmp_path, ["flash_bytes"]))


def test_missing_rows_name_the_command(lab):
    lab.cell(rows=lab.rows())
    frame = load(lab.store)
    for figure in serving.FIGURES.values():
        with pytest.raises(NotEnoughRows, match="python run.py -m experiment="):
            figure(frame)
