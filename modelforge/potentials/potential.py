"""What every potential is: species and edge vectors in, atomic energies out. N atoms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph
from modelforge.section import Section


class Potential(nn.Module, ABC):
    """A network that turns species and edge vectors into atomic energies.

    It sees nothing else of the geometry, so translations change nothing by construction, and it knows nothing of forces:
    these are derivatives by the edge vectors, taken in one place (`energy_model.py`). Under autocast its products of matrices
    may be in half precision; what it computes of the geometry itself, its sums over edges and its energies may not.
    """

    def __init__(self, section: Section, *, cutoff: float, elements: Sequence[int]) -> None:
        super().__init__()
        self.section = section  # what it was built from: with the elements and the weights, all that it is
        self.cutoff = cutoff
        self.elements = tuple(elements)

    @abstractmethod
    def forward(self, graph: AtomicGraph) -> Tensor:
        """Atomic energies in units of the energy model's scale, (N,)."""
