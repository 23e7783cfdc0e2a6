"""The table of costs: a row per cell and context length."""

import pandas as pd

from retrobench.report.rows import HELD_BYTES, moved_bytes, step_seconds, token_count
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

UPDATE_SPAN = "live.span_s.update"  # with measure=latency

# column -> (what it shows of answered rows, format)
COLUMNS = {
    "tokens attended": (lambda rows: rows["live.attended_tokens"], ".0f"),
    "estimated": (lambda rows: rows["live.estimated_tokens"], ".0f"),
    "prefill s": (lambda rows: rows["prefill_s"], ".2f"),
    "prefill tok/s": (lambda rows: rows["prefill_tokens_per_s"], ".0f"),
    "prefill frac": (lambda rows: rows["prefill_computed_frac"], ".2f"),
    "build s": (lambda rows: rows["seal_s"], ".3f"),
    "ms/step": (lambda rows: 1000 * step_seconds(rows), ".1f"),
    "update %": (lambda rows: 100 * rows[UPDATE_SPAN] / rows["decode_s"], ".2f"),
    "MiB held": (lambda rows: rows[HELD_BYTES].sum(axis=1) / 2**20, ".1f"),
    "MiB/step": (lambda rows: moved_bytes(rows) / 2**20, ".2f"),
    "hit ratio": (lambda rows: rows["live.hit_ratio"], ".2f"),
}
NOTE = (
    "prefill frac: attention that a sparse prefill computed; build s: making the index; update %: "
    "share of decoding that its updates took; MiB held: KV cache and index; MiB/step: read or "
    "copied by a decode step in all layers; estimated: tokens that clusters stand for"
)


def cost_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians per cell and length: tokens attended and estimated, seconds, bytes, hit ratio.

    ``prefill by`` names what computed the attention of the prompts.
    """
    good = frame[frame["status"] == OK]
    values = {name: values(good) for name, (values, _) in COLUMNS.items()}
    lines = [good["key"], good["length"]]
    medians = pd.DataFrame(values, dtype=float).groupby(lines, sort=False).median()
    named = good[good["prefill_attention"].notna()]
    forms = named.groupby(["key", "length"])["prefill_attention"].unique().to_dict()
    rows = []
    for line, labels in each_label(good, by=("key", "length")):
        own = medians.loc[line]
        texts = {name: number(own[name], form) for name, (_, form) in COLUMNS.items()}
        texts["prefill by"] = ", ".join(forms.get(line, ()))
        rows.append({**labels, "context": token_count(line[1]) if line[1] else "", **texts})
    return pd.DataFrame(rows)
