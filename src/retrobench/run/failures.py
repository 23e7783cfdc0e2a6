"""What an exception becomes in a row: a status and a message without secrets."""

import errno
import os
import re
import traceback

import torch

from retrobench.core.secrets import redact
from retrobench.engine.hf import MethodBypassed
from retrobench.engine.prefill import NotFinite
from retrobench.measure.machine import Absent, NotEnoughMemory
from retrobench.store.row_file import ABSENT

# allocators that raise no error type of their own: torch on the CPU, pinned memory, the driver, C++
_NO_MEMORY = re.compile(
    r"not enough memory|can(?:no|')t allocate memory|out of memory|std::bad_alloc"
    r"|failed to allocate|unable to allocate|allocation failed|unable to mmap"
    r"|storage size calculation overflowed",
    re.IGNORECASE,
)


def failure(error: BaseException) -> tuple[str, str]:
    """(status, message) of an exception; secrets are blanked out of the message."""
    status = "error"
    if isinstance(error, Absent):
        status = ABSENT
    elif is_out_of_memory(error):
        status = "oom"
    elif isinstance(error, NotFinite):
        status = "nan"
    elif isinstance(error, MethodBypassed):
        status = "not_live"
    message = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if status == "error" and frames and not isinstance(error, ValueError):
        where = frames[-1]
        message += f" (in {where.name}, {os.path.basename(where.filename)}:{where.lineno})"
    return status, redact(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of any kind ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, NotEnoughMemory)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
