"""A part of a file: consecutive structures as a reader found them, and what the file says about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modelforge.data.structures import Structures


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive structures of one file in eV and angstrom. The reader leaves `group` and `files` to whoever gathers parts."""

    structures: Structures
    keys: Mapping[str, int] = field(default_factory=dict)
    """What the file holds for a structure besides the geometry: each key with the number of structures that have it."""
    columns: Mapping[str, int] = field(default_factory=dict)
    """What it holds for each atom."""
    units: Mapping[str, str] = field(default_factory=dict)
    """The unit that each label was converted from, as a report names it: "hartree (stated in the file)"."""
    groups: Sequence[str | None] | None = None
    """Name of each structure's group; None for a structure that is a group of its own. All of them are, where this is None."""
    dropped: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Indices in the file of structures that could not be used, by reason."""
