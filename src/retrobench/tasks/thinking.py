"""Think blocks: where a prompt leaves one open, and an answer without them."""

import re

MARKS = (  # of Qwen, DeepSeek, GLM, SmolLM and others; Magistral; Seed-OSS; EXAONE Deep
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)


def open_mark(text: str) -> str:
    """The mark of the think block in which a text ends; empty if it ends in none."""
    return next((mark for mark, end in MARKS if text.rfind(mark) > text.rfind(end)), "")


def without_thinking(text: str) -> str:
    """A text without its think blocks; of one that is still open, nothing is left."""
    for mark, end in MARKS:
        text = re.sub(rf"{re.escape(mark)}.*?({re.escape(end)}\s*|\Z)", "", text, flags=re.DOTALL)
    return text
