"""What an exception becomes in a row: a status and a message without secrets."""

from __future__ import annotations

import os
import traceback

import torch

from retrobench.engine.hf import MethodBypassed
from retrobench.engine.prefill import NotFinite
from retrobench.measure.machine import NotEnoughMemory

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


def failure(error: BaseException) -> tuple[str, str]:
    """(status, message) of an exception; secrets are blanked out of the message."""
    status = "error"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, NotEnoughMemory)):
        status = "oom"
    elif isinstance(error, NotFinite):
        status = "nan"
    elif isinstance(error, MethodBypassed):
        status = "not_live"
    message = f"{type(error).__name__}: {error}"
    if status == "error" and not isinstance(error, ValueError):
        where = traceback.extract_tb(error.__traceback__)[-1]
        message += f" (in {where.name}, {os.path.basename(where.filename)}:{where.lineno})"
    return status, redact(message)


def redact(text: str) -> str:
    """``text`` without the values of secret environment variables."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text
