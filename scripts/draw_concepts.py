"""Draw the pictures of docs/concepts.md: budget.svg, phases.svg and retroinfer.svg."""

import argparse

from draw_architecture import OUT, arrow, picture, rectangle, text

DOCS = OUT.parent
STATIC, EXACT, ESTIMATED, UNREAD = "plan-edge", "prefill-edge", "decode-edge", "unread"
NUM_TOKENS, SIZE, LEFT = 48, 16, 150
# method -> what it attends of 48 tokens at budget=25%: a letter per token, and what is charged
BUDGET_ROWS = {
    "full": ("x" * 48, "48 charged: full attention has no budget"),
    "quest": (
        "----xxxx----------------xxxx----------------ssss",
        "12 charged: 2 pages of 4 tokens by score, and the newest page",
    ),
    "retroinfer": (
        "ss--ee-x-xee----e-e-x-ee---x-ee---x---e-xe--ssss",
        "12 charged: 6 always attended, 6 in retrieved clusters; estimates are not tokens",
    ),
}
LETTERS = {"s": STATIC, "x": EXACT, "e": ESTIMATED, "-": UNREAD}
LEGEND = {
    STATIC: "always attended: charged",
    EXACT: "selected for this step: charged",
    ESTIMATED: "estimated: counted as bytes",
    UNREAD: "not attended in this step",
}
PHASES = (  # colour, title, lines
    ("prefill", "1 Prefill", "the model reads the prompt once,|with exact attention", "prefill s"),
    ("plan", "2 Build the index", "each method reads the keys|of the prompt by layer", "build s"),
    ("decode", "3 Decode", "per token and layer: select,|attend, append the new key", "ms/step"),
)  # fmt: skip
PROTOCOLS = {  # where decoding begins, in units of a question's length
    "query_aware": (("context + question", 5, "prefill"), ("answer", 2, "decode")),
    "query_agnostic": (("context", 4, "prefill"), ("question + answer", 3, "decode")),
    "decode_tail": (("all but the last tokens", 4.5, "prefill"), ("tail + answer", 2.5, "decode")),
    "multi_turn": (("context", 4, "prefill"), ("question, answer, question ...", 5, "decode")),
}  # fmt: skip
CLUSTERS = "-e-xe-ex--e-e-e-"  # of the index, by zone
ZONES = {
    STATIC: "steady zone: the first 4 tokens, the last 64, and tokens not yet in the index. Exact.",
    EXACT: "retrieval zone: the best 1.8% of clusters. Every token is attended. Exact.",
    ESTIMATED: "estimation zone: the next 23.2%. A cluster counts as size x exp(q . centroid).",
    UNREAD: "the other 75%: not attended in this step.",
}


def bar(x: float, y: int, width: float, height: int, color: str) -> str:
    """A filled box with square corners."""
    size = f'x="{x:g}" y="{y}" width="{width:g}" height="{height}"'
    return f'<rect {size} class="f-{color}"/>'


def legend(entries: dict[str, str], y: int, x: int = LEFT) -> list[str]:
    """A colour and its meaning per line."""
    parts = []
    for n, (color, words) in enumerate(entries.items()):
        parts += [bar(x, y + 24 * n, 14, 14, color)]
        parts += [text(x + 24, y + 11 + 24 * n, words, color="ink", at="start")]
    return parts


def budget() -> str:
    """What each method is charged at the same budget."""
    title = "What a budget charges: tokens attended exactly"
    parts = [text(20, 30, f"{title}, here budget=25% of 48 tokens", 14, "ink", "start")]
    for n, (method, (letters, words)) in enumerate(BUDGET_ROWS.items()):
        y = 56 + 66 * n
        parts.append(text(LEFT - 14, y + 13, method, 14, "ink", "end"))
        for token, letter in enumerate(letters):
            parts.append(bar(LEFT + token * (SIZE + 1), y, SIZE, SIZE, LETTERS[letter]))
        parts.append(text(LEFT, y + 34, words, at="start"))
    return picture(title, 1000, 366, [*parts, *legend(LEGEND, 262)])


def phases() -> str:
    """Prefill, index, decode; and where the protocols draw the line."""
    parts = []
    for n, (kind, title, lines, column) in enumerate(PHASES):
        x = 20 + 330 * n
        parts.append(rectangle(x, 20, 290, 116, f"f-{kind} s-{kind}-edge"))
        parts.append(text(x + 145, 48, title, 14, "ink"))
        parts += [
            text(x + 145, 70 + 17 * m, s, color="ink") for m, s in enumerate(lines.split("|"))
        ]
        parts.append(text(x + 145, 120, f"column of the tables: {column}"))
        parts += [arrow(f"{x + 291},78 {x + 328},78")] if n < 2 else []
    parts.append(text(20, 176, "A protocol says where decoding begins", 14, "ink", "start"))
    for n, (name, blocks) in enumerate(PROTOCOLS.items()):
        x, y = 160.0, 192 + 38 * n
        parts.append(text(146, y + 19, name, color="ink", at="end"))
        for words, units, kind in blocks:
            width = 88 * units
            parts.append(rectangle(round(x), y, round(width) - 4, 28, f"f-{kind} s-{kind}-edge"))
            parts.append(text(round(x + width / 2), y + 18, words, color="ink"))
            x += width
    return picture("Prefill, build the index, decode", 980, 352, parts)


def retroinfer() -> str:
    """Context, clusters, and the three zones of a step."""
    title = "RetroInfer: the context is clustered; a step attends three zones"
    parts = [text(20, 30, "Context of one KV head", 14, "ink", "start")]
    parts += [bar(20, 44, 60, 30, STATIC), bar(760, 44, 220, 30, STATIC)]
    parts += [
        text(50, 63, "first 4", color="page"),
        text(870, 63, "last 64, and new tokens", color="page"),
    ]
    for n in range(4):
        parts.append(rectangle(84 + 169 * n, 44, 165, 30, "f-plan s-line"))
        parts.append(text(166 + 169 * n, 63, f"segment {n + 1}: 8K tokens", color="ink"))
    parts += [
        arrow("420,78 420,112"),
        text(434, 100, "k-means of the keys of each segment", at="start"),
    ]
    parts.append(
        text(20, 142, "Index: per cluster its centroid, value sum and size", 14, "ink", "start")
    )
    heading = text(20, 232, "Keys and values, in cluster order", 14, "ink", "start")
    x = 20.0
    for n, letter in enumerate(CLUSTERS):
        width = 46 + 8 * (n % 4)
        parts.append(bar(x + width / 2 - 10, 156, 20, 20, LETTERS[letter]))
        parts.append(f'<path d="M{x + width / 2:g},178 V244" class="s-line" stroke-width="0.8"/>')
        parts.append(bar(x, 246, width - 3, 30, LETTERS[letter]))
        parts += [arrow(f"{x + width / 2:g},280 {x + width / 2:g},308")] if letter == "x" else []
        x += width
    parts += [bar(20, 214, 280, 24, "page"), heading]
    parts.append(rectangle(20, 310, 620, 34, "f-box s-prefill-edge"))
    parts.append(
        text(
            330, 331, "block cache: recently used pages of keys and values (optional)", color="ink"
        )
    )
    parts += [arrow("641,327 718,327"), rectangle(720, 310, 260, 34, "f-box s-decode-edge")]
    parts.append(text(850, 331, "one softmax over all three zones", color="ink"))
    return picture(title, 1000, 470, [*parts, *legend(ZONES, 370, 20)])


PICTURES = {"budget": budget, "phases": phases, "retroinfer": retroinfer}

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, draw in PICTURES.items():
        (DOCS / f"{name}.svg").write_text(draw(), encoding="utf-8")
