"""`load_section`: from a TOML and overrides to a validated section with the origin of each value."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from modelforge.configuration.document import KeyPath, TomlDocument, TomlValue, read_toml
from modelforge.configuration.explanations import explain
from modelforge.configuration.merging import Configuration, Place, merge
from modelforge.configuration.mistakes import mistakes, value_at
from modelforge.configuration.schema import Kind
from modelforge.configuration.writing import dotted
from modelforge.errors import UserError
from modelforge.section import Section

AnySection = TypeVar("AnySection", bound=Section)


class ConfigurationError(UserError):
    """All mistakes in a TOML and its overrides, one message each, in the order of the lines."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


@dataclass(frozen=True)
class Loaded(Generic[AnySection]):
    """A validated section, and where its values come from."""

    section: AnySection
    origins: dict[str, str]
    """Dotted key -> `x.toml:14`, `--set`, `default` or `derived`."""
    places: dict[str, str]
    """Dotted key or table -> its place as messages name it; none for defaults."""


def load_section(section: type[AnySection], path: Path, overrides: Sequence[str] = ()) -> Loaded[AnySection]:
    """Read, merge, make paths absolute, validate once; all mistakes come in one `ConfigurationError`."""
    return validated(section, read_toml(path), overrides)


def validated(section: type[AnySection], document: TomlDocument, overrides: Sequence[str] = ()) -> Loaded[AnySection]:
    """The same for a document that is read already."""
    merged = merge(document, overrides, section)
    try:
        # strict: "5" is no number, true is no 1
        loaded = section.model_validate(_frozen(merged.values), strict=True)
    except ValidationError as error:
        found = _explained(error, Kind(section), merged)
    else:
        found = []
    if found or merged.problems:
        raise ConfigurationError(_sorted_messages([*found, *merged.problems]))
    places = {dotted(key): place.label for key, place in merged.places.items()}
    return Loaded(loaded, origins_of(loaded, merged), places)


def _frozen(value: TomlValue) -> object:
    """Values as sections hold them: tuples for lists; dates, which no key holds, as texts."""
    if isinstance(value, dict):
        return {key: _frozen(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(entry) for entry in value)
    return str(value) if isinstance(value, (datetime.date, datetime.time)) else value


def _explained(error: ValidationError, root: Kind, merged: Configuration) -> list[tuple[Place, str]]:
    explanations = [explain(mistake, root, merged.values) for mistake in mistakes(error, root, merged.values)]
    return [(merged.place(explanation.path), str(explanation)) for explanation in explanations]


def _sorted_messages(found: list[tuple[Place, str]]) -> list[str]:
    return [f"{place.label}: {message}" for place, message in sorted(found, key=lambda item: item[0].order)]


def origins_of(section: Section, merged: Configuration) -> dict[str, str]:
    """The origin of each value of a section."""
    return {dotted(path): _origin(path, usual, merged) for path, usual in _leaves(section, None, (), merged.values)}


def _origin(path: KeyPath, usual: bool, merged: Configuration) -> str:
    if path in merged.places:
        return merged.places[path].origin
    return "default" if usual and path not in merged.derived else "derived"


def _leaves(section: Section, defaults: object, path: KeyPath, given: object) -> Iterator[tuple[KeyPath, bool]]:
    """The path of each value, and whether it is what stands there if nothing is given.

    `defaults` is the section that stands for the whole table if it is not given, where there is one.
    """
    for name, field in type(section).model_fields.items():
        value, below = getattr(section, name), (*path, name)
        default = getattr(defaults, name, None) if defaults else field.get_default(call_default_factory=True)
        if isinstance(value, Section):
            inner = value_at(given, (name,))
            yield from _leaves(value, default if inner is None else None, below, inner)
        elif isinstance(value, dict) and value:
            for key, entry in value.items():
                if isinstance(entry, Section):
                    yield from _leaves(entry, None, (*below, key), value_at(given, (name, key)))
                else:
                    yield (*below, key), value == default
        else:
            yield below, value == default
