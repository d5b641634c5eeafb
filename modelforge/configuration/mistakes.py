"""`mistakes`: what pydantic finds wrong with a configuration, and where, in terms of the TOML.

pydantic's place of an error mixes keys with names of union branches; `_trace` tells them apart by walking the place
along section classes and values. Where a value fits no branch of a union, the branches' errors become one mistake.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modelforge.configuration.document import KeyPath
from modelforge.configuration.schema import Kind, child, narrow, sections_in
from modelforge.section import SectionError


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong."""

    path: KeyPath
    """The key, from the top down."""
    kind: Kind | None
    """What may stand there; None for an unknown key."""
    type: str
    """pydantic's name of the error; `no_alternative` for a value that fits no branch of a union."""
    value: object
    """What was given."""
    limit: str = ""
    """The bound that was broken, or the number of entries."""
    message: str = ""
    """The words of a check of our own, else pydantic's."""


@dataclass(frozen=True)
class _Trace:
    """An error's place: keys, the kind at their end, the plain unions passed, and whether the last had no branch."""

    path: KeyPath
    kind: Kind | None
    unions: tuple[KeyPath, ...]
    fits: bool


def mistakes(error: ValidationError, root: Kind, values: object) -> list[Mistake]:
    """The mistakes behind a failed validation of `values`, each key once."""
    errors = error.errors(include_url=False)
    traces = [_trace(_without_missing_element(item), root, values) for item in errors]
    understood = {union for trace in traces if trace.fits for union in trace.unions}
    found: dict[tuple[KeyPath, str], Mistake] = {}
    for item, trace in zip(errors, traces, strict=True):
        if trace.fits or trace.path not in understood:
            for mistake in _mistakes_of(item, trace, value_at(values, trace.path)):
                found.setdefault((mistake.path, mistake.message if mistake.type == "check" else ""), mistake)
    return list(found.values())


def value_at(values: object, path: KeyPath) -> object:
    """The value of a key; None where there is none."""
    for part in path:
        values = _entry(values, part)
    return values


def kind_at(root: Kind, values: object, path: KeyPath) -> Kind:
    """What a known key may hold, given the choices that the values make on the way."""
    kind = _trace(path, root, values, tagged=False).kind
    assert kind is not None, f"{path} is not a known key"
    return kind


def _mistakes_of(error: ErrorDetails, trace: _Trace, value: object) -> Iterator[Mistake]:
    context = error.get("ctx", {})
    cause = context.get("error")
    mistake = Mistake(trace.path, trace.kind, error["type"], value, _limit(error), str(cause or error["msg"]))
    if isinstance(cause, SectionError):
        for key, message in cause.problems:
            path = (*trace.path, *key.split(".")) if key else trace.path
            yield replace(mistake, path=path, type="check", message=message)
    elif error["type"] in ("value_error", "assertion_error"):
        yield replace(mistake, type="check")
    elif error["type"] == "missing" and trace.path != error["loc"] and isinstance(value, list):
        yield replace(mistake, type="no_alternative")
    else:
        yield mistake if trace.fits else replace(mistake, type="no_alternative")
        if error["type"].startswith("union_tag") and trace.kind and isinstance(value, dict):
            yield from _strange_keys(mistake, trace.kind, value)


def _strange_keys(mistake: Mistake, union: Kind, table: dict[str, object]) -> Iterator[Mistake]:
    """Keys that no choice of the union has; pydantic does not look at them where the choice itself is wrong."""
    known = {name for section in sections_in(union) for name in section.model_fields}
    for key in table.keys() - known:
        yield Mistake((*mistake.path, key), None, "extra_forbidden", table[key])


def _limit(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    names = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    limit = next((context[name] for name in names if name in context), "")
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _without_missing_element(error: ErrorDetails) -> KeyPath:
    """The place of an error; a list that is too short is wrong as a whole."""
    place = error["loc"]
    return place[:-1] if error["type"] == "missing" and isinstance(place[-1], int) else place


def _trace(place: KeyPath, kind: Kind, values: object, *, tagged: bool = True) -> _Trace:
    """Walk along the place; `tagged` places name the branch at each union, as pydantic's do."""
    path: KeyPath = ()
    unions: tuple[KeyPath, ...] = ()
    rest = list(place)
    here: Kind | None = kind
    while rest and here is not None:
        if here.alternatives:
            branch = narrow(here, values)
            if not here.discriminator:
                unions = (*unions, path)
            if branch is here or (tagged and not (here.discriminator or _is_branch(branch, str(rest[0])))):
                return _Trace(path, here, unions, fits=False)
            here, rest = branch, rest[1:] if tagged else rest
            continue
        below = child(here, rest[0])
        if below is None and here.section is None:
            break
        path, values, here = (*path, rest[0]), _entry(values, rest[0]), below
        rest = rest[1:]
    return _Trace(path, here, unions, fits=True)


def _is_branch(branch: Kind, tag: str) -> bool:
    """Whether pydantic's tag names this alternative of a plain union."""
    if branch.alternatives:
        return tag.startswith("tagged-union")
    if branch.section:
        return re.search(rf"\b{branch.section.__name__}\b", tag) is not None and not tag.startswith("literal")
    return tag.startswith(f"{getattr(get_origin(branch.plain), '__name__', '')}[")


def _entry(value: object, key: str | int) -> object:
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None
