"""`--set table.key=value`: reading one and writing it into a table.

Both functions say in words what is wrong instead of raising, so that all mistakes can be reported together.
"""

import datetime
from dataclasses import dataclass

import tomli

from modelforge.configuration.document import TomlTable, TomlValue


@dataclass(frozen=True)
class Override:
    """A key and the value that it gets."""

    path: tuple[str, ...]
    value: TomlValue


def read_override(text: str) -> Override | str:
    """Take `a.b.c=value` apart; a text is what is wrong with it."""
    key, equals, value = text.partition("=")
    path = _key_path(key)
    if not equals or not path:
        return "expected --set table.key=value, such as --set training.batch_size=8"
    if not value.strip():
        return f"no value; for an empty text write --set '{key}=\"\"'"
    return Override(path, _parse(value.strip()))


def write_override(override: Override, table: TomlTable) -> str:
    """Put the value into the table, which may create tables; a text is what is wrong, empty if nothing."""
    *parents, last = override.path
    for depth, part in enumerate(parents, start=1):
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            return f"{'.'.join(parents[:depth])} is a value, not a table"
        table = below
    table[last] = override.value
    return ""


def _key_path(key: str) -> tuple[str, ...]:
    """`a.b.c` as TOML reads it; empty if it is no key."""
    try:
        table: object = tomli.loads(f"{key} = 0")
    except tomli.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(table, dict) and len(table) == 1:
        name, table = next(iter(table.items()))
        parts.append(name)
    return tuple(parts) if table == 0 else ()


def _parse(value: str) -> TomlValue:
    """A value as TOML, and as a plain text where it is none; dates are texts too, as no key holds one."""
    try:
        table: TomlTable = tomli.loads(f"value = {value}")
    except tomli.TOMLDecodeError:
        return value
    parsed = table["value"]
    return value if len(table) > 1 or isinstance(parsed, (datetime.date, datetime.time)) else parsed
