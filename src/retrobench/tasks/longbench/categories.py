"""LongBench's categories, as its README groups the data sets."""

from retrobench.tasks.longbench.prompts import DATASETS

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
