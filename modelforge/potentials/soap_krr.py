"""Kernel ridge regression with SOAP: energies of atoms from how much their neighbourhoods are like those of references.

    e_i = sum_r a_r k(i, r),   k(i, r) = (p_i . p_r / (|p_i| |p_r|))^zeta  where i and r are of one element, else 0

The references are environments of the training set, far apart from each other. The weights a minimise

    sum_s (dE_s / (sigma_E sqrt(N_s)))^2 + sum_i |dF_i|^2 / sigma_F^2 + a^T K a,   K the kernel between the references,

which is a ridge regression on K^(-1/2) k (Bartok, Payne, Kondor, Csanyi, Phys. Rev. Lett. 104, 136403, 2010, with the sparse
form of Bartok and Csanyi, Int. J. Quantum Chem. 115, 1051, 2015). N atoms, F features, Z elements, R references of an element,
S structures, M columns of the equations.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols
from scipy.linalg import block_diag
from torch import Tensor, nn

from modelforge.atoms.graph import AtomicGraph, Batch
from modelforge.atoms.sums import sum_over_atoms
from modelforge.errors import UserError
from modelforge.nn.descriptors.soap import random_structures
from modelforge.potentials.closed_form import ClosedFormPotential
from modelforge.potentials.potential import AtomicOutputs
from modelforge.potentials.soap import SOAPFields
from modelforge.section import Count, Positive

Floats = npt.NDArray[np.float64]

MOST_CANDIDATES = 10_000  # atoms among which references are chosen
SAME = 1e-6  # squared distance of descriptors below which two environments are one
SMALLEST_EIGENVALUE = 1e-9  # of the kernel between references, relative to the largest: below, it is rounding


class SOAPKernelSection(SOAPFields):
    """SOAP kernel ridge regression: no training, one solution in closed form; good with few data. Needs scikit-learn."""

    name: Literal["soap_krr"]
    zeta: Count = 4
    """Power of the dot product of descriptors: how sharply the kernel tells environments apart."""
    num_references: Count = 200
    """Reference environments of each element: the weights that are solved for."""
    energy_regularization: Positive = 1e-3
    """Error that energies may have, in eV for a structure of one atom; it grows with the root of the number of atoms."""
    forces_regularization: Positive = 2e-2
    """Error that components of forces may have, in eV/angstrom."""

    @property
    def is_closed_form(self) -> bool:
        """They are."""
        return True

    def refuse_missing_packages(self) -> None:
        """A `UserError` without scikit-learn."""
        refuse_missing_library()

    def build(self, elements: Sequence[int]) -> "SOAPKernel":
        """A potential with random references and weights for these elements."""
        return SOAPKernel(self, elements)


class SOAPKernel(ClosedFormPotential):
    """The potential of the module's docstring."""

    references: Tensor  # (Z, R, F) less the centre; where an element has fewer environments, those left over have no weight
    centres: Tensor  # (Z, F) what the references of an element have in common
    offsets: Tensor  # (Z,) sums of the weights
    numbers: Tensor  # (Z,)

    def __init__(self, section: SOAPKernelSection, elements: Sequence[int]) -> None:
        super().__init__(section, elements=elements, num_scalars=section.num_references)
        self.options, self.descriptor = section, section.descriptor(elements)
        self.register_buffer("numbers", torch.tensor(self.elements), persistent=False)
        size = (len(elements), section.num_references)
        self.register_buffer("references", torch.zeros(*size, self.descriptor.num_features, dtype=torch.float64))
        self.register_buffer("centres", torch.zeros(len(elements), self.descriptor.num_features, dtype=torch.float64))
        self.weights = nn.Parameter(torch.randn(size) / math.sqrt(section.num_references))  # (Z, R)
        self.register_buffer("offsets", self.weights.detach().sum(dim=1))
        self.choose_references([random_structures(self.descriptor.elements, cutoff=self.cutoff)])

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies; the features for heads are the kernels."""
        similarities, one_hot = self.similarities(graph), self._one_hot(graph)
        with torch.autocast(similarities.device.type, enabled=False):
            energies = (similarities * (one_hot @ self.weights)).sum(dim=1) + one_hot @ self.offsets
        return AtomicOutputs.of(energies, similarities)

    def similarities(self, graph: AtomicGraph) -> Tensor:
        """k - 1 of each atom and the references of its element, (N, R).

        Kernels are close to 1, weights are large and of both signs: what is left of the sum would be lost in float32. With
        the common centre taken off, 1 - p.r = |p - r|^2/2 keeps its digits.
        """
        one_hot = self._one_hot(graph)
        with torch.autocast(one_hot.device.type, enabled=False):
            descriptors = self.described(graph) - one_hot @ self.centres
            of_references = one_hot @ self.references.square().sum(dim=2)  # (N, R)
        products = (descriptors @ self.references.flatten(0, 1).T).to(descriptors.dtype)  # (N, Z R)
        own = (products.view(len(products), *self.weights.shape) * one_hot[:, :, None]).sum(dim=1)
        distance = 0.5 * (descriptors.square().sum(dim=1, keepdim=True) + of_references) - own  # 1 - p.r
        powers = torch.ones_like(distance)  # 1 + x + x^2 .. of x = p.r
        for _ in range(self.options.zeta - 1):
            powers = powers * (1.0 - distance) + 1.0
        return -distance * powers

    def described(self, graph: AtomicGraph) -> Tensor:
        """Descriptors of length 1, (N, F)."""
        spectrum: Tensor = self.descriptor(graph).flatten(1)
        return cast(Tensor, spectrum / spectrum.norm(dim=1, keepdim=True))

    def solve(self, batches: Iterable[Batch], *, scale: float, with_energies: bool, with_forces: bool) -> list[str]:
        """References from the environments of the batches, weights from their labels."""
        refuse_missing_library()  # before the work
        exact = self.options.build(self.elements).double()
        num_references = exact.choose_references(batch.graph for batch in batches)
        equations = Equations(exact.whitening(num_references))
        for batch in batches:
            if with_energies:
                equations.add(*exact.energy_rows(batch, scale=scale))
            if with_forces:
                equations.add(*exact.force_rows(batch, scale=scale))
        with torch.no_grad():
            exact.weights.copy_(torch.as_tensor(equations.solution()).view_as(exact.weights))
            exact.offsets.copy_(exact.weights.sum(dim=1))
        self.load_state_dict(exact.state_dict())
        counts = zip(self.elements, num_references, strict=True)
        return [
            "references: " + ", ".join(f"{chemical_symbols[element]} {count}" for element, count in counts),
            f"{equations.whitening.shape[1]} unknowns from {equations.num_rows:,} equations",
        ]

    @torch.no_grad()
    def choose_references(self, graphs: Iterable[AtomicGraph]) -> list[int]:
        """Take environments far apart from each other as references; how many there are of each element."""
        candidates = [Candidates() for _ in self.elements]
        for graph in graphs:
            descriptors = self.described(graph)
            for element, found in zip(self.elements, candidates, strict=True):
                found.add(descriptors[graph.atomic_numbers == element])
        counts = []
        self.references.zero_()
        for rows, centre, found in zip(self.references, self.centres, candidates, strict=True):
            chosen = found.rows[farthest_points(found.rows, len(rows))]
            counts.append(len(chosen))
            centre.copy_(chosen.mean(dim=0))
            rows[: len(chosen)] = chosen - centre
        return counts

    def whitening(self, num_references: Sequence[int]) -> Floats:
        """K^(-1/2) between the references, (Z R, M): columns of kernels times it are unknowns of equal standing."""
        blocks = []
        for references, centre, count in zip(self.references.numpy(), self.centres.numpy(), num_references, strict=True):
            rows = references[:count] + centre
            eigenvalues, vectors = np.linalg.eigh((rows @ rows.T) ** self.options.zeta)
            kept = eigenvalues > SMALLEST_EIGENVALUE * eigenvalues[-1]
            without_weight = np.zeros((len(references) - count, int(kept.sum())))
            blocks.append(np.concatenate([vectors[:, kept] / np.sqrt(eigenvalues[kept]), without_weight]))
        return cast(Floats, block_diag(*blocks))

    @torch.no_grad()
    def energy_rows(self, batch: Batch, *, scale: float) -> tuple[Floats, Floats]:
        """The equations of the energies, (S, Z R) and (S,), each divided by the error that it may have.

        A structure of weight w counts as one whose errors may be larger by 1/sqrt(w).
        """
        graph, energy = batch.graph, batch.labels.energy
        num_atoms = torch.bincount(graph.structure_index, minlength=graph.num_structures)
        error = self.options.energy_regularization * num_atoms.double().sqrt()
        rows, known = scale * self._columns(1.0 + self.similarities(graph), graph), energy.isfinite()
        factor = batch.weight.double().sqrt() / error
        return (rows * factor[:, None])[known].numpy(), (energy * factor)[known].numpy()

    def force_rows(self, batch: Batch, *, scale: float) -> tuple[Floats, Floats]:
        """The equations of the components of forces that have labels, likewise."""
        graph, forces = batch.graph, batch.labels.forces
        place = torch.arange(graph.num_atoms) - graph.first_atom[graph.structure_index]  # (N,) of each atom in its structure
        rows, targets = [], []
        for moved, axis, slope in self._slopes(graph, place):
            atoms = torch.nonzero(moved & forces[:, axis].isfinite())[:, 0]
            structures = graph.structure_index[atoms]
            factor = batch.weight.double().sqrt()[structures]
            rows.append(-scale * factor[:, None] * self._columns(slope, graph)[structures])
            targets.append(factor * forces[atoms, axis])
        error = self.options.forces_regularization
        return torch.cat(rows).numpy() / error, torch.cat(targets).numpy() / error

    def _slopes(self, graph: AtomicGraph, place: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """dk/dx for one atom of each structure at a time: which atoms (N,), the axis, the slopes (N, R).

        A derivative along a direction is the derivative of a gradient, which is linear in what it is multiplied with.
        """
        vectors = graph.edge_vectors.detach().requires_grad_()
        similarities = self.similarities(replace(graph, edge_vectors=vectors))
        factors = torch.zeros_like(similarities, requires_grad=True)
        (gradient,) = torch.autograd.grad(similarities, vectors, factors, create_graph=True)  # (E, 3)
        for number in range(int(place.max()) + 1):
            moved = place == number
            direction = moved[graph.senders].to(vectors.dtype) - moved[graph.receivers].to(vectors.dtype)  # (E,)
            for axis in range(3):
                along = direction[:, None] * torch.eye(3, dtype=vectors.dtype)[axis]
                (slope,) = torch.autograd.grad(gradient, factors, along, retain_graph=True)
                yield moved, axis, slope

    def _columns(self, per_atom: Tensor, graph: AtomicGraph) -> Tensor:
        """Sums over the atoms of each element of each structure, (N, R) -> (S, Z R)."""
        return sum_over_atoms(self._one_hot(graph)[:, :, None] * per_atom[:, None, :], graph).flatten(1)

    def _one_hot(self, graph: AtomicGraph) -> Tensor:
        return (graph.atomic_numbers[:, None] == self.numbers).to(graph.edge_vectors.dtype)  # (N, Z)


class Candidates:
    """Rows to choose from: all of them, or every second, fourth .. one, so that they do not become too many."""

    def __init__(self) -> None:
        self.rows, self._step, self._seen = torch.empty(0, 0), 1, 0

    def add(self, rows: Tensor) -> None:
        """More rows, (N, F)."""
        first, self._seen = -self._seen % self._step, self._seen + len(rows)
        taken = rows[first :: self._step]
        self.rows = torch.cat([self.rows, taken]) if len(self.rows) else taken
        while len(self.rows) > MOST_CANDIDATES:
            self.rows, self._step = self.rows[::2], 2 * self._step


def farthest_points(rows: Tensor, num: int) -> list[int]:
    """Rows of length 1 that are each as far as can be from those before it, at most `num`; the first is the first."""
    chosen = [0]
    distance = 2.0 - 2.0 * (rows @ rows[0])  # (N,) squared, to the nearest that is chosen
    while len(chosen) < min(num, len(rows)):
        farthest = int(distance.argmax())
        if distance[farthest] < SAME:
            break
        chosen.append(farthest)
        distance = torch.minimum(distance, 2.0 - 2.0 * (rows @ rows[farthest]))
    return chosen


class Equations:
    """Linear equations for weights, gathered piece by piece: memory does not grow with their number."""

    def __init__(self, whitening: Floats) -> None:
        self.whitening, self.num_rows = whitening, 0
        self._pieces: list[Floats] = []  # (rows, M + 1), right-hand sides in the last column

    def add(self, rows: Floats, targets: Floats) -> None:
        """Equations with known errors of 1, (rows, Z R) and (rows,)."""
        self.num_rows += len(rows)
        self._pieces.append(np.column_stack([rows @ self.whitening, targets]))
        if sum(map(len, self._pieces)) > 4 * self.whitening.shape[1]:
            self._pieces = [self._reduced()]

    def _reduced(self) -> Floats:
        """A triangle with the same solution as all rows."""
        return cast(Floats, np.linalg.qr(np.concatenate(self._pieces), mode="r"))

    def solution(self) -> Floats:
        """The weights of a ridge regression whose penalty is the kernel between the references, (Z R,)."""
        reduced = self._reduced()
        from sklearn.linear_model import Ridge

        ridge = Ridge(alpha=1.0, fit_intercept=False, solver="svd").fit(reduced[:, :-1], reduced[:, -1])
        weights: Floats = self.whitening @ ridge.coef_
        return weights


def refuse_missing_library() -> None:
    """A `UserError` where the package that solves for the weights is not installed."""
    if find_spec("sklearn") is None:
        raise UserError(
            'potential.name: "soap_krr" is fitted with scikit-learn, which is not installed; pip install modelforge[krr]'
        )
