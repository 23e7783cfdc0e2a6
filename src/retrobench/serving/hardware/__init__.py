"""Machines as step costs. Each kind is a class; conf/hardware gives its constants and sources."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from retrobench.core.spec import option, parse, to_plain, unknown
from retrobench.serving.hardware.csd import Csd
from retrobench.serving.hardware.dimm_pim import DimmPim
from retrobench.serving.hardware.gpu import Gpu
from retrobench.serving.hardware.hbm_pim import HbmPim


@dataclass(frozen=True, kw_only=True)
class MeasuredConfig:
    """Options of ``hardware=measured``: step times of this machine, from rows of its own."""

    rows: str = option("results/runs", "results folder with rows of experiment=surface")
    memory_gib: float = option(8.0, "memory for keys, values and indexes", above=0)
    extrapolate: bool = option(False, "extrapolate linearly beyond what was measured")
    usd_per_hour: float = option(0.0, "price of the machine", low=0)


KINDS = {"gpu": Gpu, "csd": Csd, "dimm_pim": DimmPim, "hbm_pim": HbmPim}
MEASURED = "measured"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A chosen machine: its name, its kind, and its constants."""

    name: str
    kind: str
    config: Any
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """For the cell key. The price and where rows are found decide no time."""
        plain = {
            k: v for k, v in to_plain(self.config).items() if k not in ("usd_per_hour", "rows")
        }
        return {"name": self.name, "kind": self.kind, **plain}


def parse_hardware(values: Mapping[str, Any]) -> Hardware:
    """The group ``hardware`` of a composed configuration."""
    given = dict(values)
    name, kind = str(given.pop("name", "")), str(given.pop("kind", ""))
    sources = given.pop("sources", None) or {}
    configs = {**{name: cls.Config for name, cls in KINDS.items()}, MEASURED: MeasuredConfig}
    if kind not in configs:
        raise unknown(f"hardware.kind={kind}", "kind", configs)
    needed = {f.name for f in fields(configs[kind]) if f.default is MISSING}
    if missing := sorted(needed - given.keys()):
        raise ValueError(
            f"hardware: no value for {', '.join(missing)}; write hardware.{missing[0]}=VALUE, or "
            "start from a file of conf/hardware"
        )
    config = parse(configs[kind], given, "hardware")
    return Hardware(name=name, kind=kind, config=config, sources=sources)
