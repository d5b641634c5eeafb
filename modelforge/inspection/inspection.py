"""`Inspection`: everything that is shown about files, as plain numbers and texts.

Lengths are in angstrom, energies in eV, forces in eV/angstrom, stresses in GPa, positive under tension. A number that the
data do not have is None. Structures are named `file:index`, with the names of `files`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

from modelforge.inspection.histogram import Histogram


@dataclass(frozen=True)
class FileCount:
    """A file, and how many structures of it were read."""

    name: str
    num_structures: int


@dataclass(frozen=True)
class LeftOut:
    """Structures of a file that could not be read, and why."""

    name: str
    reason: str
    num_structures: int


@dataclass(frozen=True)
class Range:
    """Least, middle and largest of some numbers."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True)
class ElementCount:
    """How many structures and atoms an element occurs in."""

    symbol: str
    num_structures: int
    num_atoms: int


@dataclass(frozen=True)
class Periodicity:
    """How many structures are periodic, and the room that an atom has in those that are so in all directions."""

    num_fully: int
    num_partly: int
    volume_per_atom: Range | None  # angstrom^3


@dataclass(frozen=True)
class LabelCount:
    """A label: where it was looked for and how many structures have it."""

    label: str
    option: str  # the TOML key that names the file's key
    key: str
    home: str  # how the format calls what holds it
    unit: str
    unit_from: str  # "file", "set", "guess" or "default"
    num_structures: int  # that have it completely
    num_incomplete: int  # that have the key with NaN in it


@dataclass(frozen=True)
class OtherKey:
    """A key that is not read."""

    key: str
    home: str
    num_structures: int
    toml: str  # the line with which it would be read, where it looks like a label; else ""


@dataclass(frozen=True)
class FoundWrong:
    """A finding of the audit."""

    severity: str
    key: str
    message: str


@dataclass(frozen=True)
class Audited:
    """What the audit says of labels that were read in some way."""

    lines: tuple[str, ...]
    findings: tuple[FoundWrong, ...]


@dataclass(frozen=True)
class Energies:
    """Energies of structures without the fitted self-energies of their atoms."""

    num_structures: int
    num_compositions: int
    self_energies: Mapping[str, float]  # by element
    undetermined: str | None  # which elements the data cannot tell apart
    rmse_per_atom: float  # of what the fit leaves
    num_isolated_atoms: int
    per_atom: Histogram


@dataclass(frozen=True)
class Forces:
    """Norms of the forces."""

    quantiles: Mapping[str, float]
    largest: tuple[str, ...]
    norms: Histogram


@dataclass(frozen=True)
class Stresses:
    """A third of the trace of the stresses."""

    num_structures: int
    mean: Histogram


@dataclass(frozen=True)
class Oddity:
    """Structures that should be looked at: how many, and some of them."""

    name: str
    num_structures: int
    examples: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class SubsetCount:
    """A subset, and how many structures it has."""

    name: str
    num_structures: int


@dataclass(frozen=True)
class Inspection:
    """What was found in some files."""

    folder: str  # that the names of the files begin at
    format: str
    files: tuple[FileCount, ...]
    left_out: tuple[LeftOut, ...]
    num_structures: int
    num_atoms: int
    atoms: Range  # of a structure
    elements: tuple[ElementCount, ...]
    periodicity: Periodicity
    length_unit: str
    labels: tuple[LabelCount, ...]
    other_keys: tuple[OtherKey, ...]
    how_read: tuple[str, ...]  # what was guessed, in sentences
    first_audit: Audited | None  # of the labels as they were read before units were guessed
    audit: Audited
    energies: Energies | None
    forces: Forces | None
    stresses: Stresses | None
    oddities: tuple[Oddity, ...]
    subsets: tuple[SubsetCount, ...]
    num_groups: int
    toml: tuple[str, ...]  # what reads these files, line by line

    def to_json(self) -> dict[str, object]:
        """All of it as JSON holds it; numbers that are none are None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value
