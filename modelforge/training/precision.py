"""The arithmetic of a run: how exact products of matrices are, what runs in half precision, and what that costs.

`runtime.precision` and `runtime.matmul_precision` change forces; `force_difference` measures by how much.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph, Batch, Prediction, tensors_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import atoms_per_structure
from modelforge.training.runtime import MatmulPrecision, Precision

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MILLI = 1e3


@contextmanager
def matmul_precision(name: MatmulPrecision) -> Iterator[None]:
    """Products of float32 matrices are as exact as `name` says inside, and as before after."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The autocast of a precision on a device; one that does nothing for "32-true" and "64-true"."""
    return torch.autocast(device.type, dtype=HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


@dataclass(frozen=True)
class ForceDifference:
    """How far the predictions of a run's arithmetic are from those of float64, for the same weights and the same edges."""

    precision: Precision
    matmul_precision: MatmulPrecision
    forces_rms: float  # meV/angstrom, over all components
    forces_largest: float  # meV/angstrom
    forces_size: float  # meV/angstrom, root mean square of the forces themselves
    energy_largest: float  # meV/atom


def force_difference(
    model: EnergyModel, batch: Batch, *, precision: Precision, matmul: MatmulPrecision = "highest"
) -> ForceDifference:
    """Compare the model in the arithmetic of a run with a float64 copy of itself, on a batch.

    The copy takes the edge vectors as the batch has them, so that their own rounding (half of 1e-7 of a distance in float32)
    is not part of the difference; what is measured is the network, the sums and the derivative. It reads results back.
    """
    own = copy.deepcopy(model).eval()
    with matmul_precision(matmul), autocast(precision, batch.graph.edge_vectors.device):
        found = own(batch.graph)
    exact: Prediction = own.double()(_in_double_precision(batch.graph))
    forces = found.forces.double() - exact.forces
    energy = (found.energy.double() - exact.energy) / atoms_per_structure(batch.graph).double()
    values = MILLI * torch.stack([_rms(forces), forces.abs().amax(), _rms(exact.forces), energy.abs().amax()])
    return ForceDifference(precision, matmul, *values.tolist())


def difference_in_words(difference: ForceDifference) -> str:
    """A line for the log."""
    matmul = f", matmul_precision {difference.matmul_precision}" if difference.matmul_precision != "highest" else ""
    return (
        f"precision {difference.precision}{matmul}: forces differ from float64 by {difference.forces_rms:.2g} meV/A (rms), "
        f"{difference.forces_largest:.2g} (largest), of {difference.forces_size:.3g} (rms); "
        f"energies by at most {difference.energy_largest:.2g} meV/atom"
    )


def _in_double_precision(graph: AtomicGraph) -> AtomicGraph:
    return AtomicGraph(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors_of(graph)))


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
