"""What a reader found: which label came from which key, how often, and which keys the files hold otherwise.

A reader does not refuse files without labels, because a prediction needs none; whoever does need them asks the report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from modelforge.data.structures import Structures


@dataclass(frozen=True)
class Removal:
    """How many structures of a file were left out, and why."""

    reason: str
    file: str
    count: int


@dataclass(frozen=True)
class LabelOrigin:
    """Where a label was looked for and how many structures have it."""

    option: str  # the option that names the key, like "forces_key"
    label: str  # the column of Structures that it fills; "" for names
    key: str
    per_atom: bool
    unit: str  # "" for names
    num_carriers: int  # structures that have the key
    num_incomplete: int  # of these, the ones where the value (of at least one atom) is NaN, which means missing


@dataclass(frozen=True)
class ReadReport:
    """What the files hold besides the geometry; each key with the number of structures that have it."""

    files: tuple[str, ...]
    num_structures: int
    origins: tuple[LabelOrigin, ...]
    keys: Mapping[str, int]
    columns: Mapping[str, int]
    homes: tuple[str, str] = ("header keys", "per-atom columns")
    """How the format calls what it holds for a structure, and for each atom."""
    tables: tuple[str, ...] = ()
    """For each file the table below `[dataset]` that it is read by, such as "sources.md."; "" where there is one source."""
    length_units: Mapping[str, str] = field(default_factory=dict)
    """The unit that the positions were converted from, by table."""
    removals: tuple[Removal, ...] = ()
    """Structures that the reader had to leave out."""

    def origin(self, option: str) -> LabelOrigin | None:
        """The origin that belongs to an option like "stress_key", None if the option was not used."""
        return next((origin for origin in self.origins if origin.option == option), None)

    def origins_of(self, label: str) -> tuple[LabelOrigin, ...]:
        """Where a label was looked for: nowhere, or in one key for each of several sources."""
        return tuple(origin for origin in self.origins if origin.label == label)

    def home(self, origin: LabelOrigin) -> str:
        """How the format calls what holds a label."""
        return self.homes[origin.per_atom]

    def absence(self, origin: LabelOrigin) -> str:
        """Say that a key is in no structure, what is there instead, and which of it was perhaps meant."""
        here, there = (self.columns, self.keys) if origin.per_atom else (self.keys, self.columns)
        home = self.home(origin)
        message = f"{origin.key!r} is in no structure of {listed(self.files)}; {home} there: {', '.join(here) or 'none'}"
        if origin.key in there:
            return f"{message} ({origin.key!r} is not one of the {home}, as {origin.option} must be)"
        return message + did_you_mean(origin.key, here)

    def to_json(self) -> dict[str, Any]:
        """The report as numbers and texts, without the names of the files."""
        return asdict(self) | {"files": ()}


def report_from_json(saved: Mapping[str, Any], files: tuple[str, ...]) -> ReadReport:
    """The report that `to_json` was made of."""
    origins = tuple(LabelOrigin(**origin) for origin in saved["origins"])
    removals = tuple(Removal(**removal) for removal in saved["removals"])
    lists = {
        "files": files,
        "origins": origins,
        "homes": tuple(saved["homes"]),
        "removals": removals,
        "tables": tuple(saved["tables"]),
    }
    return ReadReport(**{**saved, **lists})


class Reading(NamedTuple):
    """Structures, and what the reader has to say about them."""

    structures: Structures
    report: ReadReport


def listed(files: tuple[str, ...], *, limit: int = 3) -> str:
    """The names of the first files, and how many more there are."""
    more = f" and {len(files) - limit} more files" if len(files) > limit else ""
    return ", ".join(files[:limit]) + more


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """` (did you mean 'forces'?)`, or nothing where no choice is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(name.lower(), by_lower, n=3)
    return f" (did you mean {' or '.join(repr(by_lower[match]) for match in near)}?)" if near else ""
