"""`ImportedPotential`: what a format makes of the hyper-parameters and weights of another package."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from modelforge.potentials import PotentialSection

Hyper = Mapping[str, object]
"""Hyper-parameters as the file has them in JSON. `energy_unit` and `length_unit` are among them where `about` states them, and
what the command line says is in the place of what the file says: these two, and `elements`, a list of symbols."""
Arrays = Mapping[str, NDArray[Any]]
"""Weights by the names of the other package."""


@dataclass(frozen=True, eq=False)
class ImportedPotential:
    """A potential as another package has trained it, in eV and angstrom."""

    section: PotentialSection
    elements: tuple[int, ...]  # atomic numbers, in the order of the rows of its embedding
    state: dict[str, Tensor]  # of the potential, by our names
    self_energies: dict[int, float]  # eV
    scale: float  # eV: what the network's output is multiplied with
    notes: tuple[str, ...] = ()  # what the user should know, in sentences
