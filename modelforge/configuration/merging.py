"""`merge`: a TOML and its overrides as one table of values, each with the place that it came from.

What depends on the place happens here: paths become absolute (a TOML's are relative to its folder, those of `--set` to
the working directory), and defaults of paths take the TOML's folder and name.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelforge.configuration.document import KeyPath, TomlDocument, TomlTable, TomlValue
from modelforge.configuration.overrides import read_override, write_override
from modelforge.configuration.schema import (
    Kind,
    child,
    choices,
    discriminator_of,
    fields_of,
    is_list,
    is_path,
    literals,
    narrow_fully,
)
from modelforge.section import Section


@dataclass(frozen=True)
class Place:
    """Where a value stands: in the TOML, or in a `--set`."""

    label: str
    """As messages name it, `configs/x.toml:14`."""
    origin: str
    """As the resolved experiment names it, `x.toml:14` or `--set`."""
    folder: Path
    """What a relative path is relative to."""
    order: tuple[int, int]
    """Messages are sorted by this: lines of the file, the file as a whole, overrides."""


@dataclass(frozen=True)
class Configuration:
    """Values before validation, the place of each, and what was wrong with the overrides."""

    path: Path
    values: TomlTable
    places: dict[KeyPath, Place]
    derived: set[KeyPath] = field(default_factory=set)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    @property
    def file(self) -> Place:
        """The TOML as a whole: the place of what is missing."""
        return Place(str(self.path), self.path.name, self.path.parent, (1, 0))

    def place(self, key: KeyPath) -> Place:
        """Where a key stands, or the `--set` that wrote the table around it or that made it for a key within.

        What does not exist stands in the file as a whole.
        """
        around = [place for known, place in self.places.items() if key[: len(known)] == known]
        within = [place for known, place in self.places.items() if known[: len(key)] == key]
        overrides = (place for place in around + within if place.origin == "--set")
        return self.places.get(key) or next(overrides, self.file)


def merge(document: TomlDocument, overrides: Sequence[str], section: type[Section]) -> Configuration:
    """Put overrides above the TOML's values, name the choices left at their default, and make paths absolute."""
    merged = Configuration(document.path, document.values, _places(document))
    for index, text in enumerate(overrides):
        _override(merged, text, Place(f"--set {text}", "--set", Path.cwd(), (2, index)))
    _name_choices(merged.values, Kind(section))
    _derive(merged, merged.values, Kind(section), ())
    values = {key: _with_paths(merged, value, child(Kind(section), key), (key,)) for key, value in merged.values.items()}
    return replace(merged, values=values)


def _places(document: TomlDocument) -> dict[KeyPath, Place]:
    path = document.path
    return {key: Place(f"{path}:{line}", f"{path.name}:{line}", path.parent, (0, line)) for key, line in document.lines.items()}


def _override(merged: Configuration, text: str, place: Place) -> None:
    """Write the value of one `--set`, or note what is wrong with it."""
    override = read_override(text)
    problem = override if isinstance(override, str) else write_override(override, merged.values)
    if isinstance(override, str) or problem:
        merged.problems.append((place, problem))
        return
    path = override.path
    for replaced in [known for known in merged.places if known[: len(path)] == path]:
        del merged.places[replaced]
    merged.places.update(dict.fromkeys(_paths_within(override.value, path), place))


def _entries(value: TomlValue) -> list[tuple[str | int, TomlValue]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _paths_within(value: TomlValue, path: KeyPath) -> list[KeyPath]:
    return [path, *(below for key, entry in _entries(value) for below in _paths_within(entry, (*path, key)))]


def _name_choices(value: TomlValue, kind: Kind | None) -> None:
    """Give each table that does not say `name` the name of the key's default choice."""
    here = kind and narrow_fully(kind, value)
    if not here:
        return
    for key, entry in _entries(value):
        if here.section and isinstance(entry, dict) and key in here.section.model_fields:
            _name_choice(here.section, str(key), entry)
        _name_choices(entry, child(here, key))


def _name_choice(section: type[Section], key: str, table: TomlTable) -> None:
    kind = fields_of(section)[key]
    discriminator = discriminator_of(kind)
    default = section.model_fields[key].get_default(call_default_factory=True)
    if choices(kind) and discriminator not in table and isinstance(default, Section):
        table[discriminator] = getattr(default, discriminator)


def _derive(merged: Configuration, table: TomlTable, kind: Kind, path: KeyPath) -> None:
    """Write the defaults of paths into the values, as if the TOML gave them."""
    section = narrow_fully(kind, table).section
    if section is None:
        return
    for name, below in fields_of(section).items():
        value = table.get(name, _path_default(section, name, below))
        if isinstance(value, dict):
            _derive(merged, value, below, (*path, name))
        if name not in table and value:
            table[name] = value.replace("<name>", merged.path.stem) if isinstance(value, str) else value
            merged.derived.add((*path, name))


def _path_default(section: type[Section], name: str, kind: Kind) -> str | TomlTable | None:
    """The text of a path's default; an empty table where a table of defaults would be made."""
    default = section.model_fields[name].get_default(call_default_factory=True)
    if isinstance(default, str) and is_path(kind) and default not in literals(kind):
        return default
    unchanged = isinstance(default, Section) and type(default) is kind.section and not default.model_fields_set
    return {} if unchanged else None


def _with_paths(merged: Configuration, value: TomlValue, kind: Kind | None, path: KeyPath) -> TomlValue:
    """The value with absolute paths; links stay links."""
    if kind is None:
        return value
    here = narrow_fully(kind, value)
    if isinstance(value, dict):
        return {key: _with_paths(merged, entry, child(here, key), (*path, key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_paths(merged, entry, child(here, i), (*path, i)) for i, entry in enumerate(value)]
    if isinstance(value, str) and value and _is_path_here(here) and value not in literals(here):
        folder = merged.places.get(path, merged.file).folder
        return os.path.abspath(folder / Path(value).expanduser())
    return value


def _is_path_here(kind: Kind) -> bool:
    """Whether a text is a path; one may stand for a list of one."""
    element = child(kind, 0) if is_list(kind) else None
    return is_path(kind) or (element is not None and is_path(element))
