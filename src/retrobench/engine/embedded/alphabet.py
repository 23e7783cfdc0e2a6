"""What the circuits know of each token: class flags, a +-1 identity code, a +-1 output code."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from retrobench.engine.embedded.tokenizer import SPACE

CODE = 48
OUTPUT = 128
SEED = 20240404


def _is(*tokens: str) -> Callable[[str], bool]:
    return lambda token: token in tokens


def _like(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda token: compiled.fullmatch(token) is not None


FLAGS: dict[str, Callable[[str], bool]] = {
    "is": _is(SPACE + "is"),
    "are": _is(SPACE + "are"),
    "text": _is(SPACE + "text"),
    "mentioned": _is(SPACE + "mentioned"),
    "they": _is(SPACE + "they"),
    "words": _is(SPACE + "words"),
    "list": _is(SPACE + "list"),
    "colon": _is(":"),
    "comma": _is(","),
    "dash": _is("-"),
    "dot": _is("."),
    "equals": _is(SPACE + "="),
    "var": _is(SPACE + "VAR"),
    "space": _is(SPACE),
    "spaced": lambda token: token.startswith(SPACE),
    "number": _like(SPACE + r"\d{3}"),  # first chunk of a number
    "digits": _like(r"\d{1,3}"),
    "capitals": _like(SPACE + "[A-Z]{2}"),  # first chunk of a variable name
    "capital": _like("[A-Z]{1,2}"),
    "coded": _like(SPACE + "[a-z]{2}"),  # first chunk of an unknown lower-case word
}


class Alphabet:
    """Per-token features of a tokenizer; the BOS token has none, as it serves as the sink."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.size = len(tokens)
        self.bos, self.eos, self.pad = (
            tokenizer.convert_tokens_to_ids(token)
            for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
        )
        self.flags_VF = torch.tensor(
            [[float(test(token)) for test in FLAGS.values()] for token in tokens]
        )
        generator = torch.Generator().manual_seed(SEED)
        self.code_VC = self._signs(CODE, generator)
        self.output_VO = self._signs(OUTPUT, generator)
        self.comma = tokenizer.convert_tokens_to_ids(",")

    def _signs(self, width: int, generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, (self.size, width), generator=generator).float() * 2 - 1
        signs[[self.bos, self.eos, self.pad]] = 0.0
        return signs

    def mask(self, flag: str) -> Tensor:
        """Which tokens have a flag, ``[V]`` bool."""
        return self.flags_VF[:, list(FLAGS).index(flag)] > 0
