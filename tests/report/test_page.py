"""The page of a report, in a real browser: what it shows, what a reader does, hostile text."""

import json
from html.parser import HTMLParser

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from retrobench.report import headroom
from retrobench.report.page import samples
from retrobench.report.page.charts import charts, pareto_points
from retrobench.report.page.html import _overview, render, write_report
from retrobench.report.page.tables import cost_table, plain_table, score_table
from retrobench.report.tables.overview import COLUMNS
from tests.report.browser import act, call

HOSTILE = (
    "</script><script>top.owned=1;document.title='owned'</script><img src=x onerror=top.owned=1>"
    "<!--<script>{{7*7}}{%x%}\"' onmouseover='top.owned=1' &amp; \u202e\u2028 ]]> $\\frac$"
)
NEEDLES = [(depth, length) for depth in (0, 50, 100) for length in (1024, 2048)]


@pytest.fixture
def loaded(lab):
    def load():
        return headroom.load(lab.store, [*COLUMNS, *samples.COLUMNS, "code", "time"], None)

    return load


def write(lab, tmp_path, title="a <sweep>"):
    return write_report(lab.store, lab.store.cell_keys(), title, tmp_path / "page" / "report.html")


def fidelity(attended, mass):
    """Of ``measure=fidelity``: these shares by place, too little for the figures for print."""
    made = {"steps": 3, "layers": [0], "sparse_layers": [0]}
    return {**made, "places": {"attended": attended, "mass": mass}}


def compared(lab):
    """Three methods on two benchmarks; rows as runs write them now."""
    for method, score, mib in (("full", 1.0, 90), ("retroinfer", 0.75, 9), ("random", 0.0, 9.5)):
        rows = lab.rows(lengths=(1024, 2048), count=4, score=1.0, mib=mib)
        for number, row in enumerate(rows):
            row["score"] = float(number % 4 < 4 * score)
            row["prediction"] = f"{method} says {number}"
            row["prompt_tail"] = f"What is number {number}?"
        budget = None if method == "full" else "10%"
        lab.cell(method, budget=budget, rows=rows)
        needles = [
            lab.row("niah", length, f"{depth}/0", score, mib=mib, meta={"depth": float(depth)})
            for depth, length in NEEDLES
        ]
        measured = fidelity([score] * 64, [1 / 64] * 64)
        rows = [{**row, "fidelity": measured} for row in needles]
        lab.cell(method, budget=budget, benchmark="niah", rows=rows)


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_says_nothing_to_the_console(lab, tmp_path):
    compared(lab)
    path = write(lab, tmp_path)
    outside = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            for name, value in attrs:
                if name in {"src", "href"} and not value.startswith(("data:", "#")):
                    outside.append(value)

    Links().feed(path.read_text())
    assert outside == [] and "a &lt;sweep&gt;" in path.read_text()
    page, said = call(tmp_path, "--dump-dom", path.as_uri())
    assert said == [] and "a &lt;sweep&gt;" in page
    assert page.count('<figure class="chart">') == page.count('class="marks"') == 5
    shot = tmp_path / "page.png"
    call(tmp_path, f"--screenshot={shot}", "--window-size=1100,1600", path.as_uri())
    assert shot.stat().st_size > 10_000


@pytest.mark.slow
def test_a_reader_sorts_filters_and_hovers(lab, tmp_path):
    compared(lab)
    found = act(
        write(lab, tmp_path),
        """
        const table = page.querySelector('[data-table="overview"]'), text = (n) => n.textContent;
        const names = () => [...table.querySelectorAll('tbody tr')]
          .filter((row) => !row.hidden).map((row) => text(row.cells[0]));
        const [method, budget, niah] = table.querySelectorAll('th button');
        const found = { before: names() };
        niah.click(); found.best = names(); found.sorted = niah.parentNode.ariaSort;
        niah.click(); found.worst = names();
        niah.click(); found.again = names();
        const type = (input, value) => {
          input.value = value; input.dispatchEvent(new Event('input')); };
        type(table.querySelector('input.rows'), '10% -random'); found.filtered = names();
        found.count = text(table.querySelector('.count'));
        const scores = page.querySelector('#group-1 figure.table');
        type(scores.querySelector('input.columns'), '2k');
        found.columns = [...scores.querySelectorAll('th')].filter((h) => !h.hidden).map(text);
        const dot = page.querySelector('#group-1 .mark-symbol path[aria-label*="retroinfer"]');
        const box = dot.getBoundingClientRect(), view = page.defaultView;
        const place = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
        for (const kind of ['pointerover', 'pointermove', 'mouseover', 'mousemove'])
          dot.dispatchEvent(new view.MouseEvent(kind, { bubbles: true, view, ...place }));
        await wait(400);
        found.tip = text(page.querySelector('#vg-tooltip-element'));
        const title = () => text(page.querySelector('#group-1 .role-title-text'));
        found.cost = title();
        const pick = page.querySelector('#group-1 .vega-bindings select');
        pick.value = 'ms per step'; pick.dispatchEvent(new Event('change', { bubbles: true }));
        await wait(400);
        found.other = title();
        const root = page.documentElement, color = () => view.getComputedStyle(page.body).color;
        found.colors = [color()];
        page.getElementById('theme').click(); await wait(300);
        const label = page.querySelector('.role-axis-label text');
        found.colors.push(color(), label.getAttribute('fill'));
        return found;
        """,
        query="?theme=light",
    )
    assert found["before"] == ["full", "retroinfer", "random"] == found["again"]
    assert found["best"][0] == "full" and found["sorted"] == "descending"
    assert found["worst"][0] == "random"
    assert found["filtered"] == ["retroinfer"] and found["count"] == "1 of 3"
    assert found["columns"][-2:] == ["s2@2K", "mk2@2K"] and "s2@1K" not in found["columns"]
    assert "10%" in found["tip"] and "75.0" in found["tip"] and "yes" in found["tip"]
    assert "MiB" in found["cost"] and found["other"] == "ms per step"
    assert found["colors"] == ["rgb(27, 31, 36)", "rgb(228, 231, 235)", "#e4e7eb"]


@pytest.mark.slow
def test_a_reader_opens_samples(lab, tmp_path):
    compared(lab)
    found = act(
        write(lab, tmp_path),
        """
        const [niah, ruler] = all('.samples'), text = (n) => n.textContent;
        const [search, differ] = ruler.querySelectorAll('input');
        const list = () => [...ruler.querySelectorAll('.sample > summary > b')].map(text);
        const found = { all: list().length };
        search.value = 'says 13?'; search.dispatchEvent(new Event('input'));
        found.searched = list();
        search.value = ''; search.dispatchEvent(new Event('input'));
        differ.click();
        found.differ = list().length; found.count = text(ruler.querySelector('.count'));
        const open = async (box) => {
          const node = box.querySelector('.sample');
          node.open = true; await wait(100); return node; };
        found.sample = text(await open(ruler));
        const first = await open(niah);
        const strips = first.querySelectorAll('svg.strip');
        found.strips = strips.length;
        found.attended = strips[1].querySelectorAll('.attended').length;
        found.note = text(first.querySelectorAll('.answer')[1]);
        return found;
        """,
    )
    assert found["all"] == 16 and found["searched"] == ["niah_multikey_2/2048/1"]
    assert found["differ"] == 16 and found["count"] == "16 of 16 prompts"
    for words in ("What is number 0?", "full says 0", "random says 0", "score 0.0"):
        assert words in found["sample"]
    assert found["strips"] == 3 and found["attended"] == 64
    assert "75.0%" in found["note"] and "needle at 0%" in found["note"]


def test_hostile_text_is_text(lab, tmp_path):
    for method in ("full", HOSTILE):
        rows = []
        for number in range(3):
            row = lab.row(f"task {HOSTILE}", 1024 * (1 + number % 2), number, score=number / 2)
            row |= {"prediction": HOSTILE, "references": [HOSTILE], "prompt_tail": HOSTILE}
            row["fidelity"] = fidelity([HOSTILE], [1.0])
            rows.append(row)
        note = {"note": HOSTILE, HOSTILE: 1} if method != "full" else {}
        lab.cell(method, model=f"m {HOSTILE}", code="made up", rows=rows, **note)
    failed = lab.row("plain", status=HOSTILE, score=None, message=f"\ud800{HOSTILE}")
    rows = [lab.row(score=1.0), failed]
    key = lab.cell("full", benchmark=f"b {HOSTILE}", code=HOSTILE, rows=rows)
    lab.store.set_status(key, {"state": "failed", "message": HOSTILE})
    path = write(lab, tmp_path, title=HOSTILE)
    page, said = call(tmp_path, "--dump-dom", path.as_uri())
    assert said == []  # no script was even tried: the policy would have told
    found = act(
        path,
        """
        all('details').forEach((node) => { node.open = true; });
        await wait(500);
        const text = (what) => all(what).map((node) => node.textContent);
        return {
          title: page.title, owned: [frame.contentWindow.owned, window.owned, top.owned],
          images: all('img:not([src^="data:image/png"])').length, scripts: all('script').length,
          marks: all('[onmouseover], [onerror]').length, heads: text('h1, h2, article h3'),
          predictions: text('.answer pre'), lines: text('#overview li'),
          tables: text('td span').filter((x) => x.includes('onmouseover')).length,
          charts: all('svg.marks').length, drawn: text('svg.marks text'),
        };
        """,
    )
    assert found["title"] == HOSTILE and found["owned"] == [None] * 3
    assert found["images"] == found["marks"] == 0
    assert found["scripts"] == 2 + found["charts"] + 2  # ours, and the data of charts and samples
    heads = [head.replace(" substitute data", "") for head in found["heads"]]
    assert {HOSTILE, f"m {HOSTILE} · ruler", f"made_up · b {HOSTILE}"} <= set(heads)
    assert HOSTILE in found["predictions"] and any(HOSTILE in line for line in found["lines"])
    assert found["tables"] > 3 and found["charts"] >= 2
    assert any("onmouseover" in text or "</script>" in text for text in found["drawn"])


def test_tables_hold_means_intervals_and_heat(lab, loaded):
    compared(lab)
    frame = loaded()
    table = score_table(frame[frame["benchmark"] == "ruler"])
    rows = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    entry = rows["retroinfer"]["s2@1K"]
    assert (entry.text, entry.heat) == ("75.0", 0.75) and "4 samples" in entry.tip
    low, high = map(float, entry.interval.split("–"))
    assert 0 <= low < 75 < high <= 100
    wide = [float(x) for x in rows["retroinfer"]["avg"].interval.split("–")]
    assert low < wide[0] < 75 < wide[1] < high  # of 16 samples, not of 4
    assert rows["full"]["s2@1K"].interval == "" and rows["random"]["avg"].text == "0.0"
    costs = cost_table(frame[frame["benchmark"] == "ruler"])
    heats = [row[costs.columns.index("MiB/step")].heat for row in costs.rows]
    assert max(heats) == heats[0] == 1 and min(heats) == 0


def test_failures_are_shown_and_not_averaged(lab, loaded):
    lab.cell("full", rows=[lab.row(), lab.row(index=1, status="oom", score=None)])
    table = score_table(loaded())
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert (shown["avg"].text, shown["s2"].text, shown["s2"].heat) == ("-", "oom 1/2", None)
    assert "avg" in table.columns and charts(loaded()) == []


def test_the_front_holds_what_nothing_beats(lab, loaded):
    compared(lab)
    frame = loaded()
    points = pareto_points(frame[frame["benchmark"] == "ruler"])
    moved = points[points["cost"].str.startswith("MiB")].set_index("method")
    assert dict(moved["front"]) == {"full": "yes", "retroinfer": "yes", "random": "no"}
    assert moved.loc["retroinfer", "score"] == 75
    titles = [title for title, _ in charts(frame[frame["benchmark"] == "niah"])]
    assert [title.split(":")[0] for title in titles] == [
        "Pareto front", "Score by context length", "Needle maps",
    ]  # fmt: skip


def test_many_samples_are_cut_evenly_and_told(lab, loaded, monkeypatch):
    monkeypatch.setattr(samples, "ANSWERS", 6)
    lab.cell("full", rows=lab.rows(lengths=(1024, 2048), count=5, prediction="x" * 5000))
    found = samples.samples(loaded(), lab.store)
    assert found["total"] == 20 and len(found["prompts"]) == 6
    assert len({(p["task"], p["length"]) for p in found["prompts"]}) == 4
    text = found["prompts"][0]["answers"][0]["prediction"]
    assert len(text) < 2100 and text.endswith("(3000 more characters)")


def test_heat_is_by_ratio_and_words_have_none():
    import pandas as pd

    matrix = pd.DataFrame({"method": ["1", "2"], "ms": ["1.0", "100"], "odd": ["1", "oom"]})
    table = plain_table("t", matrix)
    assert [[entry.heat for entry in row] for row in table.rows] == [
        [None, 0, None],
        [None, 1, None],
    ]


def test_a_page_without_rows_is_refused_unless_it_waits_for_them(lab):
    with pytest.raises(ValueError, match="no rows yet"):
        render(lab.store, [], "t")
    assert b"No rows yet" in render(lab.store, [], "t", live=True)


def test_numbers_that_json_lacks_do_not_reach_the_page(lab, loaded):
    lab.cell("full", rows=[lab.row(meta={"depth": "deep"})])
    found = samples.samples(loaded(), lab.store)
    json.dumps(found, allow_nan=False)
    assert found["prompts"][0]["depth"] is None


def test_cells_of_one_setting_have_a_row_each_in_the_overview(lab, loaded):
    for seed, score in enumerate((1.0, 0.0)):
        lab.cell(rows=lab.rows(score=score), seed=seed, labels={"changed": ""})
    group = {"model": "made_up", "benchmark": "ruler", "tables": [score_table(loaded())]}
    assert sorted(row[-1].text for row in _overview([group]).rows) == ["0.0", "100.0"]
