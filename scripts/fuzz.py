"""Throw bad options, data, damage and interruptions at the command line.

python scripts/fuzz.py [--cases 1000] [--seed 0] [--kinds stop ...]
    [--start 500] [--only 17]

A case fails on a traceback, an exit code that is not documented, more than
60 s, a change of a cell that it does not concern, or a lost row. Each is made
from the seed and its own number alone.
"""

import argparse
import collections
import functools
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_lab import ASKED, BASE, MORE, OTHER, ROOT, SMALL, Case, Lab

LONG = ("samples length context tokens steps depths batch turns clients repeats seconds").split()
TEXTS = ["", " ", "x", "null", "true", "[]", "[1,2]", "{}", "{a: 1}", "a b", "é\u202e\U0001f600"]
TEXTS += ["../../x", "/dev/null", "/proc/x", "/dev/zero", "/etc", ".", "[/x]", "$x", "${x}", "'"]
TEXTS += ["${oc.env:HOME}", '"', "%", "\n", "=1+1", "*", "a,b", "1,2", "choice(1,2)", "range(0,3)"]
TEXTS += ["x" * 300, "[" * 200, "\\", "~", "@", "5%", "16tok", "0%", "1MiB", "nan%", "${", "}"]
NUMBERS = ["0", "-1", "1", "2", "0.5", "-0.0", "nan", "inf", "-inf", "1e999", "9" * 40, "1e18"]
NUMBERS += ["65536", "0x10", "1_0", "1e-300", "2.5", "99", "1" + "0" * 12]
VALUES = [None, True, -1, 0, 10**30, 1e300, float("nan"), "", " ", "x", "\ud800", [], {}, [[]]]
PROSE = "The town of Tarn trades salt, and its miller lives by the river. " * 60
PAIR = {"question": "What?", "answer": "salt"}
SQUAD = {**PAIR, "is_impossible": False, "answers": [{"text": "salt"}]}
SQUAD = {"data": [{"paragraphs": [{"context": PROSE, "qas": [SQUAD]}]}]}
QASPER = {"_id": "q", "context": PROSE, "input": "What?", "answers": ["salt"], "all_classes": None}
V2 = dict.fromkeys("_id context question choice_A choice_B choice_C choice_D".split(), "x")
V2 |= {"answer": "A", "difficulty": "easy", "length": "short"}
RULER = "task=ruler task.length=600 "  # no cell on disk
DATA: dict[str, tuple[str, Any]] = {  # file: what reads it, good content
    "PaulGrahamEssays.json": (RULER + "task.tasks=[niah_single_2]", {"text": PROSE}),
    "prose/a.txt": (RULER + "task.tasks=[niah_single_2]", PROSE),
    "squad.json": (RULER + "task.tasks=[qa_1]", SQUAD),
    "hotpotqa.json": (RULER + "task.tasks=[qa_2]", [{**PAIR, "context": [["Tarn", [PROSE]]]}]),
    "english_words.json": (RULER + "task.tasks=[cwe]", {str(i): f"word{i}" for i in range(600)}),
    "longbench/qasper.jsonl": ("task=longbench task.tasks=[qasper]", {**QASPER, "length": 9}),
    "longbench_v2/data.json": ("task=longbench_v2 task.max_prompt_tokens=500", [V2]),
    "reasoning/aime24.json": ("task=reasoning task.max_new_tokens=16", [{**PAIR, "answer": 2}]),
}


def options(case: Case) -> None:
    """Options of any group with values of any kind."""
    draw, given = case.random, []
    for group, name in draw.choices(_options(), k=draw.randint(1, 3)):
        value = draw.choice(draw.choice((TEXTS, NUMBERS)))
        if draw.random() < 0.1:
            name = _edited(draw, name)
        given += [*group, f"{draw.choice(('', '', '', '+', '++', '~'))}{name}={value}"]
    long = any(word in text for text in given for word in LONG) or "task=" in " ".join(given)
    given += ["dry_run=true"] if long or draw.random() < 0.5 else []
    given = [*(["-m"] if draw.random() < 0.2 else []), *ASKED, "results_dir=runs", *given]
    case.run("run.py", *given)
    case.check_rows(case.lab.rows)


def commands(case: Case) -> None:
    """Commands of ``retrobench`` with arguments of any kind."""
    draw, keys = case.random, list(case.lab.rows)
    pool = [*TEXTS, *NUMBERS, *8 * keys, keys[0][:6], "out.csv", "out.html"]
    verbs = "ls sweeps table effects show diff retry verify export audit report sources score fetch"
    flags = {"table": ["--sweep"], "effects": ["--of"], "verify": ["--samples", "--seed"]}
    flags |= dict.fromkeys(("export", "report", "score"), ["--out"])
    verb = draw.choice(verbs.split())
    flag = draw.choice(["--results", "--x", *3 * flags.get(verb, [])])
    given = [flag, draw.choice(pool)] if draw.random() < 0.6 else []
    given += draw.choices(pool, k=draw.randint(0, 2))
    case.run("retrobench", verb, *([] if "--results" in given else ["--results", "runs"]), *given)
    case.check_rows(case.lab.rows, tuple(keys) if verb == "retry" else ())


def data(case: Case) -> None:
    """A damaged data file."""
    draw = case.random
    name = draw.choice(list(DATA))
    reader, good = DATA[name]
    path = case.folder / "data" / name
    path.parent.mkdir(parents=True)
    path.write_text(good if isinstance(good, str) else json.dumps(good))
    case.said.append(damaged(draw, path))
    given = ["model=constructed", "method=full", *reader.split(), "task.samples=1"]
    given += ["progress=false", f"dry_run={draw.random() < 0.3}", "data.root=data"]
    case.run("run.py", *given, "results_dir=runs")
    case.check_rows(case.lab.rows)


def checkpoint(case: Case) -> None:
    """A damaged file of a small checkpoint, or of a calibration."""
    folder = case.folder / "model"
    shutil.copytree(case.lab.checkpoint, folder)
    case.said.append(damaged(case.random, case.random.choice(sorted(folder.iterdir()))))
    given = ["model=local", "model.path=model", *SMALL, "task.samples=1", "results_dir=runs"]
    case.run("run.py", f"method={case.random.choice(('full', 'infinigen'))}", *given)
    case.check_rows(case.lab.rows)


def damage(case: Case) -> None:
    """Damaged results and caches: everything is shown or named, and run again where it is lost."""
    draw, runs = case.random, case.folder / "runs"
    files = [path for path in sorted(runs.rglob("*")) if path.is_file()]
    cached = [path for path in sorted((case.folder / "cache").rglob("*.json*"))]
    chosen = draw.sample(files, draw.randint(1, 2)) + ([draw.choice(cached)] if cached else [])
    for path in chosen:
        case.said.append(damaged(draw, path))
    touched = tuple({path.parent.name for path in chosen})
    verb = draw.choice(("ls", "sweeps", "table", "audit", "effects", "show", "verify", "export"))
    more = {"show": [list(case.lab.rows)[0]], "verify": [list(case.lab.rows)[0]]}
    more["export"] = ["--out", "out.csv"]
    case.run("retrobench", verb, "--results", "runs", *more.get(verb, []))
    again = ["run.py", "-m", "method=" + ",".join([*BASE, OTHER]), *ASKED, "results_dir=runs"]
    if case.run(*again):  # what is no file must be taken away by hand
        for path in [path for path in chosen if not path.is_file()]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(True)
        if code := case.run(*again):
            case.wrong.append(f"exit code {code} once the files were taken away")
    case.check_rows(case.lab.rows, touched)


def stop(case: Case) -> None:
    """A run that goes on with rows on disk, killed at random moments and asked for again."""
    draw = case.random
    methods = draw.choice((BASE, BASE[:1]))
    given = ["-m"] if len(methods) > 1 or draw.random() < 0.3 else []
    given += [f"method={','.join(methods)}", *ASKED, f"task.samples={MORE}", "results_dir=runs"]
    others = [signal.SIGKILL, signal.SIGTERM]
    others += [] if case.real else [signal.SIGINT]  # Python's own start has a traceback of it
    signals = [signal.SIGKILL, *draw.choices(others, k=2)]
    for number in signals[: draw.randint(1, 3)]:
        case.run("run.py", *given, stop=(number, draw.uniform(0, case.lab.full_s[case.real])))
    if code := case.run("run.py", *given):
        case.wrong.append(f"exit code {code} of the run that ends it")
    ended = [case.lab.keys[method] for method in methods]
    case.check_rows({key: case.lab.whole[key] for key in ended}, ended)
    case.check_rows({key: rows for key, rows in case.lab.rows.items() if key not in ended})


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {  # how often, of 100
    "options": (options, 52),
    "commands": (commands, 20),
    "data": (data, 10),
    "checkpoint": (checkpoint, 5),
    "damage": (damage, 8),
    "stop": (stop, 5),
}


def damaged(draw: random.Random, path: Path) -> str:
    """Damage a file: its bytes, its lines, a value of its JSON, or what stands in its place."""
    content = path.read_bytes()
    place, lines = draw.randrange(len(content) + 1), content.splitlines(keepends=True)
    flipped = bytes([content[place - 1] ^ 1 << draw.randrange(8)]) if content else b"x"
    shuffled = draw.sample(lines, len(lines)) + lines[:1]
    kinds: list[Callable[[], Any]] = [
        lambda: path.write_bytes(_other_value(draw, content)),
        lambda: path.write_bytes(_other_value(draw, content)),
        lambda: path.write_bytes(_other_value(draw, content)),
        lambda: path.write_bytes(content[:place]),
        lambda: path.write_bytes(content[: max(0, place - 1)] + flipped + content[place:]),
        lambda: path.write_bytes(b"".join(draw.choice((shuffled, lines[1:], lines * 2)))),
        lambda: path.write_bytes(draw.choice((b"", b"\n", b"\0" * 99, b"[" * 10**5, b"\xff"))),
        lambda: path.unlink(),
        lambda: (path.unlink(), draw.choice((os.mkdir, os.mkfifo))(path)),
        lambda: (path.unlink(), os.symlink(draw.choice(("nowhere", path.name, ".")), path)),
    ]
    number = draw.randrange(len(kinds))
    kinds[number]()
    return f"damaged: {path} (way {number} of {len(kinds)})"


def _other_value(draw: random.Random, content: bytes) -> bytes:
    """JSON, or a line of it, with one value replaced or left out; other content is cut."""
    lines, number = [content], 0
    try:
        whole = json.loads(content)
    except ValueError:
        lines = content.splitlines(keepends=True) or [b""]
        number = draw.randrange(len(lines))
        try:
            whole = json.loads(lines[number])
        except ValueError:
            return content[: len(content) // 2]
    if not (inside := list(_places(whole))):
        return json.dumps(draw.choice(VALUES)).encode()
    node, key = draw.choice(inside)
    if draw.random() < 0.25:
        del node[key]
    else:
        node[key] = draw.choice(VALUES)
    lines[number] = json.dumps(whole).encode() + b"\n"
    return b"".join(lines)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key) inside."""
    if not isinstance(value, (dict, list)):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _places(value[key])


def _edited(draw: random.Random, name: str) -> str:
    place = draw.randrange(len(name))
    return name[:place] + draw.choice(("", "x", ".", "_", "]", " ")) + name[place + 1 :]


@functools.cache
def _options() -> list[tuple[list[str], str]]:
    """Every option, and the choices that make it count."""
    found = []
    options = runpy.run_path(str(ROOT / "scripts" / "options.py"))["render"]().split("\n## ")
    for section in options[1:]:
        title = section.splitlines()[0]
        for line in section.splitlines():
            if line.startswith("| `"):
                found.append(([title] if "=" in title else [], line.split("`")[1]))
    groups = "model method task protocol measure prefill tracker experiment engine data".split()
    groups += "budget match reference method_options results_dir sweep retry data.root".split()
    return found + 3 * [([], name) for name in groups]


def main() -> None:
    """Prints every failure with what repeats it; exit code 1 if there is any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
        help=f"of {', '.join(KINDS)}",
    )  # fmt: skip
    parser.add_argument("--start", type=int, default=0, help="the first case, below --cases")
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--limit", type=float, default=60, help="seconds that are a hang")
    parser.add_argument("--real", type=float, default=0.05, help="share run as new processes")
    asked = parser.parse_args()
    if asked.start >= asked.cases:
        parser.error(f"--start {asked.start}: give less than --cases {asked.cases}")
    weights = [weight for _, weight in KINDS.values()]
    done, failed, took = collections.Counter(), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        lab = Lab(Path(folder), asked.seed, asked.real, asked.limit)
        print(f"seed {asked.seed}, {asked.cases} cases", flush=True)
        numbers = range(asked.start, asked.cases) if asked.only is None else [asked.only]
        for number in numbers:
            kind = random.Random(f"kind {asked.seed} {number}").choices(list(KINDS), weights)[0]
            if kind not in asked.kinds:
                continue
            began = time.monotonic()
            case = Case(lab, number, kind)
            KINDS[kind][0](case)
            done[kind], took[kind] = done[kind] + 1, took[kind] + time.monotonic() - began
            if sum(done.values()) % 25 == 0:
                print(f"{sum(done.values())} cases done", flush=True)
            if case.wrong or asked.only is not None:
                failed[kind] += bool(case.wrong)
                again = f"--seed {asked.seed} --only {number}"
                print(
                    f"{kind}, {again}: {'; '.join(case.wrong)}\n" + "\n".join(case.said), flush=True
                )
    for kind, count in done.items():
        print(f"{kind}: {count} cases, {failed[kind]} failed, {took[kind]:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
