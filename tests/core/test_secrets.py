"""Secrets on a command line or in a configuration go nowhere."""

from __future__ import annotations

import json
import re

import pytest

from retrobench.cli import units
from retrobench.cli.overrides import prepare
from retrobench.core.secrets import redact, refuse_secrets
from tests.e2e.runs import ROOT

TOKENS = [
    "hf_" + "aB3" * 11,
    "sk-" + "proj-a1B2c3D4e5F6g7H8",
    "ghp_" + "a1" * 18,
    "wandb_v1_" + "a1" * 20,
    "0a1b2c3d" * 5,  # 40 hexadecimal digits: a key of W&B
    "local-" + "0a1b2c3d" * 5,
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("name", ["+foo", "tracker.entity", "model.name", "method_options"])
def test_what_looks_like_a_token_is_refused_and_blanked(tmp_path, name, token):
    bare = re.escape(name.lstrip("+"))
    with pytest.raises(ValueError, match=rf"{bare}: holds a secret.*HF_TOKEN") as caught:
        prepare([f"{name}={token}"], ROOT / "conf")
    assert token not in str(caught.value)
    with pytest.raises(ValueError, match="holds a secret"):
        refuse_secrets({"a": [{"b": f"https://user:{token}@host"}]})
    assert redact(f"401 for {token}.") in ("401 for ***.", "401 for local-***.")
    units.note(tmp_path, {"job": f"x={token}", "error": token})
    assert token not in (tmp_path / units.CELLS_FILE).read_text()


@pytest.mark.parametrize(
    "name",
    ["tracker.api_key", "+key", "++x.token", "hydra.job.env_set.WANDB_API_KEY", "model.hf_token",
     "tracker.password", "tracker.client_secret", "x.key"],
)  # fmt: skip
def test_options_with_a_secrets_name_are_refused(name):
    with pytest.raises(ValueError, match="holds a secret") as caught:
        prepare([f"{name}=hunter2"], ROOT / "conf")
    assert "hunter2" not in str(caught.value)


def test_secrets_of_the_environment_are_known_by_value(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MY_SERVICE_TOKEN", "0123456789abcdef")
    assert redact("401 for hf_secret, 0123456789abcdef") == "401 for ***, ***"
    with pytest.raises(ValueError, match="model.id: holds a secret"):
        prepare(["model.id=hf_secret"], ROOT / "conf")


def test_other_names_and_values_are_no_secrets():
    fine = {
        "engine": {"chunk_tokens": 4096},
        "model": {
            "tokenizer": "org/name",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "path": "/data/hf_checkpoints/task-sk-learn/model",
            "id": f"hub/snapshots/{'0123456789' * 4}/x",
        },
        "method": {"key": "", "index_key": "mean", "token": None},
    }
    refuse_secrets(fine)
    assert redact(str(fine)) == str(fine) and redact(json.dumps(fine)) == json.dumps(fine)
