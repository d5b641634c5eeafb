"""Potentials whose weights are the solution of linear equations: nothing is trained in steps."""

from abc import abstractmethod
from collections.abc import Iterable

from modelforge.atoms.graph import Batch
from modelforge.potentials.potential import Potential


class ClosedFormPotential(Potential):
    """A potential that is solved for at once."""

    @abstractmethod
    def solve(self, batches: Iterable[Batch], *, scale: float, with_energies: bool, with_forces: bool) -> list[str]:
        """Find the weights from labelled batches in float64, which may be gone through more than once.

        `scale`: eV, what the energies of the potential are multiplied with. Gives what there is to say about the solution.
        """
