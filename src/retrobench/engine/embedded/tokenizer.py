"""The tokenizer of the embedded models: whole words, numbers in threes, uuids in hex pairs.

Any other text falls apart into letter pairs and bytes, so decoding restores every input exactly.
A token carries the space before it (the byte-level convention of GPT-2).
"""

from itertools import product
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
HEX = "0123456789abcdef"
SPACE = "Ġ"  # how the byte-level alphabet writes a space

_UUID = r" ?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9A-Za-z])"
_PIECES = "|".join(
    (
        _UUID,
        r" ?VAR(?![A-Za-z])",
        r" ?[A-Z]{2}(?=[A-Z])",  # names in capitals (variable tracking) in pairs from the left
        r" ?\p{L}+",
        r" ?\p{N}{1,3}",
        r" ?\.{3}",
        r" ?[^\s\p{L}\p{N}]",
        r"\s",
    )
)
# Second pass, on single pieces: only uuids end in `-xxxxxxxxxxxx` or have `xxxx-` before a pair.
_LAST_GROUP = "|".join(f"(?<=[0-9a-f]{{4}}-{'[0-9a-f]' * n})" for n in range(0, 12, 2))
_HEX_PAIRS = (
    r" ?[0-9a-f]{2}(?=[-0-9a-f]*-[0-9a-f]{12}\z)"
    rf"|(?:{_LAST_GROUP})[0-9a-f]{{2}}(?=(?:[0-9a-f]{{2}}){{0,5}}\z)"
)


def _words(name: str) -> list[str]:
    """Words known after a space (``spaced``), or at a line's start and after a hyphen (``bare``).

    From wonderwords, RULER's templates and the substitute prose; only nouns and capitalised words
    have the bare form. They are files, so that no release of a source can change token ids.
    """
    return Path(__file__).with_name(f"words_{name}.txt").read_text(encoding="utf-8").split()


def _pairs(letters: str) -> list[str]:
    return ["".join(pair) for pair in product(letters, repeat=2)]


def _byte_text(word: str) -> str:
    """``word`` in the byte-level alphabet."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[
        0
    ][0]


def _tokens() -> list[str]:
    """Every token in id order, in the byte-level alphabet and without duplicates."""
    digits = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    chunks = digits + _pairs(HEX) + _pairs(ascii_lowercase) + _pairs(ascii_uppercase) + ["..."]
    spaced = chunks + list(ascii_lowercase + ascii_uppercase) + list("=('")
    spaced += [_byte_text(word) for word in _words("spaced")]
    bare = chunks + [_byte_text(word) for word in _words("bare")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    everything = [BOS, EOS, PAD, *alphabet, *bare, *(SPACE + token for token in spaced)]
    return list(dict.fromkeys(everything))


def _merges() -> list[tuple[str, str]]:
    """Unknown lower-case words: a space and two letters first, then letter pairs."""
    first = [(SPACE, letter) for letter in ascii_lowercase]
    second = [(SPACE + a, b) for a, b in product(ascii_lowercase, repeat=2)]
    return first + second + [(a, b) for a, b in product(ascii_lowercase, repeat=2)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, built from the committed word lists; prepends the BOS token to every text."""
    vocab = {token: i for i, token in enumerate(_tokens())}
    # ignore_merges: a piece that is a token stays whole; merges serve unknown words alone.
    backend = Tokenizer(models.BPE(vocab=vocab, merges=_merges(), ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.Split(Regex(_HEX_PAIRS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocab[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
