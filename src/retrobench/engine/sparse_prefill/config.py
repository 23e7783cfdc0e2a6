"""Options of ``prefill.*``: how the engine reads the prompt."""

from dataclasses import dataclass
from typing import Any

from retrobench.core.spec import changed, changed_text, choice, option, share

EXACT = "exact"
_OWN = {  # options of a kind
    "xattention": ("block_tokens", "stride", "threshold"),
    "minference": ("vertical_tokens", "slash_diagonals"),
}


@dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """Options of ``prefill.*``. Defaults of the sparse kinds are those of their released code."""

    name: str = choice(
        (EXACT, *_OWN),
        "exact: full attention over the whole prompt; xattention, minference: a block of queries "
        "attends to the keys that it is expected to need",
    )
    block_tokens: int = option(128, "xattention: queries and keys of a block", low=16, high=4096)
    stride: int = option(
        8, "xattention: every so many tokens of an antidiagonal are summed", low=1, high=128
    )
    threshold: float = share(0.9, "xattention: share of estimated mass that the chosen blocks hold")
    vertical_tokens: int = option(
        1000, "minference: keys that all queries of a head attend to", low=0
    )
    slash_diagonals: int = option(
        6096, "minference: distances at which all queries of a head attend", low=1
    )

    def __post_init__(self) -> None:
        for kind, names in _OWN.items():
            given = [name for name in changed(self) if name in names]
            if given and kind != self.name:
                raise ValueError(f"prefill.{given[0]} is an option of prefill={kind}")
        if self.block_tokens % self.stride:
            raise ValueError(
                f"prefill.stride={self.stride} must divide prefill.block_tokens={self.block_tokens}"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """For the cell key; empty for an exact prefill."""
        names = _OWN.get(self.name, ())
        own = {name: getattr(self, name) for name in names}
        return {"prefill": {"name": self.name, **own}} if names else {}

    @property
    def label(self) -> str:
        """What sets the prefill apart, as tables show it; empty for an exact one."""
        return changed_text(self, "prefill.").replace("prefill.name=", "prefill=")
