"""A cached step of wave attention on a GPU: list pages, look up and admit, attend and copy.

The attention reads a missed page once, from the pool, and writes it to its slot on the way.
"""

from torch import Tensor

from retrobench_kernels.page_lru.triton import page_step
from retrobench_kernels.wave_attention.triton import attend_pages, page_list
from retrobench_kernels.wave_attention.zones import CacheTable, WaveArgs


def wave_step(args: WaveArgs, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """See the reference."""
    assert isinstance(args.cache, CacheTable)
    args, table = args._replace(cache=args.cache.view), args.cache
    pages = page_list(args)
    assert pages.page_BGN is not None
    source = page_step(pages.page_BGN, pages.tokens_BGN, pages.count_BG, table)
    return attend_pages(args, pages._replace(source_BGN=source), splits)
