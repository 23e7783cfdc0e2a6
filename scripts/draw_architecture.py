"""Draw docs/architecture.svg: ``python scripts/draw_architecture.py``.

One prompt's way through the system. The file is plain text without external fonts; its colours
follow the reader's light or dark theme.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "architecture.svg"
WIDTH, HEIGHT, LEFT = 1000, 772, 20

LIGHT = {
    "page": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "line": "#6e7781", "box": "#ffffff",
    "plan": "#e8f1fb", "prefill": "#fdf0e1", "decode": "#e6f4ec", "rows": "#f2ecf8",
    "plan-edge": "#3b7dc4", "prefill-edge": "#c9741a", "decode-edge": "#2b8a57",
    "rows-edge": "#8257b0",
}  # fmt: skip
DARK = {
    "page": "#0d1117", "ink": "#e6edf3", "soft": "#9ea7b3", "line": "#8b949e", "box": "#161b22",
    "plan": "#10233a", "prefill": "#33220f", "decode": "#0f2a1c", "rows": "#241a33",
    "plan-edge": "#5b9be0", "prefill-edge": "#e09a4c", "decode-edge": "#4fb37e",
    "rows-edge": "#a884d6",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"


def style() -> str:
    """Colours of both themes as classes: ``f-NAME`` fills, ``s-NAME`` draws lines."""

    def rules(colors: dict[str, str]) -> str:
        return " ".join(
            f".f-{name} {{ fill: {color} }} .s-{name} {{ stroke: {color} }}"
            for name, color in colors.items()
        )

    return (
        f"<style>text {{ font-family: {FONT} }} {rules(LIGHT)}\n"
        f"@media (prefers-color-scheme: dark) {{ {rules(DARK)} }}</style>"
    )


def text(
    x: int, y: int, words: str, size: int = 13, color: str = "ink", anchor: str = "middle",
    bold: bool = False,
) -> str:  # fmt: skip
    """One line of text, its baseline at ``y``."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
        f'class="f-{color}"{weight}>{escape(words)}</text>'
    )


def rectangle(x: int, y: int, width: int, height: int, fill: str, edge: str = "") -> str:
    """A rounded rectangle; without ``edge`` it has no border."""
    border = f' class="f-{fill} s-{edge}" stroke-width="1.5"' if edge else f' class="f-{fill}"'
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8"{border}/>'


def box(frame: tuple[int, int, int, int], kind: str, words: str) -> str:
    """A box at ``(x, y, width, height)``: a title and smaller lines below it, centred."""
    x, y, width, height = frame
    title, *lines = words.split("\n")
    top = y + height // 2 + 5 - 8 * len(lines)
    parts = [rectangle(x, y, width, height, "box", f"{kind}-edge")]
    parts.append(text(x + width // 2, top, title, 14, bold=True))
    for number, line in enumerate(lines, 1):
        parts.append(text(x + width // 2, top + 1 + 16 * number, line, 11, "soft"))
    return "\n".join(parts)


def band(y: int, height: int, kind: str, title: str, note: str) -> str:
    """A coloured stage of the way, with its name and what is true of all of it."""
    parts = [rectangle(LEFT, y, WIDTH - 2 * LEFT, height, kind)]
    parts.append(text(LEFT + 14, y + 22, title, 14, f"{kind}-edge", "start", bold=True))
    parts.append(text(WIDTH - LEFT - 14, y + 22, note, 11, "soft", "end"))
    return "\n".join(parts)


def arrow(*points: tuple[int, int]) -> str:
    """A line through points, with a head at the last one."""
    way = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{way}" fill="none" class="s-line" stroke-width="1.6" '
        'marker-end="url(#head)"/>'
    )


OPTIONS = "Checked options\nHydra composes conf/,\nfrozen dataclasses decide"
SUMMARY = "Summary of each cell\nkey, samples, bytes, hours;\nremembered on disk"
PROMPT = (
    "PrefilledPrompt\nkeys and values of every managed layer, last logits;\n"
    "queries, attention mass, inputs if a method needs them"
)
MODEL = (
    "Model\ntransformers' forward,\nrun by an executor:\neager, step by step, or\n"
    "graph, one CUDA graph"
)
SELECTION = "Selection\nEverything, Tokens\nor Spans; estimates,\nready partials"
ATTENTION = "Attention\nover the parts,\nmerged by\nlog-sum-exp"
COUNTS = "Counts\ntokens and bytes, added up on\nthe device, read once per answer"
ROWS = "Rows of a cell\none per sample, fsynced,\nappended, never rewritten"


def plan() -> list[str]:
    """From the command line to units, without torch where everything is remembered."""
    y, note = 62, "cli, run: a finished cell is answered here, without torch"
    command = "Command line\nrun.py -m task=ruler\nmethod=full,retroinfer,quest"
    return [
        band(20, 122, "plan", "1 Plan", note),
        box((36, y, 200, 64), "plan", command),
        box((276, y, 200, 64), "plan", OPTIONS),
        box((516, y, 200, 64), "plan", SUMMARY),
        box((756, y, 208, 64), "plan", "Units\njobs whose cells start\nfrom the same prompts"),
        *(arrow((x, y + 32), (x + 38, y + 32)) for x in (237, 477, 717)),
    ]


def prefill() -> list[str]:
    """One prefill for all cells of a unit."""
    y, note = 208, "engine.prefill: exact attention, in chunks"
    cells = "Group of cells\na lock, rows and a status each;\nfull, retroinfer, quest"
    return [
        band(164, 140, "prefill", "2 Prefill once", note),
        box((36, y, 208, 80), "prefill", cells),
        box((336, y, 208, 80), "prefill", "Prefill\nthe prompt once through\nthe model"),
        box((636, y, 328, 80), "prefill", PROMPT),
        arrow((245, y + 40), (334, y + 40)),
        text(289, y + 32, "prompts", 11, "soft"),
        arrow((545, y + 40), (634, y + 40)),
        text(589, y + 32, "kept on disk", 11, "soft"),
        text(589, y + 58, "if asked", 11, "soft"),
        arrow((860, 127), (860, 153), (190, 153), (190, y - 2)),
    ]


def decode() -> list[str]:
    """One session per method: the model asks, the method answers."""
    note = "engine.session, memory, methods"
    return [
        band(326, 268, "decode", "3 Build and decode, method by method", note),
        box((36, 398, 176, 150), "decode", MODEL),
        box((270, 398, 100, 150), "decode", "Session\nsends each\nlayer to\nits method"),
        arrow((213, 446), (268, 446)),
        text(241, 438, "q, k, v", 11, "soft"),
        arrow((269, 506), (214, 506)),
        text(241, 524, "output", 11, "soft"),
        arrow((371, 473), (414, 473)),
        *method(416, 408),
        arrow((690, 289), (690, 374)),
    ]


def method(x: int, y: int) -> list[str]:
    """The parts of a selective method, in front of the other methods of the sweep."""
    parts = []
    for back, name in ((2, "full"), (1, "quest"), (0, "")):
        left, top = x + 14 * back, y - 16 * back
        parts.append(rectangle(left, top, 514, 164, "decode", "decode-edge"))
        parts.append(text(left + 500, top + 13, name, 11, "soft", "end") if name else "")
    low = y + 154  # the store's line to attention
    corners = (x + 155, y + 119), (x + 181, y + 119), (x + 181, low), (x + 441, low)
    return [
        *filter(None, parts),
        text(x + 14, y + 22, "A method: retroinfer", 14, anchor="start", bold=True),
        text(x + 500, y + 22, "build: PromptLayer fills both", 11, "soft", "end"),
        box((x + 16, y + 34, 138, 46), "decode", "Index\nWHICH tokens"),
        box((x + 16, y + 96, 138, 46), "decode", "KVStore\nWHERE they live"),
        box((x + 208, y + 34, 128, 108), "decode", SELECTION),
        box((x + 382, y + 34, 118, 108), "decode", ATTENTION),
        arrow((x + 155, y + 57), (x + 206, y + 57)),
        text(x + 181, y + 50, "select", 11, "soft"),
        arrow((x + 337, y + 74), (x + 380, y + 74)),
        arrow(*corners, (x + 441, y + 143)),
    ]


def rows() -> list[str]:
    """What an answer leaves."""
    y = 658
    return [
        band(616, 136, "rows", "4 Rows", "run.rows, tasks, store, report"),
        box((36, y, 208, 72), "rows", COUNTS),
        box((288, y, 188, 72), "rows", "Score\nthe benchmark's own scorer"),
        box((520, y, 200, 72), "rows", ROWS),
        box((764, y, 200, 72), "rows", "Tables and figures\nfrom rows alone"),
        *(arrow((left, y + 36), (left + 42, y + 36)) for left in (245, 477, 721)),
        arrow((124, 549), (124, y - 2)),
        text(134, 642, "answer", 11, "soft", "start"),
    ]


def render() -> str:
    """The whole file."""
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" class="f-line"/></marker>'
        "</defs>"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title">',
        '<title id="title">One prompt: plan, prefill once, build and decode, rows</title>',
        style(),
        head,
        rectangle(0, 0, WIDTH, HEIGHT, "page"),
    ]
    for stage in (plan, prefill, decode, rows):
        parts += stage()
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    OUT.write_text(render(), encoding="utf-8")
