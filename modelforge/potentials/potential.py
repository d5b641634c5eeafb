"""What every potential is: species and edge vectors in, atomic energies and features out; and what any of them can carry.

N atoms, S structures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, Self

from pydantic import model_validator
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph, Reach
from modelforge.physics.dispersion import DispersionSection, NoDispersion
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.repulsion import NoRepulsion, RepulsionSection
from modelforge.potentials.coulomb import CoulombSection, NoCoulomb
from modelforge.section import Length, Positive, Section, SectionError


class PotentialFields(Section):
    """What any potential can carry: ways to forces, inputs, charges, and physics that needs no learning."""

    other_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"r_max": "cutoff", "r_cut": "cutoff", "rcut": "cutoff", "cutoff_upper": "cutoff"}
    )
    cutoff: Length
    """Distance beyond which atoms do not see each other."""
    forces: Literal["derivative", "direct"] = "derivative"
    """Forces as minus the gradient of the energy, or predicted directly: faster, but they conserve no energy."""
    partial_charges: bool = False
    """A head for the partial charge of each atom, which add up to the total charge, and dipoles and quadrupoles."""
    charge_embedding: bool = False
    """Whether the network sees the total charge of the structure."""
    spin_embedding: bool = False
    """Whether the network sees the spin multiplicity of the structure."""
    coulomb: CoulombSection = NoCoulomb()
    repulsion: RepulsionSection = NoRepulsion()
    dispersion: DispersionSection = NoDispersion()

    @model_validator(mode="after")
    def _coulomb_has_charges(self) -> "PotentialFields":
        if self.coulomb.name != "none" and not self.partial_charges:
            raise SectionError(
                ("coulomb", f'name = "{self.coulomb.name}" needs charges; set potential.partial_charges = true, or remove it')
            )
        return self

    @property
    def sees_charge(self) -> bool:
        """Whether the network sees the total charge."""
        return self.charge_embedding

    @property
    def triples_cutoff(self) -> float:
        """Distance up to which pairs of neighbours of an atom matter, angstrom; 0 where they do not."""
        return 0.0

    @property
    def reach(self) -> Reach:
        """The edges and triples that graphs must have."""
        return Reach(self.cutoff, self.triples_cutoff, self.coulomb.far_cutoff, positions=self.partial_charges)

    @property
    def fixed_terms(self) -> FixedTerms:
        """The energies that need no learning: taken off the labels, added to predictions."""
        return FixedTerms(self.repulsion, self.dispersion)

    @property
    def is_closed_form(self) -> bool:
        """Whether the weights are the solution of linear equations, so that nothing is trained in steps."""
        return False

    def completed(self, mean_num_neighbors: Callable[[], float]) -> Self:  # noqa: ARG002
        """With what the training set says in the place of what was not given; `build` takes complete sections only."""
        return self

    def completed_like(self, other: "PotentialFields") -> Self:  # noqa: ARG002
        """With what the section of a trained potential says in its place."""
        return self

    def refuse_missing_packages(self) -> None:
        """A `UserError` where a package that the potential needs is not installed; what `fixed_terms` need they tell."""

    @abstractmethod
    def build(self, elements: Sequence[int]) -> "Potential":
        """A network with random weights for these elements."""


class NormalizedSums(PotentialFields):
    """What potentials have in common that divide sums over neighbours by how many there are on average."""

    avg_num_neighbors: Positive | None = None
    """Mean number of neighbours, which sums over them are divided by; that of the training set if not given."""

    def completed(self, mean_num_neighbors: Callable[[], float]) -> Self:
        """With the mean number of neighbours."""
        return self if self.avg_num_neighbors else self.model_copy(update={"avg_num_neighbors": mean_num_neighbors()})

    def completed_like(self, other: PotentialFields) -> Self:
        """With the number of the other one, if it has one."""
        number = other.avg_num_neighbors if isinstance(other, NormalizedSums) else None
        return self if number is None else self.completed(lambda: number)


@dataclass(frozen=True, eq=False)
class AtomicOutputs:
    """What a potential says of each atom."""

    energies: Tensor  # (N,) in units of the energy model's scale
    scalars: Tensor  # (N, F) invariant features, which heads read
    vectors: Tensor  # (N, 3, G) features that turn with the structure; G = 0 where a potential has none
    charges: Tensor  # (N, C) elementary charges that add up to the total charge; C = 1 if the network has its own, else 0
    penalties: Tensor  # (N, R) what the mean over atoms adds to the loss; R = 1 if the network has a penalty, else 0

    @classmethod
    def of(
        cls,
        energies: Tensor,
        scalars: Tensor,
        *,
        vectors: Tensor | None = None,
        charges: Tensor | None = None,
        penalties: Tensor | None = None,
    ) -> "AtomicOutputs":
        """Outputs of which a potential has only some."""
        vectors = scalars.new_zeros(scalars.shape[0], 3, 0) if vectors is None else vectors
        nothing = scalars[:, :0]
        return cls(
            energies, scalars, vectors, nothing if charges is None else charges, nothing if penalties is None else penalties
        )


class Potential(nn.Module, ABC):
    """A network that turns species and edge vectors into atomic energies.

    It sees nothing else of the geometry, so translations change nothing by construction, and it knows nothing of forces:
    these are derivatives by the edge vectors, taken in one place (`energy_model.py`). Under autocast its products of matrices
    may be in half precision; what it computes of the geometry itself, its sums over edges and its energies may not.
    """

    def __init__(
        self,
        section: PotentialFields,
        *,
        elements: Sequence[int],
        num_scalars: int,
        num_vectors: int = 0,
        has_charges: bool = False,
        has_penalty: bool = False,
    ) -> None:
        super().__init__()
        self.section = section  # what it was built from: with the elements and the weights, all that it is
        self.reach = section.reach
        self.cutoff = section.cutoff
        self.elements = tuple(elements)
        self.num_scalars, self.num_vectors, self.has_charges = num_scalars, num_vectors, has_charges
        self.has_penalty = has_penalty

    @abstractmethod
    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, and features for heads."""
