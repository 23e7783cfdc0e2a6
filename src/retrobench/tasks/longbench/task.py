"""LongBench v1 and LongBench-E (arXiv 2308.14508), from local files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.longbench import records
from retrobench.tasks.longbench.prompts import DATASETS, categories
from retrobench.tasks.record_files import BadRecord, error_sample
from retrobench.tasks.scorers.longbench import score

BUILDER = 1


@dataclass(frozen=True, kw_only=True)
class LongBenchConfig:
    """Options of ``task=longbench``."""

    tasks: tuple[str, ...] = option(tuple(DATASETS), "data sets", choices=tuple(DATASETS))
    e: bool = option(False, "LongBench-E: the length-balanced files NAME_e.jsonl")
    samples: int = option(0, "first samples of each data set; 0: all", low=0)
    max_prompt_tokens: int = option(
        31500, "longer prompts lose their middle (official: the model's window - 500)", low=500
    )


class LongBenchTask(Task):
    """Official prompts, middle truncation, chat-template exceptions and metrics."""

    name = "longbench"
    figure_tasks = tuple(name for names in categories("en").values() for name in names)
    Config = LongBenchConfig
    config: LongBenchConfig

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and the files' content."""
        files = {}
        for task in self.config.tasks:
            path, member = records.source(self.data_root, self._file(task))
            files[task] = [records.content_hash(path, member), member]
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "files": files})

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Data set by data set, in file order."""
        for task in self.config.tasks:
            found = records.read(self.data_root, self._file(task))
            for index, record in enumerate(found[: self.config.samples or None]):
                yield self._sample(task, index, record)

    def score(self, sample: Sample, text: str) -> float:
        """The data set's metric, best over the references."""
        return score(sample.task, text, sample.references, sample.meta["all_classes"])

    @classmethod
    def aggregate(cls, rows: Any) -> Iterator[tuple[str, Any]]:
        """Category means, and LongBench-E by words of the record."""
        from retrobench.tasks.longbench import averages  # brings pandas, which no run needs

        yield "LongBench averages", averages.longbench(rows)
        yield "LongBench by words", averages.longbench_bins(rows)

    def _file(self, task: str) -> str:
        return f"{task}_e" if self.config.e else task

    def _sample(self, task: str, index: int, record: records.Record | BadRecord) -> Sample:
        dataset = DATASETS[task]
        if isinstance(record, BadRecord):
            return error_sample(task, record)
        context, question = dataset.split(record.context, record.input)
        return Sample(
            id=f"{task}/{index}/{record.id}",
            task=task,
            context=context,
            question=question,
            references=record.answers,
            max_new_tokens=dataset.max_new_tokens,
            meta={
                "chat": dataset.chat,
                "truncate": {"side": "middle", "tokens": self.config.max_prompt_tokens},
                "all_classes": list(record.all_classes),
                "category": dataset.category,
                "words": record.words,
                "e": self.config.e,
            },
        )
