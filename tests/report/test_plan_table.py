"""The plan as a table: sizes stand beside the memory that they need."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from retrobench.core.shapes import Footprint
from retrobench.report.tables.plan import PlannedRun, print_planned

GIB = 2**30


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cpu", "largest session with weights: 11.0 GiB in host memory (8.0 GiB free)"),
        ("cuda:1", "weights: 4.0 GiB on a GPU, 7.0 GiB in host memory (8.0 GiB free)"),
    ],
)
def test_sizes_stand_by_place(device, words):
    place = Footprint(device=2 * GIB, pinned=4 * GIB, host=3 * GIB)
    sizes = {"weight_bytes": GIB, "waiting": GIB, "footprint": place}
    large = PlannedRun(label="a", state="run", device=device, **sizes)
    refused = PlannedRun(label="b", state="impossible", weight_bytes=99 * GIB, message="no")
    console = Console(width=200, record=True, file=io.StringIO())
    print_planned([large, refused], 8 * GIB, console)
    assert words in console.export_text()
