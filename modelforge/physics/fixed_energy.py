"""The fixed energies of a potential together: taken off the labels before training, added to predictions."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from modelforge.physics.dispersion import D3BJ, DispersionSection, NoDispersion, dispersion_of, refuse_unusable
from modelforge.physics.pairs import Arrangements, FixedEnergy
from modelforge.physics.repulsion import ZBL, NoRepulsion, RepulsionSection, repulsion_of
from modelforge.section import Section

NO_REPULSION, NO_DISPERSION = NoRepulsion(), NoDispersion()
VERSION = 1  # of the rules by which they are computed
ATOMS_AT_A_TIME = 2_000  # so few that their pairs stay in the cache


@dataclass(frozen=True)
class FixedTerms:
    """The energies that a potential has besides its network."""

    repulsion: RepulsionSection = NO_REPULSION
    dispersion: DispersionSection = NO_DISPERSION

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not (isinstance(self.repulsion, ZBL) or isinstance(self.dispersion, D3BJ))

    @property
    def key(self) -> str:
        """All that decides on their values, as text."""
        library = version("tad-dftd3") if isinstance(self.dispersion, D3BJ) else ""
        return f"{VERSION} {self.repulsion.model_dump_json()} {self.dispersion.model_dump_json()} {library}"

    def __str__(self) -> str:
        sections = [term for term in (self.repulsion, self.dispersion) if term.name != "none"]
        return " and ".join(f"{term.name} ({_options(term)})" if _options(term) else term.name for term in sections)

    def refuse_unusable(self, *sets: Arrangements) -> None:
        """A `UserError` where a term cannot be computed, for these structures or for any."""
        if isinstance(self.dispersion, D3BJ):
            refuse_unusable(self.dispersion, *sets)

    def of(self, structures: Arrangements) -> FixedEnergy:
        """The sum of the terms, zero without any; it is not finite where two atoms lie upon each other."""
        if self.is_empty:
            num, num_atoms = len(structures.num_atoms), len(structures.atomic_numbers)
            return FixedEnergy(np.zeros(num), np.zeros((num_atoms, 3)), np.zeros((num, 3, 3)))
        terms = [_added([*self._terms(piece)]) for piece in structures.pieces(ATOMS_AT_A_TIME)]
        return FixedEnergy(
            np.concatenate([term.energy for term in terms]),
            np.concatenate([term.forces for term in terms]),
            np.concatenate([term.stress for term in terms]),
        )

    def _terms(self, piece: Arrangements) -> Iterator[FixedEnergy]:
        if isinstance(self.repulsion, ZBL):
            yield repulsion_of(self.repulsion, piece)
        if isinstance(self.dispersion, D3BJ):
            yield dispersion_of(self.dispersion, piece)


def _added(terms: list[FixedEnergy]) -> FixedEnergy:
    """The sum of terms of the same structures."""
    energy, forces, stress = terms[0].energy, terms[0].forces, terms[0].stress
    for term in terms[1:]:
        energy, forces, stress = energy + term.energy, forces + term.forces, stress + term.stress
    return FixedEnergy(energy, forces, stress)


def _options(section: Section) -> str:
    """What was set, and is not the default."""
    told = section.model_dump(exclude={"name"}, exclude_defaults=True)
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items())
