"""What every potential is: species and edge vectors in, atomic energies out. N atoms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph


class Potential(nn.Module, ABC):
    """A network that turns species and edge vectors into atomic energies.

    It sees nothing else of the geometry, so translations change nothing by construction, and it knows nothing of forces:
    these are derivatives by the edge vectors, taken in one place (`energy_model.py`).
    """

    def __init__(self, *, cutoff: float, elements: Sequence[int]) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.elements = tuple(elements)

    @abstractmethod
    def forward(self, graph: AtomicGraph) -> Tensor:
        """Atomic energies in units of the energy model's scale, (N,)."""
