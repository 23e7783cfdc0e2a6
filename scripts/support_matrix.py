"""Tries every decoder family of the installed transformers; writes the table of docs/models.md.

python scripts/support_matrix.py            # all, about ten minutes on one core
python scripts/support_matrix.py llama phi3  # these, to the terminal alone
"""

import sys
from pathlib import Path

import torch
import transformers

from retrobench.evaluate.support import Outcome, counted, names, table, try_all
from retrobench.measure.clock import utc_now

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARK = "<!-- made by scripts/support_matrix.py -->"


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    outcomes = try_all(wanted or names(), _report)
    found = table(outcomes)
    print(found, counted(outcomes), sep="\n\n")
    if not wanted:
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        words = f"{utc_now()[:10]}, {versions}, `make matrix`: {counted(outcomes)}."
        kept = PAGE.read_text(encoding="utf-8").split(MARK)[0]
        PAGE.write_text(f"{kept}{MARK}\n\n{words}\n\n{found}\n", encoding="utf-8")


def _report(made: Outcome) -> None:
    far = max(made.differences.values(), default=0)
    print(f"{made.family}: {made.outcome} {far:.1e} {made.cause}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
