"""Constants of machines: fields without a default, which conf/hardware gives with their sources."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from retrobench.core.spec import option, parse

T = TypeVar("T")


def constant(help: str, **limits: Any) -> Any:
    """A field that has no default: a machine's yaml file must give it, and say where it is from."""
    return option(dataclasses.MISSING, help, **limits)


def parse_constants(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The constants of a machine; ValueError for one that is missing."""
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}  # type: ignore[arg-type]
    if missing := sorted(needed - values.keys()):
        raise ValueError(
            f"{where}: no value for {', '.join(missing)}; write {where}.{missing[0]}=VALUE, or "
            "start from a file of conf/hardware"
        )
    return parse(cls, values, where)
