"""Two hundred of the cases of ``scripts/fuzz.py``; ``python scripts/fuzz.py`` runs a thousand."""

import subprocess
import sys

import pytest

from tests.e2e.runs import ROOT


@pytest.mark.slow
def test_what_is_thrown_at_the_command_line_ends_well(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--cases", "200"]
    ended = subprocess.run(
        [*command, "--seed", "2", "--real", "0.02", "--limit", "300"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
