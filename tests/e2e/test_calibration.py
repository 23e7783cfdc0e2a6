"""What a method needs beforehand: refused before work is done, in the plan as in the run."""

from __future__ import annotations

import pytest

from retrobench.cli import app as cli
from retrobench.cli.overrides import composed
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.queries import stored_weights_id, weights_id
from retrobench.evaluate import calibrate
from tests.conftest import make_model
from tests.e2e import forks
from tests.e2e.runs import ROOT
from tests.support import make_calibrations


@pytest.fixture
def checkpoint(tmp_path):
    """A small checkpoint in a folder."""
    tokenizer = build_tokenizer()
    model = make_model(vocab_size=len(tokenizer), num_hidden_layers=4)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method.calibration_dir=/proc/x"], "method.calibration_dir=/proc/x: cannot be written"),
        (["--tokens", "0"], "--tokens 0: give at least 256"),
        (["--text", "/dev/zero"], "/dev/zero is no regular file"),
        (["method=quest"], "method=quest needs no calibration"),
    ],
)
def test_a_calibration_that_cannot_succeed_is_refused_before_a_model_is_read(
    tmp_path, arguments, said
):
    model = ["model=local", f"model.path={tmp_path}/none"]  # no error tells that it is not there
    folder = [f"method.calibration_dir={tmp_path}"] if "method=quest" not in arguments else []
    given = ["method=infinigen", *model, *folder, *arguments]
    ended = forks.run("scripts/calibrate.py", *given, cwd=tmp_path)
    assert ended.returncode == 2 and f"error: {said}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_unwritable_folder_is_refused_before_the_text_is_read(monkeypatch):
    method = method_class("infinigen")
    config = parse(method.Config, {"calibration_dir": "/proc/x"}, "method")
    with pytest.raises(ValueError, match="calibration_dir=/proc/x: cannot be written"):
        calibrate.calibrate(method, config, "data", loaded=None, text=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_weights_have_the_id_of_the_loaded_ones(checkpoint, dtype):
    config = parse(ModelConfig, {"source": "local", "path": str(checkpoint), "dtype": dtype}, "")
    files = sorted(checkpoint.glob("*.safetensors"))
    stored = stored_weights_id(loader.describe(config).meta_model, files)
    assert stored == weights_id(loader.load(config).model)
    assert stored_weights_id(make_model(num_hidden_layers=5), files) is None


def test_the_plan_says_what_the_run_will_say(checkpoint, tmp_path, monkeypatch, capsys):
    asked = ["method=infinigen", "model=local", f"model.path={checkpoint}", "task.length=512"]
    asked += [f"method.calibration_dir={tmp_path}/made", f"results_dir={tmp_path}/runs"]
    asked += ["task.tasks=[niah_single_2]", "task.samples=1", "progress=false"]
    raw = composed(asked, ROOT / "conf")
    with monkeypatch.context() as patched:
        patched.setattr(loader, "load", None)  # no plan reads the weights
        (entry,) = cli.plan_runs([raw])
    assert entry.state == "impossible" and cli.show_plan([entry]) == 1
    assert "make it with `python scripts/calibrate.py" in capsys.readouterr().out
    with pytest.raises(ValueError) as refused:
        cli.run_job(raw)
    assert str(refused.value) == entry.message
    config = parse(ModelConfig, {"source": "local", "path": str(checkpoint)}, "model")
    options = {"calibration_dir": f"{tmp_path}/made"}
    method = parse(method_class("infinigen").Config, options, "method")
    make_calibrations(loader.load(config).model, method)
    (entry,) = cli.plan_runs([raw])
    assert (entry.state, entry.key) == ("run", cli.run_job(raw)["key"])


def test_the_plan_refuses_a_budget_below_the_floor_of_the_calibrated_roles(checkpoint, tmp_path):
    asked = ["method=heterocache", "model=local", f"model.path={checkpoint}", "task.length=512"]
    asked += ["method.stable=1", "task.samples=1", f"results_dir={tmp_path}/runs"]
    asked += ["task.tasks=[niah_single_2]", f"method.calibration_dir={tmp_path}/made"]
    config = parse(ModelConfig, {"source": "local", "path": str(checkpoint)}, "model")
    options = {"calibration_dir": f"{tmp_path}/made"}
    method = parse(method_class("heterocache").Config, options, "method")
    make_calibrations(loader.load(config).model, method)
    for budget, state in (("20%", "impossible"), ("100%", "run")):
        raw = composed([*asked, f"budget={budget}"], ROOT / "conf")
        (entry,) = cli.plan_runs([raw])
        assert entry.state == state
        if state == "impossible":
            assert "budget: 20% is 102 tokens of a context of 512, but 8 of 8" in entry.message
            assert "use method.full_heads=top" in entry.message
