"""Options of SparF, with the source of every default."""

from dataclasses import dataclass

from retrobench.core.spec import choice, option
from retrobench.memory.placement import PlacementConfig


@dataclass(frozen=True, kw_only=True)
class SparfConfig(PlacementConfig):
    """Defaults of InstInfer (arXiv 2409.04992) and of SparQ (arXiv 2312.04985), its base."""

    ratio: float = option(
        8.0,
        "how much less than dense attention a step reads: 1/ratio of the key channels and, without "
        "a budget, 1/(2 ratio) of the tokens (InstInfer's headline: 8)",
        low=1,
        high=1024,
    )
    channels: int | None = option(
        None, "key channels that are read to score tokens; null: head dim / ratio", low=1
    )
    sink_tokens: int = option(0, "first tokens, always attended (ours: the paper has none)", low=0)
    local_tokens: int = option(
        0, "last tokens, always attended (SparQ has them, InstInfer names none)", low=0
    )
    flash: bool = option(
        False, "also count the flash pages that a step would touch on InstInfer's drive"
    )
    flash_channels: str = choice(
        ("auto", "2", "4", "8"),
        "channels that share a page of the channel-wise copy of the keys; auto: the fewest whose "
        "page a prompt fills (paper: chosen by the prompt's length)",
    )

    def __post_init__(self) -> None:
        if self.flash and (self.placement != "gpu" or self.cache not in ("auto", "none")):
            raise ValueError(
                "flash=true counts keys and values on the drive, so method.placement and "
                "method.cache mean nothing there: leave them at gpu and auto"
            )

    @property
    def retrieval_frac(self) -> float:
        """Share of the context that is attended without a budget."""
        return 1 / (2 * self.ratio)

    def num_channels(self, head_dim: int) -> int:
        """Channels read per KV head."""
        wanted = self.channels or max(1, round(head_dim / self.ratio))
        if wanted > head_dim:
            raise ValueError(
                f"method.channels={wanted}: the model's heads have {head_dim} channels; "
                f"use at most {head_dim}"
            )
        return wanted
