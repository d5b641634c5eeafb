"""TOML as text: keys, values and whole sections, written such that reading them gives the same again."""

import json
import re
from collections.abc import Iterator, Mapping

from modelforge.configuration.document import KeyPath
from modelforge.configuration.schema import Kind, child, narrow_fully, unit_of
from modelforge.section import Section

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """A key, in quotes where it needs them."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def dotted(path: KeyPath) -> str:
    """A key's place as messages write it: `dataset.test_paths."300 K"`, `runtime.devices[1]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{toml_key(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def toml_value(value: object) -> str:
    """A value on one line; tables become inline tables, entries that are None are left out."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        entries = (f"{toml_key(str(key))} = {toml_value(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    assert isinstance(value, (int, float)), f"TOML cannot hold {value!r}"
    return repr(value)


def resolved_toml(section: Section, origins: Mapping[str, str]) -> str:
    """All keys with their values, as TOML that loads to an equal section; unit and origin stand behind each."""
    return "\n".join(_table(section.model_dump(mode="json"), Kind(type(section)), origins, ())).strip() + "\n"


def _table(values: Mapping[str, object], kind: Kind | None, origins: Mapping[str, str], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: first its values, then the tables in it."""
    if path:
        yield from ("", f"[{dotted(path)}]")
    here = narrow_fully(kind, values) if kind else None
    for name, value in values.items():
        if value is None:
            yield f"# {toml_key(name)}: not set"
        elif not isinstance(value, Mapping) or not value:
            comment = _comment(child(here, name) if here else None, origins.get(dotted((*path, name))))
            yield f"{toml_key(name)} = {toml_value(value)}{comment}"
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _table(value, child(here, name) if here else None, origins, (*path, name))


def _comment(kind: Kind | None, origin: str | None) -> str:
    words = [word for word in (unit_of(kind) if kind else None, origin) if word]
    return f"  # {', '.join(words)}" if words else ""
