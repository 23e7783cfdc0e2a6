"""Write a small data set of our own in LongBench's layout: ``python tests/small_longbench.py``.

It holds every data set of LongBench v1, E and v2 with its schema, Chinese and code included. The
texts are invented. It exercises the pipeline offline. Its scores are not comparable with published
ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrobench.tasks.longbench.prompts import DATASETS, E_DATASETS

PLACES = ("Tarn", "Ovel", "Brisk", "Mora", "Quill", "Senna", "Luth", "Pell")
GOODS = ("salt", "glass", "rope", "paper", "copper", "cheese")
TRADES = ("miller", "weaver", "painter", "sailor")
TOWNS_ZH = ("青石", "白桥", "云口", "柳湾", "石塘", "河清")
GOODS_ZH = ("茶叶", "丝绸", "瓷器", "木材", "药材")
CLASSES = ("Number of something", "Date", "Date of birth", "Place", "City")
CLASSES_ZH = ("体育", "财经", "科技", "文化教育")
Parts = tuple[str, str, list[str], list[str] | None]


def english(rng: random.Random, count: int) -> list[str]:
    """Sentences about invented towns; each town's fact comes once."""
    towns = [f"{rng.choice(PLACES)}{number}" for number in range(count)]
    form = "The town of {} trades {} and its {} lives by the river."
    return [form.format(town, rng.choice(GOODS), rng.choice(TRADES)) for town in towns]


def chinese(rng: random.Random, count: int) -> list[str]:
    """The same in Chinese."""
    return [
        f"{rng.choice(TOWNS_ZH)}第{i}镇出产{rng.choice(GOODS_ZH)}，镇上的人住在河边。"
        for i in range(count)
    ]


def code(rng: random.Random, count: int) -> tuple[str, str]:
    """Python functions, and the line that comes next."""
    names = [f"total_{rng.choice(GOODS)}_{i}" for i in range(count)]
    form = "def {}(rows):\n    # {} 行\n    return sum(rows)\n\n"
    blocks = [form.format(name, i) for i, name in enumerate(names)]
    last = f"    return {names[0]}(rows) + {names[-1]}(rows)"
    return "".join(blocks) + "def grand_total(rows):\n", last


def question(rng: random.Random, size: int) -> Parts:
    """Single- and multi-document questions."""
    lines = english(rng, size)
    words = rng.choice(lines).split()
    town, good = words[3], words[5]
    passages = "\n".join(f"Passage {i}:\n{line}" for i, line in enumerate(lines, 1))
    return passages, f"What does the town of {town} trade?", [good, f"It trades {good}."], None


def question_zh(rng: random.Random, size: int) -> Parts:
    """Chinese questions."""
    lines = chinese(rng, size)
    place, _, rest = rng.choice(lines).partition("出产")
    return "".join(lines), f"{place}出产什么？", [rest.split("，")[0]], None


def summary(rng: random.Random, size: int) -> Parts:
    """Reports and meetings to sum up."""
    lines = english(rng, size)
    return " ".join(lines), "What was said about trade?", [" ".join(lines[:3])], None


def summary_zh(rng: random.Random, size: int) -> Parts:
    """A Chinese meeting to sum up."""
    lines = chinese(rng, size)
    return "".join(lines), "", ["".join(lines[:2])], None


def few_shot(rng: random.Random, size: int) -> Parts:
    """Solved examples of a classification, classes that contain each other included."""
    shots = [f"Question: {line}\nType: {rng.choice(CLASSES)}" for line in english(rng, size)]
    return "\n".join(shots), "Question: When did Tarn burn?\nType:", ["Date"], list(CLASSES)


def few_shot_zh(rng: random.Random, size: int) -> Parts:
    """Solved examples of Chinese news classes."""
    shots = [f"新闻内容：{line}\n类别：{rng.choice(CLASSES_ZH)}" for line in chinese(rng, size)]
    query = "新闻内容：昨晚的比赛踢成平局。\n类别："
    return "\n".join(shots), query, [CLASSES_ZH[0]], list(CLASSES_ZH)


def paragraphs(rng: random.Random, size: int) -> Parts:
    """Numbered paragraphs and an abstract of one."""
    lines = english(rng, size)
    place = rng.randrange(size)
    text = "\n\n".join(f"Paragraph {i}: {line}" for i, line in enumerate(lines, 1))
    return text, f"About {lines[place].split()[3]}.", [f"Paragraph {place + 1}"], None


def paragraphs_zh(rng: random.Random, size: int) -> Parts:
    """The same in Chinese."""
    lines = chinese(rng, size)
    place = rng.randrange(size)
    text = "\n\n".join(f"段落{i}：{line}" for i, line in enumerate(lines, 1))
    return text, lines[place].split("出产")[0], [f"段落{place + 1}"], None


def duplicates(rng: random.Random, size: int) -> Parts:
    """Paragraphs of which some come twice; the answer is how many differ."""
    lines = english(rng, size)
    text = "\n\n".join(f"Paragraph {i}: {line}" for i, line in enumerate(lines + lines[:3], 1))
    return text, "", [str(size)], None


def completion(rng: random.Random, size: int) -> Parts:
    """Code to continue."""
    text, line = code(rng, size)
    return text, "", [line], None


def completion_of_repository(rng: random.Random, size: int) -> Parts:
    """Code of other files, then the file to continue."""
    text, line = code(rng, size)
    head, _, tail = text.rpartition("def ")
    return f"# path: totals.py\n{head}", f"def {tail}", [line], None


MAKERS: dict[str, Callable[[random.Random, int], Parts]] = {
    **dict.fromkeys(DATASETS, question),
    **dict.fromkeys(("multifieldqa_zh", "dureader"), question_zh),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), summary),
    "vcsum": summary_zh,
    "trec": few_shot,
    "lsht": few_shot_zh,
    "passage_count": duplicates,
    "passage_retrieval_en": paragraphs,
    "passage_retrieval_zh": paragraphs_zh,
    "lcc": completion,
    "repobench-p": completion_of_repository,
}


def records(name: str, count: int, size: int) -> list[dict[str, Any]]:
    """``count`` records of a data set, each of ``size`` facts, with every field of the original."""
    task = name.removesuffix("_e")
    language = DATASETS[task].language
    made = []
    for index in range(count):
        rng = random.Random(f"{name}/{index}")
        context, query, answers, classes = MAKERS[task](rng, size)
        made.append(
            {
                "input": query,
                "context": context,
                "answers": answers,
                "length": len(context) if language == "zh" else len(context.split()),
                "dataset": name,
                "language": "python" if language == "code" else language,
                "all_classes": classes,
                "_id": hashlib.sha256(f"{name}/{index}".encode()).hexdigest()[:48],
            }
        )
    return made


def records_v2(count: int, size: int) -> list[dict[str, Any]]:
    """Four-way choices over the same towns, every difficulty and length class."""
    made = []
    for index in range(count):
        rng = random.Random(f"v2/{index}")
        context, query, answers, _ = question(rng, size)
        wrong = rng.sample([good for good in GOODS if good != answers[0]], 3)
        choices = rng.sample([answers[0], *wrong], 4)
        made.append(
            {
                "_id": hashlib.sha256(f"v2/{index}".encode()).hexdigest()[:24],
                "domain": "Single-Document QA",
                "sub_domain": "Towns",
                "difficulty": ("easy", "hard")[index % 2],
                "length": ("short", "medium", "long")[index % 3],
                "question": query,
                **{f"choice_{k}": text for k, text in zip("ABCD", choices, strict=True)},
                "answer": "ABCD"[choices.index(answers[0])],
                "context": context,
            }
        )
    return made


def write(root: Path, count: int = 3, size: int = 40) -> list[Path]:
    """All files under ``root``; the paths."""
    names = [*DATASETS, *(f"{name}_e" for name in E_DATASETS)]
    files = {root / "longbench" / f"{name}.jsonl": records(name, count, size) for name in names}
    files[root / "longbench_v2" / "data.jsonl"] = records_v2(2 * count, size)
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return list(files)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/small"), help="data.root of run.py")
    parser.add_argument("--samples", type=int, default=3, help="records of each data set")
    parser.add_argument("--facts", type=int, default=40, help="facts of each record")
    options = parser.parse_args()
    paths = write(options.root, options.samples, options.facts)
    print(f"{len(paths)} files; run: python run.py task=longbench data.root={options.root}")


if __name__ == "__main__":
    main()
