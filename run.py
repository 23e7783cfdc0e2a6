"""Run one cell, or a sweep of cells: ``python run.py method=retroinfer task=ruler``."""

from pathlib import Path

import hydra

from retrobench.cli import app as cli

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config) -> None:
    """One Hydra job."""
    cli.main(config)


if __name__ == "__main__":
    cli.launch(main, CONF)
