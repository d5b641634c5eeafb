"""The Coulomb energy of partial charges over all pairs of atoms, or up to a cutoff.

    E = k sum_{i<j} q_i q_j (chi(r_ij) - 2/R + r_ij/R^2),   k = 14.3996 eV angstrom/e^2

chi(r) is 1/r from some length on and smaller below it, where the network knows better. The last two terms, only there with a
cutoff R, bring value and slope of 1/r to zero at R; so does PhysNet. S structures, N atoms, L far edges.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_senders, sum_over_atoms, sum_over_edges
from modelforge.atoms.units import BOHR, HARTREE
from modelforge.nn.cutoffs import polynomial_cutoff
from modelforge.section import Length, Section, SectionError

COULOMB = HARTREE * BOHR  # eV angstrom, between two elementary charges
NEARLY_ONE = 1.0 - 1e-6  # where the bump function is 0 in any precision, and its exponent still finite


class NoCoulomb(Section):
    """No Coulomb energy."""

    name: Literal["none"] = "none"

    @property
    def far_cutoff(self) -> float:
        """No far edges are needed."""
        return 0.0


class CoulombFields(Section):
    """What all kinds of Coulomb energies have in common."""

    length: Length
    cutoff: Length | None = None
    """Distance at which value and slope have gone to zero; all pairs of atoms where not given: only without periodicity."""

    @model_validator(mode="after")
    def _is_plain_at_the_cutoff(self) -> "CoulombFields":
        if self.cutoff is not None and self.cutoff < self.plain_from:
            raise SectionError(
                ("cutoff", f"must not be below {self.plain_from:g}, from where on charges act as points (got {self.cutoff:g})")
            )
        return self

    @property
    def plain_from(self) -> float:
        """The distance from which on charges act as points, angstrom."""
        return self.length

    @property
    def far_cutoff(self) -> float:
        """The distance up to which graphs must have far edges."""
        return math.inf if self.cutoff is None else self.cutoff

    @abstractmethod
    def inverse_distance(self, distance: Tensor) -> Tensor:
        """chi, (L,) angstrom -> (L,)."""

    def energies(self, charges: Tensor, graph: AtomicGraph) -> Tensor:
        """From charges (N,) in e and the far edges, (S,) eV."""
        far = graph.far
        distance = far.edge_vectors.norm(dim=1)  # (L,)
        chi = self.inverse_distance(distance)
        if self.cutoff is not None:
            shifted = chi - 2.0 / self.cutoff + distance / self.cutoff**2
            chi = torch.where(distance < self.cutoff, shifted, 0.0)
        potential = sum_over_edges(at_senders(charges, far) * chi, far)  # (N,)
        return 0.5 * COULOMB * sum_over_atoms(charges * potential, graph)


class DampedCoulomb(CoulombFields):
    """Charges spread out at short distances, as in PhysNet (Unke, Meuwly, 2019): chi = phi/sqrt(r^2 + 1) + (1 - phi)/r."""

    name: Literal["damped"] = "damped"
    length: Length = 10.0
    """The polynomial phi(2r) falls from 1 to 0 over this length: charges act as points from half of it on."""

    @property
    def plain_from(self) -> float:
        """phi(2r) is 0 from here on."""
        return self.length / 2

    def inverse_distance(self, distance: Tensor) -> Tensor:
        """With the root of r^2 + 1 in angstrom."""
        spread = polynomial_cutoff(2.0 * distance, self.length)
        return spread / (distance.square() + 1.0).sqrt() + (1.0 - spread) / distance


class SwitchedCoulomb(CoulombFields):
    """Charges that do not act at short distances, as in AIMNet2: chi = (1 - s)/r, s = exp(1 - 1/(1 - (r/length)^2))."""

    name: Literal["switched"] = "switched"
    length: Length = 4.6
    """The bump function falls from 1 to 0 over this length: charges act as points from there on."""

    def inverse_distance(self, distance: Tensor) -> Tensor:
        """Zero where the network alone gives the energy of near atoms."""
        ratio = (distance / self.length).clamp(max=NEARLY_ONE)
        bump = torch.exp(1.0 - 1.0 / (1.0 - ratio.square()))
        return (1.0 - bump) / distance


CoulombSection = Annotated[NoCoulomb | DampedCoulomb | SwitchedCoulomb, Field(discriminator="name")]
