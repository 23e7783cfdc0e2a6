"""Fits prompts to their length, in many threads, with what earlier runs found out."""

import json
import threading
import warnings
from functools import cached_property

from retrobench.core.paths import cache_root, regular
from retrobench.core.task import Prompt
from retrobench.tasks.fitting.parts import PromptFactory, PromptParts, SampleGroup
from retrobench.tasks.fitting.search import MIN_FILL, TokensPerUnit, estimate, fill


class UnitCache:
    """Haystack units of each sample, on disk. With them a prompt is rebuilt without a search.

    There is one file for each group of samples. A folder that cannot be written is no error.
    """

    def __init__(self, name: str) -> None:
        self.path = cache_root() / "units" / f"{name}.jsonl"

    @cached_property
    def _known(self) -> dict[str, tuple[int, int | None]]:
        known: dict[str, tuple[int, int | None]] = {}
        try:
            lines = regular(self.path).read_text("utf-8").splitlines()
        except (OSError, ValueError):
            return known
        for line in lines:
            try:
                sample, units, *tokens = json.loads(line)
                known[str(sample)] = int(units), int(tokens[0]) if tokens else None
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue  # a torn line of a killed run
        return known

    def get(self, sample: str) -> tuple[int, int | None] | None:
        """Units of a sample and the tokens of its prompt (None in older files), if known."""
        return self._known.get(sample)

    def put(self, sample: str, units: int, tokens: int) -> None:
        """Remember a sample's units, now and on disk."""
        self._known[sample] = units, tokens
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                regular(self.path)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([sample, units, tokens]) + "\n")
        except (OSError, ValueError):
            return


class LengthFitter:
    """Fits prompts for one tokenizer and chat template."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._lock = threading.Lock()
        self._estimates: dict[str, TokensPerUnit | str] = {}
        self._caches: dict[str, UnitCache] = {}

    def fit(self, sample_id: str, group: SampleGroup, factory: PromptFactory) -> PromptParts:
        """The prompt that fills the group's limit; ValueError if the smallest is too long.

        Units that an earlier run remembers are checked against the limit, not believed.
        """
        with self._lock:
            cache = self._caches.setdefault(group.key, UnitCache(group.key))
        if (known := cache.get(sample_id)) is not None:
            if (parts := self._rebuilt(*known, group, factory)) is not None:
                return parts
            warnings.warn(
                f"{cache.path}: {known[0]} units of {sample_id} are not what fills "
                f"{group.max_prompt_tokens} tokens; the prompt is fitted anew",
                stacklevel=2,
            )
        limit, tokens_per_unit = group.max_prompt_tokens, self._estimate(group)
        units, tokens, parts = fill(factory, self._count, limit, tokens_per_unit, sample_id)
        cache.put(sample_id, units, tokens)
        return parts

    def _rebuilt(
        self, units: int, tokens: int | None, group: SampleGroup, factory: PromptFactory
    ) -> PromptParts | None:
        """The prompt of that many units, if it is what ``fill`` looks for; None otherwise."""
        limit = group.max_prompt_tokens
        if units < 1 or (units > limit and units > 2 * self._estimate(group).units(limit)):
            return None  # far too many could take forever to build
        parts = factory(units)
        counted = self._count(parts)
        if counted > limit or tokens not in (None, counted):
            return None
        full = counted >= MIN_FILL * limit or self._count(factory(units + 1)) > limit
        return parts if full else None

    def _count(self, parts: PromptParts) -> int:
        """Tokens of a prompt as it is sent: chat template and answer prefix, without BOS."""
        user = self._prompt.wrap(parts.context + parts.question)
        return self._prompt.count(parts.preamble + user + parts.answer_prefix)

    def _estimate(self, group: SampleGroup) -> TokensPerUnit:
        with self._lock:
            if group.key not in self._estimates:
                self._estimates[group.key] = self._measured(group)
            found = self._estimates[group.key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _measured(self, group: SampleGroup) -> TokensPerUnit | str:
        """The estimate, or why there is none: no sample needs to find that out again."""
        try:
            limit = group.max_prompt_tokens
            return estimate(group.example(), self._count, limit, group.unit)
        except ValueError as error:
            return str(error)
