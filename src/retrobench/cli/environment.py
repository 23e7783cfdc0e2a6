"""Variables that OpenMP and torch read when they start."""

import os


def set_environment() -> None:
    """Defaults that suit decoding; what is set already stays."""
    # Threads that spin for long while they wait take the cores of those that work as soon as
    # anything else runs on the machine: steps get tens of times slower. A few microseconds of it
    # save a thread the way to sleep and back at each small product.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Large pages (2 MB) for keys, values and weights, so that reading a long context is not slowed
    # down by looking up its pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
