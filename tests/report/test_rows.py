"""Which rows a figure shows where a store holds several settings."""

from __future__ import annotations

import pandas as pd
import pytest

from retrobench.report.rows import NotEnoughRows, one_setting, usual_length


def frame(*cells):
    rows = [
        {"model": "m", "method": method, "budget": budget, "sample": "vt/1024/0", "length": 1024}
        for method, budget in cells
    ]
    shared = {"changed": "", "engine.batch": 1, "protocol": "query_aware"}
    return pd.DataFrame(rows).assign(**shared)


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        ([("full", None), ("quest", "10%"), ("random", "10%"), ("quest", "5%")], "10%"),
        ([("full", None), ("quest", None), ("quest", "10%")], None),  # defaults before others
        ([("full", None)], None),
    ],
)
def test_a_figure_shows_full_attention_and_one_budget(cells, shown):
    rows = one_setting(frame(*cells), "")
    expected = [cell for cell in cells if cell[0] == "full" or cell[1] == shown]
    found = (
        rows[["method", "budget"]].astype(object).where(rows[["method", "budget"]].notna(), None)
    )
    assert list(map(tuple, found.to_numpy())) == expected


def test_a_figure_shows_the_batch_size_that_most_methods_have():
    cells = [("full", None), ("quest", "10%")]
    batched = frame(*cells).assign(**{"engine.batch": 4})
    rows = one_setting(pd.concat([frame(cells[0]), batched]), "")
    assert list(rows["engine.batch"]) == [4, 4]
    rows = one_setting(pd.concat([batched, frame(*cells)]), "")
    assert list(rows["engine.batch"]) == [1, 1]


def test_rows_of_other_settings_are_no_substitute():
    with pytest.raises(NotEnoughRows, match="run this"):
        one_setting(frame(("quest", "10%")).assign(changed="page_tokens=8"), "run this")


def test_the_longest_of_equally_common_lengths_is_shown():
    rows = pd.DataFrame({"length": [1024, 2048, 2048, 4096, 4096]})
    assert set(usual_length(rows)["length"]) == {4096}
