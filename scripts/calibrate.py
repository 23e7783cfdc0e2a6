"""Make the file that a method needs beforehand, e.g. InfiniGen's skewing.

python scripts/calibrate.py method=infinigen model=hf model.id=org/name [--text FILE]

Options of model and method are those of run.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from retrobench.cli import app as cli
from retrobench.cli import overrides
from retrobench.engine.loader import load
from retrobench.evaluate.calibrate import TOKENS, calibrate
from retrobench.run.spec import parse_run

CONF = Path(__file__).resolve().parent.parent / "conf"


def main() -> None:
    """Prints the path of the file; exit code 2 for a user error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="as for run.py: model=... method=...")
    parser.add_argument("--text", type=Path, help="calibration text (default: RULER's essays)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of it (default: 2048)")
    options = parser.parse_args()
    try:
        arguments = overrides.prepare(options.overrides, CONF)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            raw = OmegaConf.to_container(compose("config", arguments), resolve=True)
        assert isinstance(raw, dict)
        raw.pop("hydra", None)
        spec = parse_run({str(name): value for name, value in raw.items()})
        text = options.text.read_text("utf-8") if options.text else None
        loaded, method = load(spec.model), spec.method_class
        file = calibrate(method, spec.method_config, spec.data_root, loaded, text, options.tokens)
        print(file)
    except (ValueError, OSError) as error:
        cli.fail(error)


if __name__ == "__main__":
    sys.exit(main())
