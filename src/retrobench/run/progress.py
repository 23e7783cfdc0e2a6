"""A progress bar for one cell; silent where there is no terminal or the user said so."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Counts samples; ``detail`` shows what the current one is doing."""

    def __init__(self, title: str, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._id = self._bar.add_task(title, total=None, detail="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def total(self, count: int | None) -> None:
        """How many samples there are, if known."""
        self._bar.update(self._id, total=count)

    def advance(self, count: int = 1) -> None:
        """Samples are done."""
        self._bar.update(self._id, advance=count, detail="")

    def detail(self, text: str) -> None:
        """What the current sample is doing."""
        self._bar.update(self._id, detail=text)

    def say(self, text: str) -> None:
        """A line above the bar (on stderr)."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
