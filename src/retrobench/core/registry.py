"""Finds methods by entry point, without importing the ones that are not asked for.

An entry point of the group ``retrobench.methods`` names either a class (``my_pkg.mod:MySparse``)
or a package whose public modules are methods, one per module, named like the module.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from functools import cache

from retrobench.core.method import Method
from retrobench.core.spec import unknown

GROUP = "retrobench.methods"


@cache
def _sources() -> dict[str, str]:
    """Method name -> ``module`` or ``module:Class``."""
    found: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        if ":" in entry.value:
            found[entry.name] = entry.value
            continue
        spec = importlib.util.find_spec(entry.value)
        locations = spec.submodule_search_locations if spec is not None else None
        for module in pkgutil.iter_modules(locations):
            if not module.name.startswith("_"):
                found[module.name] = f"{entry.value}.{module.name}"
    return found


def method_names() -> list[str]:
    """Names of all methods that can be asked for."""
    return sorted(_sources())


def method_source(name: str) -> str | None:
    """``module`` or ``module:Class`` of a method, without importing it; None for an unknown one."""
    return _sources().get(name)


def method_class(name: str) -> type[Method]:
    """The method's class, imported now. ValueError if there is none of that name."""
    sources = _sources()
    if name not in sources:
        raise unknown(f"method={name}", "method", method_names())
    module_name, _, class_name = sources[name].partition(":")
    module = importlib.import_module(module_name)
    if class_name:
        return getattr(module, class_name)
    for _, value in inspect.getmembers(module, inspect.isclass):
        if issubclass(value, Method) and value.__dict__.get("name") == name:
            return value
    raise ValueError(f"method={name}: {module_name} has no Method class with name = {name!r}")
