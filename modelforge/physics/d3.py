"""The energy D3(BJ): -sum s_n C_n / (r^n + (a1 R0 + a2)^n) over pairs, n = 6 and 8, R0 = sqrt(C8 / C6).

C6 of a pair follows from the coordination numbers of both atoms. Reference coefficients, radii and the weights of reference
systems come from tad-dftd3; the sums over pairs are done here, so that they hold for periodic structures too, over all images
within the cutoff. Everything inside is in hartree and bohr.

Legend: N atoms, P pairs, Z atomic numbers, K elements that occur, R reference systems of an element.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelforge.atoms.units import BOHR, HARTREE
from modelforge.errors import UserError
from modelforge.physics.pairs import Arrangements, FixedEnergy, Pairs, pairs_within, refuse_elements, sum_over_pairs

if TYPE_CHECKING:
    from tad_dftd3.reference import Reference

COUNTING_CUTOFF = 40.0  # bohr, as in s-dftd3
PAIRS_AT_ONCE = 100_000  # which bounds the memory of derivatives, and keeps them in the cache


@dataclass(frozen=True)
class Damping:
    """Parameters of a functional."""

    a1: float
    a2: float  # bohr
    s6: float
    s8: float


@dataclass(frozen=True, eq=False)
class Tables:
    """What D3 knows of the elements, by atomic number, float64."""

    reference: "Reference"  # coordination numbers and C6 of the reference systems
    covalent_radii: Tensor  # (Z,) bohr, by which neighbours are counted
    root_of_moments: Tensor  # (Z,) bohr, sqrt(Z^0.5 <r^4> / <r^2> / 2): the product of two is a third of C8 / C6
    known: NDArray[np.bool_]  # (Z,) whether there is a reference


@cache
def tables_of_elements() -> Tables:
    """The tables of the library."""
    from tad_dftd3.data import R4R2
    from tad_dftd3.reference import Reference
    from tad_mctc.data.radii import COV_D3

    reference = Reference(dtype=torch.float64, device=torch.device("cpu"))
    known = np.zeros(256, dtype=bool)
    known[1 : len(reference.cn)] = True
    return Tables(reference, COV_D3(dtype=torch.float64), R4R2(dtype=torch.float64), known)


def refuse_missing_library() -> None:
    """A `UserError` where the package with the reference data is not installed."""
    if find_spec("tad_dftd3") is None:
        raise UserError(
            'potential.dispersion.name: "d3bj" needs the package tad-dftd3; install it: pip install modelforge[dispersion]'
        )


def d3_energy(structures: Arrangements, damping: Damping, *, three_body: float, cutoff: float) -> FixedEnergy:
    """Energy, forces and stress of structures, pairs up to the cutoff in angstrom; `three_body` scales that term."""
    refuse_elements(structures, tables_of_elements().known, message="no D3 reference; leave the dispersion to the network")
    numbers = torch.from_numpy(structures.atomic_numbers.astype(np.int64))
    pairs = pairs_within(structures, cutoff=cutoff)
    energies, slopes = two_body(numbers, pairs, damping)
    found = sum_over_pairs(structures, pairs, energies * HARTREE, slopes * (HARTREE / BOHR))
    return _with_three_body(found, structures, numbers, damping, scale=three_body) if three_body else found


def two_body(numbers: Tensor, pairs: Pairs, damping: Damping) -> tuple[Tensor, Tensor]:
    """Energies (P,) in hartree and derivatives by the distances (P,) in hartree/bohr of pairs among atoms (N,).

    A distance changes all energies of both its atoms by way of their coordination numbers; that is added up by atom first.
    """
    from tad_dftd3.model import weight_references
    from tad_mctc.ncoord.count import dexp_count, exp_count

    tables, distances = tables_of_elements(), pairs.distances / BOHR
    radii = tables.covalent_radii[numbers]
    bonded = radii[pairs.first] + radii[pairs.second]  # (P,)
    is_counted = distances <= COUNTING_CUTOFF
    counts = torch.where(is_counted, exp_count(distances, bonded), 0.0)
    coordination = radii.new_zeros(len(numbers)).index_add(0, pairs.first, counts).index_add(0, pairs.second, counts)
    coordination.requires_grad_()
    weights = weight_references(numbers, coordination, tables.reference)  # (N, R)
    energies, slopes, by_weights = _given_weights(numbers, weights.detach(), pairs, distances, damping)
    (by_coordination,) = torch.autograd.grad(weights, coordination, by_weights)  # (N,)
    through_counts = by_coordination[pairs.first] + by_coordination[pairs.second]
    return energies, slopes + through_counts * torch.where(is_counted, dexp_count(distances, bonded), 0.0)


def _given_weights(
    numbers: Tensor, weights: Tensor, pairs: Pairs, distances: Tensor, damping: Damping
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (P,), their derivatives by distances (P,), and those of the sum by the weights of references (N, R)."""
    tables = tables_of_elements()
    elements, element = torch.unique(numbers, return_inverse=True)
    table = tables.reference.c6[elements][:, elements]  # (K, K, R, R)
    weights.requires_grad_()
    towards = torch.einsum("ia,ikab->ikb", weights, table[element])  # (N, K, R) C6 towards the references of each element
    leaf = towards.detach().requires_grad_()
    by_leaf, by_weights = torch.zeros_like(leaf), torch.zeros_like(weights)
    energies, slopes = torch.empty_like(distances), torch.empty_like(distances)
    for begin in range(0, len(distances), PAIRS_AT_ONCE):
        part = slice(begin, begin + PAIRS_AT_ONCE)
        first, second, some = pairs.first[part], pairs.second[part], distances[part].clone().requires_grad_()
        c6 = (leaf[first, element[second]] * weights[second]).sum(1)
        ratio = 3 * tables.root_of_moments[numbers[first]] * tables.root_of_moments[numbers[second]]
        found = damped(some, c6, ratio, damping)
        slopes[part], part_by_leaf, part_by_weights = torch.autograd.grad(found.sum(), (some, leaf, weights))
        energies[part] = found.detach()
        by_leaf += part_by_leaf
        by_weights += part_by_weights
    (through_leaf,) = torch.autograd.grad(towards, weights, by_leaf)
    return energies, slopes, by_weights + through_leaf


def damped(distances: Tensor, c6: Tensor, ratio: Tensor, damping: Damping) -> Tensor:
    """Energies of pairs (P,) for their C6 and the ratios C8 / C6."""
    radius = damping.a1 * ratio.sqrt() + damping.a2
    terms = damping.s6 / (distances**6 + radius**6) + damping.s8 * ratio / (distances**8 + radius**8)
    return -c6 * terms


def _with_three_body(
    two: FixedEnergy, structures: Arrangements, numbers: Tensor, damping: Damping, *, scale: float
) -> FixedEnergy:
    """With the term of all triples of each molecule, which is the library's."""
    from tad_dftd3.disp import dftd3

    given = {"s6": 0.0, "s8": 0.0, "s9": scale, "a1": damping.a1, "a2": damping.a2}
    parameters = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}
    energy, forces = two.energy.copy(), two.forces.copy()
    end = np.cumsum(structures.num_atoms)
    for place, (begin, last) in enumerate(zip((end - structures.num_atoms).tolist(), end.tolist(), strict=True)):
        positions = torch.from_numpy(structures.positions[begin:last] / BOHR).requires_grad_()
        total = dftd3(numbers[begin:last], positions, parameters, ref=tables_of_elements().reference).sum()
        (gradient,) = torch.autograd.grad(total, positions)
        energy[place] += total.item() * HARTREE
        forces[begin:last] -= gradient.numpy() * (HARTREE / BOHR)
    return FixedEnergy(energy, forces, two.stress)
