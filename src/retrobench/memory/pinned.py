"""Page-locked host memory of exactly the size that is asked for."""

import mmap
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor


def page_locked(num_bytes: int) -> Tensor:
    """Bytes that a GPU reads and writes by itself; RuntimeError if the driver refuses.

    torch's pinned allocator rounds up to powers of two, which at this scale is tens of gigabytes.
    The memory is mapped by itself, so that no two registrations share a page, and in huge pages
    where the system has them: the GPU translates host addresses, too. The registration ends with
    the memory's last user, before the pages are given back.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, np.uint8)
    address = array.ctypes.data
    code = int(cuda_runtime().cudaHostRegister(address, num_bytes, 0))
    if code:
        raise RuntimeError(
            f"cudaHostRegister refused {num_bytes / 2**30:.2f} GiB (error {code}): raise the "
            "locked-memory limit (ulimit -l) or use method.placement=cpu"
        )
    # an array forgets its weak references first and its buffer, the mapping, afterwards
    weakref.finalize(array, cuda_runtime().cudaHostUnregister, address)
    return torch.from_numpy(array)


def cuda_runtime() -> Any:
    """The CUDA runtime that torch has loaded."""
    return torch.cuda.cudart()
