"""One prefill for everything that starts from the same prompts."""

from collections.abc import Callable
from typing import Any

from retrobench.engine.prefill import PrefilledPrompt


class SharedPrefill:
    """Prefills when somebody first asks, and hands the result to ``uses`` sessions in all.

    The last session may keep the memory. A failure is everybody's: each session that asks gets it.
    """

    def __init__(self, make: Callable[[], PrefilledPrompt], uses: int, cells: int = 1) -> None:
        self._make, self._left, self.cells = make, uses, cells
        self._prompt: PrefilledPrompt | None = None
        self._error: BaseException | None = None
        self._origin = "computed"
        self._computed_frac: float | None = None
        self._tokens = 0
        self._attention: set[str] = set()  # of a streamed prompt: filled when it runs

    def take(self) -> tuple[PrefilledPrompt, bool]:
        """The prompt, and whether nobody else will ask."""
        if self._error is not None:
            raise self._error
        if self._prompt is None:
            try:
                self._prompt = self._make()
                self._origin = self._prompt.origin
                self._computed_frac = self._prompt.computed_frac
                self._tokens = self._prompt.real_tokens
                self._attention = self._prompt.attention
            except Exception as error:
                self._error = error
                raise
        prompt = self._prompt
        self._left -= 1
        if self._left <= 0:
            self._prompt = None
        return prompt, self._left <= 0

    def fields(self, prefill_s: float | None) -> dict[str, Any]:
        """Of a row: how many cells used the prefill whose time it tells, and whence it came.

        Where the row has its time: the rate in prompt tokens (no padding) of all rows of the batch
        per second, and the forms of its attention. Of a sparse one, also the share of attention
        that was computed.
        """
        found: dict[str, Any] = {"prefill_shared_by": self.cells} if self.cells > 1 else {}
        if prefill_s:
            found["prefill_tokens_per_s"] = self._tokens / prefill_s
            if self._attention:  # none: a recorded prompt, which is read and not computed
                found["prefill_attention"] = "+".join(sorted(self._attention))
        if self._computed_frac is not None:
            found["prefill_computed_frac"] = self._computed_frac
        return found if self._origin == "computed" else found | {"prefill_from": self._origin}
