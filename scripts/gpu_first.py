"""The first fifteen minutes of a GPU.

Checks, ceilings, attention, decode steps, index build.

python scripts/gpu_first.py
python scripts/gpu_first.py --dry-run    # minutes and memory of every case
"""

import argparse
import sys

from rich.console import Console

from retrobench.cli import gpu_first


def main() -> int:
    """1 if a stage failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would do")
    console = Console() if sys.stdout.isatty() else Console(width=240)
    return gpu_first.run(parser.parse_args().dry_run, console)


if __name__ == "__main__":
    sys.exit(main())
