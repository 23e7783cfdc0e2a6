"""Who holds how much of a machine's memory."""

from retrobench.serving.costs import Bytes, Memory
from retrobench.serving.served import Served


class Pools:
    """Bytes in use, by pool. A request's memory grows in whole blocks of tokens."""

    def __init__(self, memory: Memory, block_tokens: int) -> None:
        self.memory, self.block_tokens = memory, block_tokens
        self.used = [0.0] * len(memory.capacity)
        self.peak = list(self.used)

    def need(self, served: Served, tokens: int) -> Bytes:
        """Of a request with so many tokens in memory."""
        total = -(-tokens // self.block_tokens) * self.block_tokens
        return self.memory.need(served.request.input_tokens, min(total, self._most(served)))

    def need_whole(self, served: Served) -> Bytes:
        """Of a request at its end."""
        return self.memory.need(served.request.input_tokens, self._most(served))

    def fits(self, need: Bytes, instead_of: Bytes = ()) -> bool:
        """Whether there is room, once what is held now is given back."""
        before = instead_of or (0.0,) * len(need)
        pools = zip(self.used, need, before, self.memory.capacity, strict=True)
        return all(used + new - old <= room for used, new, old, room in pools)

    def ever_fits(self, need: Bytes) -> bool:
        """Whether there would be room if nobody else was there."""
        return all(new <= room for new, room in zip(need, self.memory.capacity, strict=True))

    def take(self, served: Served, need: Bytes) -> None:
        """In place of what the request holds."""
        before = served.held or (0.0,) * len(need)
        self.used = [u + n - b for u, n, b in zip(self.used, need, before, strict=True)]
        self.peak = list(map(max, self.peak, self.used))
        served.held = need

    def give(self, served: Served) -> None:
        """All that it holds."""
        self.used = [u - b for u, b in zip(self.used, served.held, strict=True)]
        served.held = ()

    def _most(self, served: Served) -> int:
        whole = served.request.input_tokens + served.request.output_tokens
        return -(-whole // self.block_tokens) * self.block_tokens
