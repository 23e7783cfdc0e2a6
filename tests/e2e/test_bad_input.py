"""Options that cannot work, or that a run would not use: one line that says what to do."""

from __future__ import annotations

import pytest

from retrobench.cli import app as cli
from retrobench.cli.overrides import composed, name_sweep
from retrobench.store.results import ResultStore
from tests.e2e.runs import ROOT

CONF = ROOT / "conf"
TASK = ["task=ruler", "task.tasks=[niah_single_2]", "task.length=1024", "task.samples=1"]


def job(results, *overrides):
    """One cell from a command line, as run.py makes it of one."""
    asked = [argument.partition("=")[0] for argument in overrides]
    given = ["method=full", "model=constructed", f"results_dir={results}", *TASK, "progress=false"]
    kept = [argument for argument in given if argument.partition("=")[0] not in asked]
    return cli.run_job(composed([*kept, *overrides], CONF))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        *[([f"{g}=null"], f"{g}=null: no such {g}.* Allowed: ") for g in ("method", "model")],
        (["engine=5"], r"engine=5: write options, engine\.OPTION=VALUE"),
        (["data=5"], "data=5: write options"),
        (["method_options=5"], "method_options=5: write options"),
        (["method_options={quest: 5}"], r"method_options\.quest=5: write options"),
        (["method_options={quest: {foo: 1}}"], r"method_options\.quest\.foo: no such option"),
        (["engine.batch=4000000000000"], r"engine\.batch must be in \[1, 65536\]"),
        (["task.length=128"], r"task\.length must be in \[256, 4194304\]"),
        (["results_dir=null"], "results_dir=null: write the path of a folder"),
        (["results_dir=/dev/null/x"], "results_dir=.*cannot be written.*choose another"),
        (["results_dir=/dev/null"], "results_dir=.*cannot be written.*choose another"),
        (["budget=[1]"], "is not a budget"),
        (["+a=[b"], "a"),
        # used by nobody
        (["data.foo=1"], r"data\.foo: no such option, did you mean root"),
        (["reference=quest@5%"], "reference=quest@5% is used by match= alone"),
        (["method.name=quest"], "write method=quest"),
        (["measure.name=latency"], "write measure=latency"),
        (["method=quest", "method.dense_layers=[99]"], r"method\.dense_layers=\[99\].*are 0, 1"),
        (["model.tokenizer=gpt2"], r"tokenizer=gpt2 is not used with model\.source=constructed"),
        (["model.path=x"], "path=x is not used"),
        (["model=smollm2", "model.path=x"], r"path=x is not used with model\.source=fetched"),
        (["model=hf", "model.path=x"], r"path=x is not used with model\.source=hf"),
        (["model=local", "model.id=x"], r"id=x is not used with model\.source=local"),
        (["task=trace", "task.path=/dev/null/x"], r"task\.path /dev/null/x.*cannot be written"),
        (
            ["method=infinigen", "method.calibration_dir=/dev/null/x"],
            r"method\.calibration_dir=/dev/null/x: cannot be written.*choose another",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_or_is_not_used_is_refused_in_one_line(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said) as caught:
        job(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../../X", "/X", "a/b", "..", ".x", "a,b", "a\\b", ""])
def test_a_sweep_stays_inside_the_results_folder(tmp_path, name):
    from retrobench.cli import console
    from retrobench.store.sweeps import sweep_keys

    with pytest.raises(ValueError, match="write a name of up to 200 characters"):
        name_sweep(["-m", f"sweep={name}"])
    with pytest.raises(ValueError, match="write a name of up to 200 characters"):
        job(tmp_path, f"sweep={name!r}")
    with pytest.raises(ValueError, match="no such sweep"):
        sweep_keys(ResultStore(tmp_path), name)
    with pytest.raises(SystemExit, match="2"):
        console.main(["table", "--results", str(tmp_path), "--sweep", name])


def test_a_sweep_of_several_experiments_has_one_name():
    (name,) = [a for a in name_sweep(["-m", "experiment=a,b"]) if a.startswith("sweep=")]
    assert name == "sweep=a-b"


def test_a_budget_that_full_attention_does_not_use_is_noted_in_output_plan_and_row(
    tmp_path, capsys
):
    outcome = job(tmp_path, "budget=5%")
    note = "budget=5% is not used: method=full attends to all tokens"
    assert outcome["ignored"] == note
    (row,) = ResultStore(tmp_path).read(outcome["key"]).rows.values()
    assert row["ignored"] == note
    cli.show([outcome], str(tmp_path))
    raw = composed(["method=full", "model=constructed", *TASK, "budget=5%"], CONF)
    cli.show_plan(cli.plan_runs([raw]))
    assert capsys.readouterr().out.count(note) == 2
    assert job(tmp_path, "method=quest", "budget=5%")["ignored"] == ""


def test_names_may_look_like_markup(tmp_path, capsys):
    outcome = job(tmp_path, 'model.name="[/x]"')
    assert outcome["ran"] == 1
    cli.show([outcome], str(tmp_path))
    cli.show_plan(cli.plan_runs([composed(["model=constructed", 'model.name="[/x]"'], CONF)]))
    shown = capsys.readouterr().out
    assert "[/x]: scores" in shown and "[/x] retroinfer ruler" in shown
