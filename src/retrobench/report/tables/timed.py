"""Tables of rows that are timed or simulated, and not answered: machine, speed and serve."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from retrobench.report.rows import HELD_BYTES, token_count
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

COLUMNS = (
    "meta.case meta.pool_gib machine.time_s machine.gb_s machine.tflop_s machine.parity_error "
    "machine.mode "
    "meta.batch meta.shape speed.step_s speed.step_q1_s speed.step_q3_s speed.tokens_per_s "
    "speed.read_bytes speed.read_gb_s speed.ceiling_gb_s speed.output_error speed.threads "
    "method_stats.backend prefill_tokens_per_s live.fetch_hidden_frac "
    "hardware replay.*"
).split()
ALIKE = "machine.cpu machine.gpu task.dtype task.layers task.cold model.dtype speed.threads".split()
COLUMNS += ALIKE[:-1]
SPEED_NOTE = (
    "vs full: against the fastest full attention of the same shape, context and batch; error: of "
    "the output against exact attention in float64; GB/s: read by a step, of what the memory was "
    "probed at; hidden: share of the fetch that nothing waited for"
)
REPLAY_NOTE = (
    "replay: queue, batches and memory are simulated with measured or modelled steps; nothing was "
    "served. good: requests within task.slo_ttft_s and task.slo_tpot_s."
)


def machine_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Ceilings and kernels, one line per case and size; a failure shows its status.

    Median time, rate, and the kernel's difference from its naive form.
    """
    rows = []
    for row in frame.to_dict("records"):
        line = {"case": row["meta.case"], "context": number(row["length"] or None, "d")}
        line["batch"] = number(row["meta.batch"], ".0f")
        line["GiB"] = number(row["meta.pool_gib"], "g")
        if row["status"] == OK:
            line |= {
                "us": number(1e6 * row["machine.time_s"], ".1f"),
                "GB/s": number(row["machine.gb_s"], ".1f"),
                "TFLOP/s": number(row["machine.tflop_s"], ".2f"),
                "parity error": number(row["machine.parity_error"], ".1e"),
                "run by": row["machine.mode"],
            }
        rows.append({**line, "status": row["status"]})
    return pd.DataFrame(rows)


def speed_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per method, context and batch: medians with quartiles, rates against the machine's.

    ``vs full`` divides by the fastest ``method=full`` row of the same model shape, context and
    batch; the backend that it ran is named in its line. A failure shows its status.
    """
    frame = frame.assign(sparse=frame["method"] != "full")  # full attention first
    rows = []
    for label, row in _labelled(frame, ["length", "meta.batch", "sparse", "method", "key"]):
        cell = {**label, "context": token_count(row["length"])}
        cell["batch"] = f"{row['meta.batch']:.0f}"
        good = row["status"] == OK
        cell |= _speed(row, full_step_s(row, frame)) if good else {"ms/step": row["status"]}
        rows.append(cell)
    return pd.DataFrame(rows)


def replay_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per machine, method and request rate: latencies, rates, share of good requests."""
    rows = []
    for label, row in _labelled(frame, ["model", "hardware", "method", "key"]):
        cell = {**label, "hardware": row["hardware"]}
        cell |= _replay(row) if row["status"] == OK else {"rate": row["status"]}
        rows.append(cell)
    return pd.DataFrame(rows)


def _labelled(frame: pd.DataFrame, order: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """(Labels, values) of every row, in the order of these columns."""
    frame = frame.sort_values(order, kind="stable").assign(line=range(len(frame)))
    for (_, label), row in zip(
        each_label(frame, by=("line",)), frame.to_dict("records"), strict=True
    ):
        yield label, row


def _speed(row: dict[str, Any], full_s: float | None) -> dict[str, str]:
    backend = row["method_stats.backend"]
    step_s, low, high = (row[f"speed.step_{name}s"] for name in ("", "q1_", "q3_"))
    held = sum(row[name] for name in HELD_BYTES)
    return {
        "backend": backend if isinstance(backend, str) else "",
        "ms/step": f"{1000 * step_s:.2f}",
        "quartiles": f"{1000 * low:.3g}-{1000 * high:.3g}",
        "tok/s": f"{row['speed.tokens_per_s']:.1f}",
        "vs full": "" if full_s is None else f"{full_s / step_s:.2f}x",
        "error": number(row["speed.output_error"], ".1e"),
        "MB/step": f"{row['speed.read_bytes'] / 1e6:.1f}",
        "GB/s": f"{row['speed.read_gb_s']:.1f} of {row['speed.ceiling_gb_s']:.1f}",
        "hit": number(row["live.hit_ratio"], ".2f"),
        "hidden": number(row["live.fetch_hidden_frac"], ".2f"),
        "prefill tok/s": number(row["prefill_tokens_per_s"], ".0f"),
        "prefill s": number(row["prefill_s"], ".2f"),
        "build s": f"{row['seal_s']:.2f}",
        "MB held": f"{held / 1e6:.0f}",
    }


def full_step_s(row: dict[str, Any], frame: pd.DataFrame) -> float | None:
    """Fastest full attention at the row's model, context and batch, timed as the row was."""
    same = (frame["method"] == "full") & (frame["status"] == OK)
    for name in ("model", "length", "meta.batch", *ALIKE):
        if name in frame:
            same &= frame[name].isna() if pd.isna(row[name]) else frame[name] == row[name]
    return float(frame.loc[same, "speed.step_s"].min()) if same.any() else None


def _replay(row: dict[str, Any]) -> dict[str, str]:
    def of(name: str, form: str, scale: float = 1.0) -> str:
        value = row.get(f"replay.{name}")
        return "" if value is None or value != value else number(value * scale, form)

    kind = "max " if row["sample"] == "largest" else ""
    kind += ">" if row.get("replay.bound") == "requests" else ""
    clients = of("max_concurrency", ".0f")
    return {
        "rate": f"{clients} clients" if clients else f"{kind}{of('request_rate', '.3g')}/s",
        "TTFT s": _pair(of("p50_ttft_ms", ".3g", 1e-3), of("p99_ttft_ms", ".3g", 1e-3)),
        "TPOT ms": _pair(of("p50_tpot_ms", ".3g"), of("p99_tpot_ms", ".3g")),
        "E2EL s": _pair(of("p50_e2el_ms", ".3g", 1e-3), of("p99_e2el_ms", ".3g", 1e-3)),
        "tok/s": of("output_throughput", ".0f"),
        "goodput": of("request_goodput", ".3g"),
        "good": of("good_frac", ".0%"),
        "batch": of("peak_batch", ".0f"),
        "memory": of("peak_memory_frac", ".0%"),
        "$/Mtok": of("usd_per_million_tokens", ".2f"),
    }


def _pair(middle: str, high: str) -> str:
    """Median and 99th percentile."""
    return f"{middle} ({high})" if middle else ""
