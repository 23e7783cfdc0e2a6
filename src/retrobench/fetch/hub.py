"""The Hugging Face Hub, for data sets and for models; imported when something is downloaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrobench.fetch.benchmarks import DataFile


class Hub:
    """The Hub's answers about data sets."""

    def revision(self, source: DataFile) -> str:
        """The commit that is fixed for the file, or the one that the main branch is at."""
        if source.revision:
            return source.revision
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(source.repo).sha)

    def rows(self, source: DataFile, revision: str) -> Iterable[Mapping[str, Any]]:
        """Rows of a split."""
        from datasets import load_dataset

        name = source.config or None
        return load_dataset(source.repo, name, split=source.split, revision=revision)

    def file(self, source: DataFile, revision: str) -> Path:
        """A file as it is. An interrupted download continues."""
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(source.repo, source.file, repo_type="dataset", revision=revision)
        )


def fetch_model(name: str) -> Path:
    """ORG/NAME or ORG/NAME@REVISION in the Hub's own cache: safetensors, config, tokenizer."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    repo, _, revision = name.partition("@")
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
