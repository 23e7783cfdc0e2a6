"""The table of ``task=serve``: one line per machine, method and request rate."""

from typing import Any

import pandas as pd

from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

COLUMNS = "hardware replay.*".split()
NOTE = (
    "replay: queue, batches and memory are simulated with measured or modelled steps; nothing was "
    "served. good: requests within task.slo_ttft_s and task.slo_tpot_s."
)


def replay_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Latencies in seconds and milliseconds, rates, and the share of good requests."""
    order = ["model", "hardware", "method", "key"]
    frame = frame.sort_values(order, kind="stable").assign(line=range(len(frame)))
    rows = []
    labels = each_label(frame, by=("line",))
    for (_, label), row in zip(labels, frame.to_dict("records"), strict=True):
        cell = {**label, "hardware": row["hardware"]}
        cell |= _measured(row) if row["status"] == OK else {"rate": row["status"]}
        rows.append(cell)
    return pd.DataFrame(rows)


def _measured(row: dict[str, Any]) -> dict[str, str]:
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
