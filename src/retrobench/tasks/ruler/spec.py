"""RULER's literal strings and parameters (NVIDIA/RULER c3f5e3b4, scripts/data/synthetic)."""

from dataclasses import dataclass

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, slots=True, kw_only=True)
class NiahSpec:
    """Parameters of one needle task."""

    haystack: str  # noise | essay | needle
    key: str = "words"
    value: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NIAH = {
    "niah_single_1": NiahSpec(haystack="noise"),
    "niah_single_2": NiahSpec(haystack="essay"),
    "niah_single_3": NiahSpec(haystack="essay", value="uuids"),
    "niah_multikey_1": NiahSpec(haystack="essay", num_keys=4),
    "niah_multikey_2": NiahSpec(haystack="needle"),
    "niah_multikey_3": NiahSpec(haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": NiahSpec(haystack="essay", num_values=4),
    "niah_multiquery": NiahSpec(haystack="essay", num_keys=4, num_queries=4),
}
TASKS = (*NIAH, "vt", "cwe", "fwe", "qa_1", "qa_2")

# Names in figures, and in the narrow columns of tables.
DISPLAY = {task: task.removeprefix("niah_").replace("_", " ") for task in TASKS}
SHORT = {
    "niah_single_1": "s1",
    "niah_single_2": "s2",
    "niah_single_3": "s3",
    "niah_multikey_1": "mk1",
    "niah_multikey_2": "mk2",
    "niah_multikey_3": "mk3",
    "niah_multivalue": "mv",
    "niah_multiquery": "mq",
}

# Room for the answer, in tokens.
NEW_TOKENS = {**dict.fromkeys(NIAH, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NIAH_HEAD = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NIAH_QUESTION = (
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"

VT_HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VT_QUESTION = (
    "\nQuestion: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {query}, they are: "
)
VT_HOPS = 4
VT_EXAMPLE_TOKENS = 500

CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
CWE_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. "
)
FWE_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)

QA_RULE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
QA_HEAD = QA_RULE + "\n\nThe following are given documents.\n\n"
QA_QUESTION = "\n\n" + QA_RULE + "\n\nQuestion: {query}"
QA_PREFIX = " Answer:"
