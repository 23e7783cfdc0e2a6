"""Run one cell, or a sweep of cells: ``python run.py method=retroinfer task=ruler``."""

import signal
from pathlib import Path

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of imports; launch listens
    from retrobench.cli import app

    app.launch(Path(__file__).resolve().parent / "conf")
