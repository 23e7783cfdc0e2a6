"""Run one cell, or a sweep of cells: ``python run.py method=retroinfer task=ruler``."""

from pathlib import Path

from retrobench.cli import app

if __name__ == "__main__":
    app.launch(Path(__file__).resolve().parent / "conf")
