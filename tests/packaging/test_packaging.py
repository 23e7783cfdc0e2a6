"""Guards of the layout: names, wheels, optional dependencies, sizes, paths."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import yaml

import retrobench

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [p for f in ("src", "methods", "kernels", "scripts") for p in (ROOT / f).rglob("*.py")]


def test_root_folders_are_no_packages():
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "methods/__init__.py").exists()


def test_hugging_face_kernels_is_not_shadowed():
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).parents


def test_every_kernel_has_a_naive_form():
    for folder in (ROOT / "kernels/retrobench_kernels").iterdir():
        if folder.is_dir() and not folder.name.startswith("_"):
            assert (folder / "naive.py").exists(), folder.name


def test_files_are_small():
    long = {str(p): n for p in PYTHON if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_no_machine_paths_or_registry_hosts():
    pattern = re.compile(r"(?<![\w./-])/(tmp|work|root|home)/|pypi\.org|pythonhosted")
    texts = [*PYTHON, *ROOT.glob("docs/**/*.md"), *ROOT.glob("conf/**/*.yaml")]
    texts += [ROOT / name for name in ("README.md", "Makefile", "constraints.txt")]
    assert not [str(p) for p in texts if pattern.search(p.read_text())]


def test_runs_without_optional_packages():
    blocked = ["wandb", "triton", "flash_attn", "matplotlib", "datasets", "jieba", "lm_eval"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import retrobench.core.registry as r, retrobench.cli.console, retrobench.store.results\n"
        "assert r.method_class('full').name == 'full'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_core_store_stats_and_fetch_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import retrobench.core.cell, retrobench.core.method, retrobench.core.task\n"
        "import retrobench.store.results, retrobench.stats, retrobench.report.tables.scores\n"
        "import retrobench.cli.fetch\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_from_the_sdist_holds_the_packages_and_is_small(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name == f"retrobench-{retrobench.__version__}-py3-none-any.whl"
    assert sdist.name == f"retrobench-{retrobench.__version__}.tar.gz"
    assert wheel.stat().st_size <= 3 * 2**20
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"retrobench", "retrobench_methods", "retrobench_kernels", "hydra_plugins"}
    assert "hydra_plugins/__init__.py" not in names  # a namespace that Hydra searches
    assert "retrobench/engine/embedded/words_bare.txt" in names
    assert {f"{package}/py.typed" for package in tops - {"hydra_plugins"}} <= set(names)
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"run.py", "CITATION.cff", "docs/options.md", "mkdocs.yml"} <= members
    sources = (ROOT / "kernels/retrobench_kernels/_native").iterdir()
    assert {f"retrobench_kernels/_native/{source.name}" for source in sources} <= set(names)


def test_the_citation_has_the_version_and_no_names_of_people():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == retrobench.__version__
    assert citation["authors"] == [{"name": "The retrobench authors"}]
    assert citation["license"] == "Apache-2.0"


def test_issue_forms_are_whole():
    """The keys that GitHub needs of a form; a broken one is silently not offered."""
    forms = [p for p in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if p.stem != "config"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form), path
        for entry in form["body"]:
            assert entry["type"] in {"textarea", "input", "dropdown", "checkboxes", "markdown"}
            assert entry["attributes"]["label"] and re.fullmatch(r"[\w-]+", entry["id"])


def test_options_page_is_current():
    script = ROOT / "scripts" / "options.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme
    assert "python run.py method=retroinfer task=niah" in readme
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", readme, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
