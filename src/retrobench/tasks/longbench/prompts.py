"""The 21 data sets of LongBench v1: prompt, answer length, metric, category, chat wrapping.

Source: THUDM/LongBench at 2e00731f. ``dataset2prompt.json`` and ``dataset2maxlen.json`` are its
files (MIT license), misprints and stray spaces included. The table follows ``eval.py`` and
``pred.py``.
"""

from dataclasses import dataclass

from retrobench.tasks.local_files import shipped

_PROMPTS, _NEW_TOKENS = (
    shipped(__file__, name) for name in ("dataset2prompt.json", "dataset2maxlen.json")
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set: everything about it that is not in its records."""

    name: str
    metric: str
    category: str
    """SQA, MQA (single-, multi-document QA), SUM (summaries), FSL (few-shot), ST (synthetic), CC
    (code completion).
    """
    language: str = "en"
    in_e: bool = False
    """Part of LongBench-E."""

    @property
    def prompt(self) -> str:
        """Template with a slot ``{context}`` and, in most, ``{input}``."""
        return _PROMPTS[self.name]

    @property
    def max_new_tokens(self) -> int:
        """Room for the answer."""
        return int(_NEW_TOKENS[self.name])

    @property
    def chat(self) -> bool:
        """Few-shot and code prompts are given to the model bare, even to a chat model."""
        return self.category not in ("FSL", "CC")

    @property
    def first_line(self) -> bool:
        """Only the first non-empty line of a few-shot answer is scored."""
        return self.category == "FSL"

    def split(self, context: str, question: str) -> tuple[str, str]:
        """The filled prompt in two parts, cut right after the context slot."""
        head, _, tail = self.prompt.partition("{context}")
        before, slot, after = tail.partition("{input}")
        return head + context, before + (question if slot else "") + after


_TABLE = (
    Dataset("narrativeqa", "qa_f1", "SQA"),
    Dataset("qasper", "qa_f1", "SQA", in_e=True),
    Dataset("multifieldqa_en", "qa_f1", "SQA", in_e=True),
    Dataset("multifieldqa_zh", "qa_f1_zh", "SQA", "zh"),
    Dataset("hotpotqa", "qa_f1", "MQA", in_e=True),
    Dataset("2wikimqa", "qa_f1", "MQA", in_e=True),
    Dataset("musique", "qa_f1", "MQA"),
    Dataset("dureader", "rouge_zh", "MQA", "zh"),
    Dataset("gov_report", "rouge", "SUM", in_e=True),
    Dataset("qmsum", "rouge", "SUM"),
    Dataset("multi_news", "rouge", "SUM", in_e=True),
    Dataset("vcsum", "rouge_zh", "SUM", "zh"),
    Dataset("trec", "classification", "FSL", in_e=True),
    Dataset("triviaqa", "qa_f1", "FSL", in_e=True),
    Dataset("samsum", "rouge", "FSL", in_e=True),
    Dataset("lsht", "classification", "FSL", "zh"),
    Dataset("passage_count", "count", "ST", in_e=True),
    Dataset("passage_retrieval_en", "retrieval", "ST", in_e=True),
    Dataset("passage_retrieval_zh", "retrieval_zh", "ST", "zh"),
    Dataset("lcc", "code_sim", "CC", "code", in_e=True),
    Dataset("repobench-p", "code_sim", "CC", "code", in_e=True),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _TABLE}
E_DATASETS: tuple[str, ...] = tuple(name for name, dataset in DATASETS.items() if dataset.in_e)

# single- and multi-document QA, summaries, few-shot, synthetic, code completion
CATEGORIES = ("SQA", "MQA", "SUM", "FSL", "ST", "CC")


def categories(language: str) -> dict[str, tuple[str, ...]]:
    """Category to its data sets of a language (``en`` or ``zh``); code counts in both."""
    return {
        category: tuple(
            name
            for name, dataset in DATASETS.items()
            if dataset.category == category and dataset.language in {language, "code"}
        )
        for category in CATEGORIES
    }
