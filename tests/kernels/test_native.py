"""Building and loading: no compiler, a compiler that fails, kernels that compute nonsense."""

from __future__ import annotations

import warnings

import pytest
import torch
from retrobench_kernels import native, selfcheck
from retrobench_kernels.dense_decode import dense_decode

_ORIGINAL = native.cache_dir().parent


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_plain_torch_runs_and_says_so_once(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    q, k, v = torch.randn(1, 2, 64), torch.randn(1, 1, 9, 64), torch.randn(1, 1, 9, 64)
    with pytest.warns(UserWarning, match="plain torch is used"):
        out, _ = dense_decode(q, k, v, 0.1)
    assert torch.equal(out, dense_decode.reference(q, k, v, 0.1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense_decode(q, k, v, 0.1)
    assert not list(fresh.rglob("*.so"))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_a_build_that_disagrees_is_not_kept(fresh, monkeypatch):
    monkeypatch.setattr(selfcheck, "disagreements", lambda: ["dense float32 group 1"])
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-O0"))
    with pytest.raises(native.BuildError, match="disagree with plain torch: dense float32"):
        native.load()
    assert not list(fresh.rglob("*.so"))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("damage", ["empty", "short", "text", "one byte", "no checksum"])
def test_a_damaged_library_is_built_again(fresh, monkeypatch, damage):
    """The build is replaced by a copy of the library that this machine has."""
    built = []

    def build(command, path):
        built.append(path)
        path.unlink(missing_ok=True)  # it may be in use
        path.write_bytes(whole)
        path.with_suffix(".sha256").write_text(native._hash(path))

    with monkeypatch.context() as patch:
        patch.setenv("RETROBENCH_CACHE", str(_ORIGINAL))
        command = native._command()
        path = native.cache_dir() / f"{native._key(command)}.so"  # not one of older sources
        whole = path.read_bytes()
    monkeypatch.setattr(native, "_build", build)
    native.load()
    (path,) = built
    if damage == "no checksum":
        path.with_suffix(".sha256").unlink()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        damaged = {"empty": b"", "short": whole[:middle], "text": b"x", "one byte": flipped}
        path.unlink()  # the one in use stays as it is
        path.write_bytes(damaged[damage])
    native.library.cache_clear()
    assert native.library() is not None and len(built) == 2
    native.load()
    assert len(built) == 2


def test_kernels_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("RETROBENCH_KERNELS", "naive")
    q, k, v = torch.randn(1, 2, 64), torch.randn(1, 1, 9, 64), torch.randn(1, 1, 9, 64)
    assert torch.equal(dense_decode(q, k, v, 0.1)[0], dense_decode.reference(q, k, v, 0.1)[0])
    monkeypatch.setenv("RETROBENCH_KERNELS", "fast")
    with pytest.raises(ValueError, match="RETROBENCH_KERNELS=fast: use auto or naive"):
        dense_decode(q, k, v, 0.1)
