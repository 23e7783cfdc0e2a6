"""What a decode call can cost. The names of ``Probe.count``, with their units."""

TOKENS = ("attended", "estimated")  # mean per row and head: exactly, and through estimates
BYTES = (
    "kv",  # keys and values read
    "index",  # read to choose
    "weights",  # read beyond those of the model's own forward, once per batch
    "h2d",  # copied from host to device
    "d2h",  # copied from device to host
)
PAGES = ("hits", "misses", "evictions")  # of the GPU block cache, in KV pages
COUNTS = (*TOKENS, *BYTES, *PAGES)
