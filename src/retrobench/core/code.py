"""Fingerprint of the code that a method's results depend on.

Comments, docstrings and formatting do not count: a hash of the syntax trees of the method's module
and of everything of ours that it imports.
"""

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from retrobench.core.registry import method_class

_ENGINE = "retrobench.engine.session"  # every method runs under it
_NATIVE = ("*.cpp", "*.cu", "*.h")


@cache
def code_fingerprint(method: str) -> str:
    """16 hex digits over the import closure of a method and of the engine."""
    module = method_class(method).__module__
    ours = {module.partition(".")[0], "retrobench", "retrobench_kernels"}
    seen: dict[str, Path] = {}
    waiting = [module, _ENGINE]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in seen or path is None or name.partition(".")[0] not in ours:
            continue
        seen[name] = path
        waiting += _read(path)[0]
    hasher = hashlib.sha256()
    for name, path in sorted(seen.items()):
        hasher.update(f"{name}\0{_read(path)[1]}\0".encode())
        if path.name == "__init__.py":
            for pattern in _NATIVE:
                for source in sorted(path.parent.glob(pattern)):
                    hasher.update(source.read_bytes())
    return hasher.hexdigest()[:16]


def _path(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache  # methods share most of their files
def _read(path: Path) -> tuple[list[str], str]:
    """What a file imports, and what it says."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _imports(tree), _meaning(tree)


def _imports(tree: ast.Module) -> list[str]:
    """Modules that a file imports anywhere (``from a import b``: both ``a`` and ``a.b``)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _meaning(tree: ast.Module) -> str:
    """The syntax tree without docstrings (which are taken out) and positions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
