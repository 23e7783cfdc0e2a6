"""Two hundred of the cases of ``scripts/fuzz.py``; without options it runs a thousand."""

import subprocess
import sys

import pytest

from tests.e2e.runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "kinds"), [(140, "options commands data checkpoint"), (60, "damage stop")]
)
def test_what_is_thrown_at_the_command_line_ends_well(tmp_path, cases, kinds):
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--cases", str(cases)]
    ended = subprocess.run(
        [*command, "--seed", "2", "--real", "0.02", "--limit", "300", "--kinds", *kinds.split()],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
