"""Budgets, options and cell keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrobench.core.budget import Budget
from retrobench.core.cell import Cell
from retrobench.core.registry import method_class, method_names
from retrobench.core.spec import identity, option, parse, to_plain
from retrobench.tasks.ruler import RulerConfig


@pytest.mark.parametrize(
    ("text", "tokens"), [("2%", 20), ("128tok", 128), ("64KiB", 64), ("100%", 1000), ("0.5%", 5)]
)
def test_budget_tokens(text, tokens):
    assert Budget.parse(text).tokens(1000, kv_bytes_per_token=1024) == tokens


@pytest.mark.parametrize(
    "text",
    ["2", "120%", "0%", "many", "5 apples", "-3tok", "9" * 400 + "tok", "infMiB", "nan%"]
    + ["top_p", "top_p:", "top_p:1.01", "top_p:0", "top_p:90%", "top_p:0.9@", "top_p:0.9@2"]
    + ["top_p:0.9@top_p:0.5", "top_k:5", "10%@5%"],
)
def test_bad_budgets_are_refused(text):
    with pytest.raises(ValueError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0%", "0tok", "0MiB", "top_p:0"])
def test_a_budget_of_nothing_is_named_as_it_was_written(text):
    with pytest.raises(ValueError, match=f"budget: {text} must be finite and greater than 0"):
        Budget.parse(text)


_POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
_FIXED = st.one_of(
    st.builds(Budget, st.floats(0, 1, exclude_min=True), st.just("frac")),
    st.builds(Budget, _POSITIVE, st.sampled_from(["tokens", "bytes"])),
)
_MASS = st.floats(0, 1, exclude_min=True)
_ADAPTIVE = st.builds(Budget, _MASS, st.just("top_p"), st.one_of(st.none(), _FIXED))
_BUDGETS = st.one_of(_FIXED, _ADAPTIVE)


@given(_BUDGETS)
@example(Budget(100, "bytes"))
@example(Budget(1e-7, "frac"))
@example(Budget(1_000_000, "tokens"))
def test_a_budget_is_what_its_label_says(budget):
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "label",
    ["2%", "1.8%", "100%", "0.5%", "1024tok", "64MiB", "1.5MiB", "0.0625MiB", "100B"]
    + ["top_p:0.95", "top_p:1", "top_p:0.9@25%", "top_p:0.85@8192tok"],
)
def test_labels_of_ordinary_budgets_stay(label):
    assert str(Budget.parse(label)) == label


@pytest.mark.parametrize(
    "values", [(0, "tokens"), (float("inf"), "bytes"), (1.5, "frac"), (1, "x")]
)
def test_budgets_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match="budget"):
        Budget(*values)


def test_the_most_tokens_of_an_adaptive_budget_are_its_cap():
    assert Budget.parse("top_p:0.9@25%").tokens(1000, kv_bytes_per_token=1024) == 250
    assert Budget.parse(" top_p:0.9 @ 64tok").tokens(1000, kv_bytes_per_token=1024) == 64


@pytest.mark.parametrize(
    "text", ["100%", "1000tok", "5000tok", "1MiB", "1GiB", "top_p:0.5", "top_p:0.5@100%"]
)
def test_a_budget_that_covers_the_context_takes_all_of_it(text):
    assert Budget.parse(text).tokens(1000, kv_bytes_per_token=1024) == 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    retrieval_frac: float = option(0.1, "share", above=0, high=1, hint="use budget=...tok")
    sizes: tuple[int, ...] = option((1, 2), "list", low=1)
    kind: str = option("a", "choice", choices=("a", "b"))
    limit: int | None = option(None, "most kernels to run", low=1)


def test_parse_converts_and_keeps_defaults():
    parsed = parse(Options, {"sizes": 4, "retrieval_frac": 1, "limit": 3.0}, "method")
    assert to_plain(parsed) == {"retrieval_frac": 1.0, "sizes": [4], "kind": "a", "limit": 3}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"retreival_frac": 0.1}, ["method.retreival_frac", "did you mean method.retrieval_frac"]),
        ({"n_kernals": 4}, ["did you mean method.limit"]),  # by a word of its help
        ({"retrieval_frac": 18.0}, ["fraction of the context in (0, 1]", "18.0", "budget=...tok"]),
        ({"retrieval_frac": 0}, ["(0, 1]"]),
        ({"kind": "c"}, ["method.kind=c", "Allowed: a, b"]),
        ({"sizes": [2, 0]}, ["method.sizes", "got 0"]),
        ({"sizes": "x"}, ["whole number"]),
        ({"limit": True}, ["whole number"]),
        ({"limit": 10**21}, ["method.limit", "2^53", str(10**21)]),
        ({"retrieval_frac": float("nan")}, ["method.retrieval_frac", "got nan"]),
        ({"retrieval_frac": float("inf")}, ["method.retrieval_frac", "got inf"]),
    ],
)
def test_bad_options_name_the_option_and_the_fix(raw, words):
    with pytest.raises(ValueError) as caught:
        parse(Options, raw, "method")
    assert all(word in str(caught.value) for word in words), caught.value


def make_cell(**changes):
    parts = {"model": {"name": "m"}, "method": {"name": "full", "x": 1}, "task": {"name": "t"}}
    return Cell(**{**parts, **changes})


def test_cell_key_depends_on_content_only():
    assert make_cell().key == make_cell(method={"x": 1, "name": "full"}).key
    assert len(make_cell().key) == 16
    assert make_cell().key != make_cell(budget="2%").key


def test_why_names_the_fields_that_differ():
    other = make_cell(method={"name": "full", "x": 2}, budget="2%")
    assert make_cell().why(other) == ['budget: null -> "2%"', "method.x: 1 -> 2"]
    assert make_cell().why(make_cell()) == []


def test_registry_lists_and_suggests():
    assert {"full", "retroinfer", "oracle_topk", "random", "streaming"} <= set(method_names())
    with pytest.raises(ValueError, match="did you mean retroinfer"):
        method_class("retroinfr")


@pytest.mark.parametrize("name", method_names())
def test_every_method_option_is_documented(name):
    import dataclasses

    for field in dataclasses.fields(method_class(name).Config):
        assert field.metadata["help"]


@pytest.mark.parametrize("budget", ["10%", "77tok", "32KiB", "100%"])
@pytest.mark.parametrize("weight", [None, [[1, 2], [5, 0.5], [0, 100]]])
def test_an_allocation_adds_up_to_the_budget(budget, weight):
    from tests.support import kv_shape

    shape = kv_shape(layers=(0, 1, 2), pad_tokens=(0, 50), prompt_tokens=200, max_tokens=220)
    parsed = Budget.parse(budget)
    tokens_LBG = parsed.allocate(shape, weight)
    for row, context in enumerate((200, 150)):
        shares = [tokens_LBG[layer][row][g] for layer in range(3) for g in range(2)]
        assert sum(shares) == 6 * parsed.tokens(context, shape.kv_bytes_per_token)
        assert all(0 <= share <= context for share in shares)
        if weight is None:
            assert max(shares) == min(shares)
        elif budget == "10%":
            assert shares[5] == max(shares) and shares[4] == 0 and shares[2] > shares[3]


def test_a_renamed_option_keeps_its_old_spelling_and_its_place_in_keys():
    config = parse(RulerConfig, {"stand_in": False}, "task")
    assert config == parse(RulerConfig, {"substitute": False}, "task") and not config.substitute
    assert identity(config)["stand_in"] is False and "substitute" not in identity(config)
    assert identity(RulerConfig())["stand_in"] is True
    with pytest.raises(ValueError, match="the same option: give one"):
        parse(RulerConfig, {"stand_in": False, "substitute": True}, "task")
    with pytest.raises(ValueError, match="task.stand_in must be true or false"):
        parse(RulerConfig, {"stand_in": "no"}, "task")
