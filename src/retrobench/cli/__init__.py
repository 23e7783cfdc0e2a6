"""The two front doors: ``run.py`` (Hydra) and ``retrobench`` (console)."""
