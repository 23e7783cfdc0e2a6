"""Secrets: known by their form, their option's name or the environment; nothing writes them."""

import os
import re
from collections.abc import Mapping
from typing import Any

from retrobench.core.spec import leaves

_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_ENVIRONMENT_NAME = re.compile(r"_(API_KEY|TOKEN|SECRET|SECRET_ACCESS_KEY|PASSWORD)$")
_SHORTEST = 12  # characters of a value whose variable is only known by its name's end
_OPTION_NAME = re.compile(
    r"(^|[._-])(token|secret|password|passwd|credentials?)$"
    r"|(^|[._-])(api|access|secret|private|auth|wandb|hf)_?key$|(^|\.)key$",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|wandb_v\d_\w{16,}|AKIA[0-9A-Z]{16})"
)
# keys of W&B, which look like commits: those stand after `revision` or `commit`, or in a path
_HEX_KEY = re.compile(
    r"((?:revision|commit)\W{1,4}|/)?(?<![A-Za-z0-9])([0-9a-f]{40})(?![A-Za-z0-9])", re.IGNORECASE
)


def redact(text: str) -> str:
    """``text`` without secrets of the environment, and without what looks like a token."""
    for secret in _known():
        text = text.replace(secret, "***")
    text = _FORMS.sub("***", text)
    return _HEX_KEY.sub(lambda found: found[0] if found[1] else "***", text)


def refuse_secrets(options: Mapping[str, Any]) -> None:
    """ValueError naming the first of nested options that holds a secret; its value is not told."""
    for name, value in leaves(options):
        text = value if isinstance(value, str) else ""
        named = _OPTION_NAME.search(name) is not None and text.strip() not in ("", "null")
        if named or redact(f"{name}={text}") != f"{name}={text}":
            raise ValueError(
                f"{redact(name)}: holds a secret (or what looks like one), and options are written "
                "to disk; leave it out and put the secret into the environment (HF_TOKEN, "
                "WANDB_API_KEY)"
            )


def _known() -> list[str]:
    """Secret values of the environment, the longest first."""
    found = {os.environ.get(name, "") for name in _ENVIRONMENT}
    for name, value in os.environ.items():
        if _ENVIRONMENT_NAME.search(name) and len(value) >= _SHORTEST:
            found.add(value)
    return sorted(found - {""}, key=len, reverse=True)
