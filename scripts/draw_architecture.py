"""Draw docs/architecture.svg: the way of one prompt.

Plain text without external fonts; colours follow the reader's light or dark theme.
"""

import argparse
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "architecture.svg"
TITLE = "One prompt: plan, prefill once, build and decode, rows"
WIDTH, HEIGHT = 1000, 772
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
NAMES = "unread page ink soft line box plan prefill decode rows plan-edge prefill-edge decode-edge"
NAMES += " rows-edge"
LIGHT = "d5dae0 ffffff 1f2328 59636e 6e7781 ffffff "
LIGHT += "e8f1fb fdf0e1 e6f4ec f2ecf8 3b7dc4 c9741a 2b8a57 8257b0"
DARK = "39424d 0d1117 e6edf3 9ea7b3 8b949e 161b22 "
DARK += "10233a 33220f 0f2a1c 241a33 5b9be0 e09a4c 4fb37e a884d6"
MORE_METHODS = ((444, 376, "full"), (430, 392, "quest"))  # behind the one that is drawn in full

BANDS = {  # y, height, name, what is true of all of it
    "plan": (20, 122, "1 Plan", "cli, run: a finished cell is answered here, without torch"),
    "prefill": (164, 140, "2 Prefill once", "engine.prefill: exact attention, in chunks"),
    "decode": (326, 268, "3 Build and decode, method by method", "engine, memory, methods"),
    "rows": (616, 136, "4 Rows", "run.rows, tasks, store, report"),
}
BOXES = {  # x, y, width, height: a title and smaller lines
    "plan": {
        (36, 62, 200, 64): "Command line|run.py -m task=ruler|method=full,retroinfer,quest",
        (276, 62, 200, 64): "Checked options|Hydra composes conf/,|frozen dataclasses decide",
        (516, 62, 200, 64): "Summary of each cell|key, samples, bytes, hours;|remembered on disk",
        (756, 62, 208, 64): "Units|jobs whose cells start|from the same prompts",
    },
    "prefill": {
        (36, 208, 208, 80): "Group of cells|a lock, rows, a status each;|full, retroinfer, quest",
        (336, 208, 208, 80): "Prefill|the prompt once through|the model",
        (636, 208, 328, 80): "PrefilledPrompt|keys and values of every managed layer, last logits;"
        "|queries, attention mass, inputs if a method needs them",
    },
    "decode": {
        (36, 398, 176, 150): "Model|transformers' forward,|run by an executor:"
        "|eager, step by step, or|graph, one CUDA graph",
        (270, 398, 100, 150): "Session|sends each|layer to|its method",
        (432, 442, 138, 46): "Index|WHICH tokens",
        (432, 504, 138, 46): "KVStore|WHERE they live",
        (624, 442, 128, 108): "Selection|Everything, Tokens|or Spans; estimates,|ready partials",
        (798, 442, 118, 108): "Attention|over the parts,|merged by|log-sum-exp",
    },
    "rows": {
        (36, 658, 208, 72): "Counts|tokens and bytes, added up on|the device, read once per answer",
        (288, 658, 188, 72): "Score|the benchmark's own scorer",
        (520, 658, 200, 72): "Rows of a cell|one per sample, fsynced,|appended, never rewritten",
        (764, 658, 200, 72): "Tables and figures|from rows alone",
    },
}
ARROWS = """237,94 275,94|477,94 515,94|717,94 755,94|245,248 334,248|545,248 634,248
860,127 860,153 190,153 190,206|690,289 690,374|213,446 268,446|269,506 214,506|371,473 414,473
571,465 622,465|753,482 796,482|571,527 597,527 597,562 857,562 857,551|124,549 124,656
245,694 287,694|477,694 519,694|721,694 763,694"""
LABELS = {
    (289, 240): "prompts", (589, 240): "kept on disk", (589, 266): "if asked",
    (241, 438): "q, k, v", (241, 524): "output", (597, 458): "select", (152, 642): "answer",
}  # fmt: skip


def text(x: int, y: int, line: str, size: int = 11, color: str = "soft", at: str = "middle") -> str:
    """One line, its baseline at ``y``; sizes above 11 are titles."""
    bold = ' font-weight="600"' if size > 11 else ""
    look = f'font-size="{size}" text-anchor="{at}" class="f-{color}"{bold}'
    return f'<text x="{x}" y="{y}" {look}>{escape(line)}</text>'


def rectangle(x: int, y: int, width: int, height: int, look: str) -> str:
    """A rounded rectangle of classes ``f-FILL`` and, with a border, ``s-EDGE``."""
    size = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {size} rx="8" class="{look}" stroke-width="1.5"/>'


def style() -> str:
    """Both themes as classes: ``f-NAME`` fills, ``s-NAME`` draws lines."""
    rule = " .f-{0} {{ fill: #{1} }} .s-{0} {{ stroke: #{1} }}".format
    light, dark = ("".join(map(rule, NAMES.split(), t.split())) for t in (LIGHT, DARK))
    dark = f"@media (prefers-color-scheme: dark) {{{dark} }}"
    return f"<style>text {{ font-family: {FONT} }}{light}\n{dark}</style>"


def picture(title: str, width: int, height: int, shapes: list[str]) -> str:
    """The whole file of a picture."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = 'id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        f'<title id="title">{title}</title>\n{style()}\n<defs><marker {head} orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" class="f-line"/></marker></defs>',
        rectangle(0, 0, width, height, "f-page"),
    ]
    return "\n".join([*parts, *shapes, "</svg>"]) + "\n"


def arrow(points: str) -> str:
    """A line through points (``x,y x,y``) with a head at its end."""
    look = 'fill="none" class="s-line" stroke-width="1.6" marker-end="url(#head)"'
    return f'<polyline points="{points}" {look}/>'


def render() -> str:
    """The whole file."""
    parts = []
    for kind, (y, height, name, note) in BANDS.items():
        parts.append(rectangle(20, y, WIDTH - 40, height, f"f-{kind}"))
        parts.append(text(34, y + 22, name, 14, f"{kind}-edge", "start"))
        parts.append(text(WIDTH - 34, y + 22, note, at="end"))
    for x, y, name in (*MORE_METHODS, (416, 408, "build: PromptLayer fills both")):
        parts.append(rectangle(x, y, 514, 164, "f-decode s-decode-edge"))
        parts.append(text(x + 500, y + (22 if ":" in name else 13), name, at="end"))
    parts.append(text(430, 430, "A method: retroinfer", 14, "ink", "start"))
    for kind, boxes in BOXES.items():
        for (x, y, width, height), words in boxes.items():
            title, *lines = words.split("|")
            top = y + height // 2 + 5 - 8 * len(lines)
            parts.append(rectangle(x, y, width, height, f"f-box s-{kind}-edge"))
            parts.append(text(x + width // 2, top, title, 14, "ink"))
            parts += [text(x + width // 2, top + 1 + 16 * n, s) for n, s in enumerate(lines, 1)]
    parts += map(arrow, ARROWS.replace("\n", "|").split("|"))
    parts += [text(x, y, words) for (x, y), words in LABELS.items()]
    return picture(TITLE, WIDTH, HEIGHT, parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    OUT.write_text(render(), encoding="utf-8")
