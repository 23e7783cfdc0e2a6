"""What a newcomer types first: help, version, completion, a folder that is not there."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import yaml

from retrobench import __version__
from retrobench.cli import console
from retrobench.cli.overrides import composed
from retrobench.report.tables.effects import RESPONSES
from retrobench.run.spec import EngineConfig, parse_run
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import sweep_keys
from tests.e2e import forks
from tests.e2e.forks import ROOT

STARTED = [path for path in ROOT.glob("scripts/*.py") if "__main__" in path.read_text("utf-8")]
SCRIPTS = ["run.py", *sorted(f"scripts/{path.name}" for path in STARTED)]
CONF = ROOT / "conf"


def command(*arguments, **environment):
    """A Python of its own."""
    environment = {**os.environ, "COLUMNS": "80", **environment}
    run = [sys.executable, *arguments]
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)


def assert_fits(text, columns=80):
    assert text.strip()
    assert not [line for line in text.splitlines() if len(line) > columns]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_there_and_fits(script):
    done = forks.run(script, "--help", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert_fits(done.stdout)


def test_help_names_every_option_of_the_engine_and_those_that_stand_alone():
    words = set(re.findall(r"[\w.]+", forks.run("run.py", "--help").stdout))
    assert {field.name for field in dataclasses.fields(EngineConfig)} <= words
    alone = {*yaml.safe_load((CONF / "config.yaml").read_text("utf-8"))}
    assert alone - {"defaults", "data", "hydra"} <= words


def test_the_harness_script_has_help_without_its_extra_and_names_it():
    blocked = "import runpy, sys; sys.modules['lm_eval.__main__'] = None; sys.argv[1:] = {!r}\n"
    run = f"runpy.run_path({str(ROOT / 'scripts/lm_harness.py')!r}, run_name='__main__')"
    done = command("-c", blocked.format(["--help"]) + run)
    assert done.returncode == 0 and "retrobench[lm-eval]" in done.stdout
    assert_fits(done.stdout)
    done = command("-c", blocked.format([]) + run)
    assert done.returncode == 1 and "pip install 'retrobench[lm-eval]'" in done.stderr


def test_every_command_of_retrobench_has_help_that_fits(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    choices = [action.choices for action in console._parser()._actions]
    (commands,) = [names for names in choices if isinstance(names, dict)]
    for name in ("", *commands):
        with pytest.raises(SystemExit) as end:
            console.main([*filter(None, [name]), "--help"])
        assert end.value.code == 0
        assert_fits(capsys.readouterr().out)


def test_the_help_of_effects_lists_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        console.main(["effects", "--help"])
    assert console.RESPONSES in " ".join(capsys.readouterr().out.split())
    assert ", ".join(RESPONSES) == console.RESPONSES


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        console.main(["--version"])
    assert capsys.readouterr().out == f"retrobench {__version__}\n"


def test_the_shell_completes_both_commands(tmp_path):
    line = "python run.py method=inf"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    found = forks.run("run.py", "-sc", "query=bash", **asked).stdout.split()
    assert found == ["method=infinigen"]
    assert "hydra_bash_completion" in forks.run("run.py", "-sc", "install=bash").stdout
    line, found = "retrobench ta", tmp_path / "found"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    command("-m", "retrobench.cli.console", _ARGCOMPLETE_STDOUT_FILENAME=str(found), **asked)
    assert found.read_text().split() == ["table"]


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["sweeps"], ["table"], ["show", "abc"], ["export", "--out", "rows.csv"]],
    ids=lambda words: words[0],
)
def test_a_results_folder_that_is_not_there_is_named(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        console.main([*arguments, "--results", str(tmp_path / "none")])
    assert f"{tmp_path / 'none'}: no such folder" in capsys.readouterr().err


def test_an_empty_results_folder_is_called_empty(tmp_path, capsys):
    assert console.main(["ls", "--results", str(tmp_path)]) == 0
    assert console.main(["sweeps", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "holds no cells" in said and "holds no sweeps" in said


@pytest.mark.parametrize("option", ["dry_run=5", "retry=maybe", "progress=7"])
def test_top_level_options_have_the_names_that_a_user_writes(option):
    name = option.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{name} must be true or false"):
        parse_run(composed([option], CONF))


@pytest.mark.parametrize(
    "written",
    [
        "method_options={quest: {cache: host}}",  # as docs/methods.md has it
        "method_options={quest:{cache:host}}",
        "method_options.quest={cache: host}",
        "method_options.quest.cache=host",
    ],
)
def test_method_options_in_every_form_reach_one_method_alone(written):
    quest, retroinfer = (
        parse_run(composed([f"method={name}", "model=constructed", written], CONF)).method_config
        for name in ("quest", "retroinfer")
    )
    assert quest.cache == "host" and retroinfer.cache == "auto"


def test_options_of_a_sparse_prefill_are_taken_as_they_are_documented():
    asked = ["model=constructed", "prefill=minference", "prefill.vertical_tokens=200"]
    assert parse_run(composed(asked, CONF)).prefill.vertical_tokens == 200
    with pytest.raises(ValueError, match="prefill.verticals: no such option, did you mean"):
        parse_run(composed([*asked, "prefill.verticals=200"], CONF))


@pytest.mark.slow
def test_commands_write_to_results_and_data_alone(tmp_path):
    """In the folder where they are started; the checkout is that folder for a newcomer."""
    task = ["task=ruler", "task.tasks=[niah_single_2]", "task.length=1024", "task.samples=1"]
    cell = ["run.py", "model=constructed", *task]
    retrobench = ["retrobench.cli.console"]
    place = tmp_path / "checkout"
    place.mkdir()
    for arguments in (
        [*cell, "-m", "method=full,quest", "sweep=mine"],
        [*cell, "method=full", "measure=latency", "sweep=mine"],
        [*retrobench, "table"],
        [*retrobench, "audit", "--sweep", "mine"],
        ["scripts/plots.py"],
    ):
        done = forks.run(*arguments, cwd=place, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr + done.stdout
    assert {path.name for path in place.iterdir()} <= {"results", "data"}
    assert len(sweep_keys(ResultStore(place / "results" / "runs"), "mine")) == 3
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ruler_scores")]
    assert re.search(r"results/figures/", line)
