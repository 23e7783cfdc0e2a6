"""Make the file that a method needs beforehand, e.g. InfiniGen's skewing.

    python scripts/calibrate.py method=infinigen model=hf model.id=org/name

Options of model and method are those of run.py.
"""

import argparse
import sys
from pathlib import Path

from retrobench.cli import app as cli
from retrobench.cli.overrides import composed
from retrobench.engine.loader import load
from retrobench.evaluate.calibrate import calibrate, check
from retrobench.run.spec import parse_run
from retrobench.tasks.local_files import read_text


def main() -> None:
    """Prints the path of the file; exit code 2 for a user error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="as for run.py: model=... method=...")
    parser.add_argument("--text", type=Path, help="calibration text (default: RULER's essays)")
    parser.add_argument("--tokens", type=int, help="tokens of it (default: as the method's paper)")
    options = parser.parse_args()
    try:
        spec = parse_run(composed(options.overrides))
        method = spec.method_class
        check(method, spec.method_config, options.tokens)
        text = read_text(options.text) if options.text else None
        loaded = load(spec.model)
        file = calibrate(method, spec.method_config, spec.data_root, loaded, text, options.tokens)
        print(file)
    except (ValueError, OSError) as error:
        cli.fail(error)


if __name__ == "__main__":
    sys.exit(main())
