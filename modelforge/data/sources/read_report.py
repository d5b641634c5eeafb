"""What a reader found: which label came from which key, how often, and which keys the files hold otherwise.

A reader does not refuse files without labels, because a prediction needs none; whoever does need them asks the report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple

from modelforge.data.structures import Structures

Home = Literal["header keys", "per-atom columns"]


@dataclass(frozen=True)
class LabelOrigin:
    """Where a label was looked for and how many structures have it."""

    option: str  # the option that names the key, like "forces_key"
    key: str
    home: Home  # where in a structure's text the key must stand
    unit: str  # "" for names
    num_carriers: int  # structures that have the key
    num_incomplete: int  # of these, the ones where the value (of at least one atom) is NaN, which means missing


@dataclass(frozen=True)
class ReadReport:
    """What the files hold besides the geometry; each key with the number of structures that have it."""

    files: tuple[str, ...]
    num_structures: int
    origins: tuple[LabelOrigin, ...]
    header_keys: Mapping[str, int]
    columns: Mapping[str, int]

    def origin(self, option: str) -> LabelOrigin | None:
        """The origin that belongs to an option like "stress_key", None if the option was not used."""
        return next((origin for origin in self.origins if origin.option == option), None)

    def absence(self, origin: LabelOrigin) -> str:
        """Say that a key is in no structure, what is there instead, and which of it was perhaps meant."""
        here, there = self.header_keys, self.columns
        if origin.home == "per-atom columns":
            here, there = there, here
        message = f"{origin.key!r} is in no structure of {listed(self.files)}; {origin.home} there: {', '.join(here) or 'none'}"
        if origin.key in there:
            return f"{message} ({origin.key!r} is not one of the {origin.home}, as {origin.option} must be)"
        return message + did_you_mean(origin.key, here)


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
