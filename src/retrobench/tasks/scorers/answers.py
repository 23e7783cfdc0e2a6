"""Rules that several benchmarks share for reading a choice, a number or words."""

import re
import string
from collections import Counter
from collections.abc import Sequence

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_DROPPED = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)
_CHOICE_PREFIXES = ("answer is:", "answer:", "answer is", "option is")


def blanked(text: str, marks: str) -> str:
    """The text with a blank in place of each of the marks."""
    return text.translate(str.maketrans(dict.fromkeys(marks, " ")))


def squeezed(text: str) -> str:
    """Runs of blanks as one blank."""
    return re.sub(" {2,}", " ", text)


def first_digits(text: str) -> str:
    """The first run of ASCII digits; empty if there is none."""
    found = re.search("[0-9]+", text)
    return found.group() if found else ""


def first_number(text: str) -> str | None:
    """The first whole or decimal number, without its sign."""
    found = re.search(r"\d+\.\d+|\d+", text)
    return found.group() if found else None


def behind(text: str, prefix: str) -> str | None:
    """What follows a prefix and one more character; None where the text ends before it."""
    rest = text[text.find(prefix) + len(prefix) :]
    return rest[1:] if rest else None


def multiple_choice(prediction: str, label: Sequence[str]) -> bool:
    """Whether an answer chooses one of ``label``: the option's text and its letter."""
    text = prediction.strip()
    if not text:
        return False
    if text[0] in "ABCD":
        return text[0] in label
    if text in label:
        return True
    text = squeezed(blanked(text, "\n\"'.,?!{}"))
    for prefix in _CHOICE_PREFIXES:
        if prefix in text:
            rest = behind(text, prefix)
            return rest is not None and rest.startswith(tuple(label))
    # Any run of the four letters counts as a word of them: "AB" and "BCD" as well as "A".
    word = next((word for word in text.split() if word in "ABCD"), None)
    return word is not None and word in label


def f1_zh(prediction: str, references: Sequence[str]) -> float:
    """F1 over characters, without punctuation and blanks; the best over the references."""
    given = _characters(prediction)
    return max((f1(given, _characters(gold)) for gold in references), default=0)


def _characters(text: str) -> str:
    return "".join(text.lower().translate(_DROPPED).split())


def f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """F1 over words or characters, each counted as often as it comes."""
    common = (Counter(prediction) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)
