"""Typed options: frozen dataclasses whose fields carry help text and ranges, parsed strictly.

Hydra accepts unknown keys and out-of-range values; here both become errors that name the option,
the allowed values and the nearest spelling.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 2**53  # whole numbers up to here are exact in every file format and table
RETIRED = {  # (group, value) that rows on disk may still name -> what to say
    ("model", "tiny"): "this model was retired (its rows stay readable). Use model=smollm2, real "
    "weights that `retrobench fetch smollm2` brings, or model=constructed, the tests' fast fixture"
}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Iterable[Any] | None = None,
    hint: str = "",
    added: bool = False,
    was: str = "",
    may_be_empty: bool = False,
) -> Any:
    """A dataclass field with documentation and limits.

    ``low`` and ``high`` are inclusive, ``above`` is exclusive; for tuples they hold per element.
    ``hint`` is appended to range errors (what to use instead). ``added``: the option is younger
    than rows on disk; at its default it stays out of the cell key, so that they keep theirs.
    ``was``: the option's older name, which still works and is the one in the cell key.
    ``may_be_empty``: an empty list means "none" and is no mistake.
    """
    meta = {
        "help": help,
        "low": low,
        "high": high,
        "above": above,
        "choices": tuple(choices) if choices is not None else None,
        "hint": hint,
        "added": added,
        "was": was,
        "some": isinstance(default, tuple) and bool(default) and not may_be_empty,
    }
    if isinstance(default, (list, dict)):
        raise TypeError("defaults of options are immutable: use a tuple")
    return dataclasses.field(default=default, metadata=meta)


def choice(choices: Iterable[Any], help: str, **more: Any) -> Any:
    """An ``option`` with a few values; the first one is the default."""
    choices = tuple(choices)
    return option(choices[0], help, choices=choices, **more)


def share(default: float, help: str, **more: Any) -> Any:
    """An ``option`` that is a share of something: above 0, at most 1."""
    return option(default, help, above=0, high=1, **more)


def context_share(default: float, help: str) -> Any:
    """A ``share`` of the context that ``budget`` replaces, where one is given."""
    return share(default, help, hint="for a token count use budget=...tok")


def layer_list(default: tuple[int, ...] | None, help: str) -> Any:
    """An ``option`` that lists layers of the model, perhaps none."""
    return option(default, help, low=0, may_be_empty=True)


def preset(base: type[T], name: str, **defaults: Any) -> type[T]:
    """The options dataclass ``base`` with other defaults, as a dataclass of its own."""
    fields = {f.name: f for f in dataclasses.fields(base)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(base)
    changed = [
        (key, hints[key], dataclasses.field(default=value, metadata=fields[key].metadata))
        for key, value in defaults.items()
    ]
    return dataclasses.make_dataclass(name, changed, bases=(base,), frozen=True, kw_only=True)


def require_odd(**values: int) -> None:
    """ValueError for an even width of a window around a token."""
    for name, value in values.items():
        if value % 2 == 0:
            raise ValueError(
                f"{name}={value} must be odd (as many neighbours on both sides): "
                f"use {value - 1} or {value + 1}"
            )


def nearest(name: str, names: Iterable[str]) -> str:
    """``", did you mean X?"`` for the closest spelling, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.45)
    return f", did you mean {close[0]}?" if close else ""


def unknown(asked: str, kind: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is none of ``known``: what replaced it, or the nearest, and all."""
    where, _, value = asked.partition("=")
    if retired := RETIRED.get((where.partition(".")[0], value)):
        return ValueError(f"{asked}: {retired}")
    names = list(known)
    name = asked.rpartition("=" if "=" in asked else ".")[2]
    close = nearest(name, names) or "."
    return ValueError(f"{asked}: no such {kind}{close} Allowed: {', '.join(names)}")


def _nearest_option(name: str, fields: Mapping[str, Any], where: str) -> str:
    """Suggestion for an unknown option: by its name, or by a word of an option's help."""
    alias: dict[str, str] = {}
    for option_name, f in fields.items():
        for word in re.findall(r"[a-z]{6,}", f.metadata["help"]):
            alias.setdefault(word, option_name)
    alias |= {option_name: option_name for option_name in fields}
    close = difflib.get_close_matches(name, alias, n=1, cutoff=0.45)
    return f", did you mean {where}.{alias[close[0]]}?" if close else "."


def parse(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    """Build the frozen dataclass ``cls`` from plain values, e.g. of a Hydra group.

    Raises ValueError naming ``where.option`` (top level, where ``where`` is empty: ``option``) for
    unknown options, wrong types and ranges.
    """
    dot = "." if where else ""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    renamed = {f.metadata["was"]: f.name for f in fields.values() if f.metadata.get("was")}
    values: dict[str, Any] = {}
    for given, value in raw.items():
        name = renamed.get(given, given)
        if name in values:
            older = fields[name].metadata["was"]
            raise ValueError(f"{where}.{older} and {where}.{name} are the same option: give one")
        if name not in fields:
            known = ", ".join(fields) or "(none)"
            suggestion = _nearest_option(name, fields, where)
            raise ValueError(f"{where}.{name}: no such option{suggestion} Options: {known}")
        values[name] = _convert(value, hints[name], f"{where}{dot}{given}")
        _check(values[name], fields[name].metadata, f"{where}{dot}{given}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-ready plain values (tuples become lists)."""
    return {
        f.name: list(v) if isinstance(v := getattr(config, f.name), tuple) else v
        for f in dataclasses.fields(config)
    }


def identity(config: Any) -> dict[str, Any]:
    """A config as plain values for the cell key: renamed options under their older names, options
    added later only if they are set."""
    plain, differs = to_plain(config), changed(config)
    for f in dataclasses.fields(config):
        if f.metadata.get("added") and f.name not in differs:
            del plain[f.name]
        elif f.metadata.get("was"):
            plain[f.metadata["was"]] = plain.pop(f.name)
    return plain


def changed(config: Any) -> dict[str, Any]:
    """The options that differ from their defaults, by name."""
    values = {f.name: (getattr(config, f.name), f.default) for f in dataclasses.fields(config)}
    return {name: value for name, (value, default) in values.items() if value != default}


def changed_text(config: Any, prefix: str = "") -> str:
    """The same as text, e.g. ``num_clusters=256``; empty if nothing differs."""
    return " ".join(f"{prefix}{name}={_show(value)}" for name, value in changed(config).items())


def leaves(options: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested options; the items of a list have the list's name."""
    if isinstance(options, Mapping):
        for key, item in options.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(options, (list, tuple)):
        for item in options:
            yield from leaves(item, name)
    else:
        yield name, options


def table(cls: type, where: str) -> list[tuple[str, str, str, str]]:
    """Rows (option, default, range, help) for documentation."""
    rows = []
    for f in dataclasses.fields(cls):
        rows.append((f"{where}.{f.name}", _show(f.default), _range(f.metadata), f.metadata["help"]))
    return rows


def _show(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_show(item)}" for name, item in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_list(value: tuple[Any, ...], meta: Mapping[str, Any], where: str) -> None:
    """ValueError for a list that is empty, where its default is not, or that repeats itself."""
    if not value and meta["some"]:
        of = _range(meta).replace(" |", ",")
        raise ValueError(f"{where}=[] asks for nothing: name at least one{f' of {of}' * bool(of)}")
    for item in value:
        if value.count(item) > 1:
            raise ValueError(f"{where}: {item} is named twice; name it once")


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(item, args[0], where) for item in items)
    if origin is dict and isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= LARGEST:  # NaN too
            raise ValueError(f"{where} must be a number from -2^53 to 2^53, got {value}")
        if hint is float or float(value).is_integer():
            return hint(value)
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted[dict] = "options, written {NAME: VALUE}"
    raise ValueError(f"{where} must be {wanted.get(origin or hint, hint)}, got {value!r}")


def _range(meta: Mapping[str, Any]) -> str:
    if meta["choices"] is not None:
        return " | ".join(map(str, meta["choices"]))
    low, high, above = (_bound(meta[name]) for name in ("low", "high", "above"))
    if not (low or high or above):
        return ""
    left = f"({above}" if above else f"[{low}" if low else "(-inf"
    return f"{left}, {high}]" if high else f"{left}, inf)"


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check(value: Any, meta: Mapping[str, Any], where: str) -> None:
    if value is None or not meta:
        return
    if isinstance(value, tuple):
        _check_list(value, meta, where)
    for item in value if isinstance(value, tuple) else (value,):
        if meta["choices"] is not None:
            if item not in meta["choices"]:
                raise unknown(f"{where}={item}", "value", map(str, meta["choices"]))
            continue
        low, high, above = meta["low"], meta["high"], meta["above"]
        bad = (low is not None and item < low) or (high is not None and item > high)
        if bad or (above is not None and item <= above):
            kind = " is a fraction of the context" if where.endswith("_frac") else " must be"
            hint = f"; {meta['hint']}" if meta["hint"] else ""
            raise ValueError(f"{where}{kind} in {_range(meta)}, got {item}{hint}")
