"""SOAP: the neighbourhood of an atom as a smooth density, expanded, and squared so that rotations change nothing.

    rho_Z(r) = sum_j exp(-|r - r_ij|^2 / (2 sigma^2)) f_c(d_ij),  j the neighbours of element Z, and itself with f_c = 1
    c_Znlm   = int g_nl(r) Y_lm(r) rho_Z(r) dr = sum_j F_nl(d_ij) Y_lm(u_ij) f_c(d_ij)
    p_Z1n1Z2n2l = pi sqrt(8 / (2l + 1)) sum_m c_Z1n1lm c_Z2n2lm

Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013). Radial functions g and norms are those of DScribe 2.1. What a Gaussian
at distance d gives, F_nl(d), is in `soap_radial.py`. N atoms, E edges, Z elements, n radial functions, K terms of their series.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from modelforge.atoms.graph import ABSENT, AtomicGraph
from modelforge.atoms.sums import elements_of_edges, sum_over_segments
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.descriptors.soap_radial import SOAPBasisName, radial_series
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics

CLUSTERS_PER_ELEMENT, NUM_ELEMENTS = 3, 4  # of random structures; elements of each
NUM_SITES, SPACING, SHAKE = 4, 1.6, 0.6  # along each axis, the rest in angstrom


class SOAP(nn.Module):
    """The power spectrum of each atom."""

    even: Tensor  # (K, n * degrees 0, 2, ..) of cos(k pi d/D)
    odd: Tensor  # (K, n * degrees 1, 3, ..) of sin(k pi d/D)
    centre: Tensor  # (n,) what an atom gives to its own density
    column: Tensor  # (119,) place of each element
    upper: Tensor  # (P,) places of pairs of channels (Z1 n1) <= (Z2 n2) in their square matrix
    lower: Tensor  # (P,) the same with both exchanged
    pair: Tensor  # (Z n Z n,) the pair of each place of the matrix
    shares: Tensor  # (P,) what each of both places has of a derivative

    def __init__(
        self,
        elements: Sequence[int],
        *,
        basis_cutoff: float,
        num_radial: int,
        l_max: int,
        gaussian_width: float,
        radial_basis: SOAPBasisName,
        cutoff: float | None = None,
    ) -> None:
        """`cutoff`: where the weight of neighbours, a cosine, comes to zero; without it all edges have the weight 1.

        Elements stand in the order of their atomic numbers, whatever their order here.
        """
        super().__init__()
        self.elements, self.cutoff = tuple(sorted(elements)), cutoff
        self.num_radial, self.l_max = num_radial, l_max
        self.harmonics = SphericalHarmonics(l_max, normalization="integral")
        series = radial_series(
            radial_basis, num_radial=num_radial, l_max=l_max, cutoff=basis_cutoff, gaussian_width=gaussian_width
        )
        self.length = series.length
        # Factors of the power spectrum: half of each goes to each of the two that are multiplied.
        factors = np.sqrt(np.pi * np.sqrt(8.0 / (2.0 * np.arange(l_max + 1) + 1.0)))  # (L,)
        table = torch.as_tensor(series.coefficients * factors[:, None])  # (K, L, n)
        self.register_buffer("even", table[:, 0::2].flatten(1), persistent=False)
        self.register_buffer("odd", table[:, 1::2].flatten(1), persistent=False)
        centre = torch.as_tensor(series.at_zero * factors[0] / np.sqrt(4.0 * np.pi))
        self.register_buffer("centre", centre, persistent=False)
        column = torch.zeros(max(elements) + 1, dtype=torch.long)
        column[torch.as_tensor(self.elements)] = torch.arange(len(elements))
        self.register_buffer("column", column, persistent=False)
        num_channels = len(elements) * num_radial
        first, second = torch.triu_indices(num_channels, num_channels)
        pair = torch.zeros(num_channels, num_channels, dtype=torch.long)
        pair[first, second] = pair[second, first] = torch.arange(len(first))
        self.register_buffer("upper", first * num_channels + second, persistent=False)
        self.register_buffer("lower", second * num_channels + first, persistent=False)
        self.register_buffer("pair", pair.flatten(), persistent=False)
        self.register_buffer("shares", torch.where(first == second, 1.0, 0.5), persistent=False)

    @property
    def num_features(self) -> int:
        """Length of a descriptor: (l_max + 1) pairs of channels; a channel is an element with a radial function."""
        return (self.l_max + 1) * self.upper.shape[0]

    def forward(self, graph: AtomicGraph) -> Tensor:
        """(N, l_max + 1, P), pairs of channels in the order of an upper triangle, channels element by element."""
        with torch.autocast(graph.edge_vectors.device.type, enabled=False):
            spectrum = [block @ block.transpose(1, 2) for block in self._expansion(graph)]  # L x (N, Zn, Zn)
            return _upper_triangle(torch.stack(spectrum, dim=1).flatten(2), self.upper, self.lower, self.pair, self.shares)

    def feature_index(self) -> Tensor:
        """Z1, n1, Z2, n2, l of each feature, (F, 5), in the order of the flattened descriptor."""
        size = len(self.elements) * self.num_radial
        numbers, pairs = torch.tensor(self.elements), len(self.upper)
        columns = []
        for channel in (self.upper // size, self.upper % size):
            columns += [numbers[channel // self.num_radial], channel % self.num_radial]
        degrees = torch.arange(self.l_max + 1).repeat_interleave(pairs)
        return torch.stack([*(column.repeat(self.l_max + 1) for column in columns), degrees], dim=1)

    def _expansion(self, graph: AtomicGraph) -> list[Tensor]:
        """Coefficients of each degree l, L x (N, Z n, 2l+1)."""
        num_elements, degrees = len(self.elements), range(self.l_max + 1)
        own = self.column[graph.atomic_numbers]  # (N,)
        per_edge = self._of_edges(graph.edge_vectors)  # (E, n (l_max + 1)^2)
        by_element = elements_of_edges(graph, self.column, num_elements=num_elements)
        sums = sum_over_segments(per_edge, by_element).view(graph.num_atoms, num_elements, -1)  # (N, Z, n (l_max + 1)^2)
        blocks = torch.split(sums, [self.num_radial * (2 * degree + 1) for degree in degrees], dim=2)
        is_own = own[:, None] == torch.arange(num_elements, device=own.device)  # (N, Z)
        centre = is_own.to(sums.dtype)[:, :, None] * self.centre.to(sums.dtype)  # (N, Z, n)
        expansion = [
            block.reshape(graph.num_atoms, num_elements * self.num_radial, 2 * degree + 1)
            for degree, block in zip(degrees, blocks, strict=True)
        ]
        return [expansion[0] + centre.flatten(1)[:, :, None], *expansion[1:]]

    def _of_edges(self, vectors: Tensor) -> Tensor:
        """What each neighbour gives to the density, degree by degree, (E, n (l_max + 1)^2)."""
        distance = vectors.norm(dim=1)  # (E,)
        harmonics = self.harmonics(vectors / distance[:, None])  # (E, (l_max + 1)^2)
        if self.cutoff is not None:
            harmonics = harmonics * cosine_cutoff(distance, self.cutoff)[:, None]
        by_degree = torch.split(harmonics, [2 * degree + 1 for degree in range(self.l_max + 1)], dim=1)
        radial = self._radial(distance)
        return torch.cat([(r[:, :, None] * y[:, None, :]).flatten(1) for r, y in zip(radial, by_degree, strict=True)], dim=1)

    def _radial(self, distance: Tensor) -> list[Tensor]:
        """F_nl(d) of each degree, L x (E, n)."""
        steps = torch.arange(self.even.shape[0], device=distance.device, dtype=distance.dtype) * (math.pi / self.length)
        phases = distance[:, None] * steps  # (E, K)
        even = torch.split(phases.cos() @ self.even.to(distance.dtype), self.num_radial, dim=1)
        if self.l_max == 0:
            return list(even)
        odd = torch.split(phases.sin() @ self.odd.to(distance.dtype), self.num_radial, dim=1)
        return [(odd if degree % 2 else even)[degree // 2] for degree in range(self.l_max + 1)]


# The square matrices are symmetric: half of each suffices, and both directions of that are selections.


def _upper_triangle(square: Tensor, upper: Tensor, lower: Tensor, pair: Tensor, shares: Tensor) -> Tensor:
    """The mean of both halves, (N, L, C C) -> (N, L, P)."""
    return cast(Tensor, _UpperTriangle.apply(square, upper, lower, pair, shares))  # type: ignore[no-untyped-call]


class _UpperTriangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, square: Tensor, *places: Tensor) -> Tensor:
        ctx.save_for_backward(*places)
        upper, lower, _, _ = places
        return 0.5 * (square.index_select(2, upper) + square.index_select(2, lower))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        mirrored = _Mirrored.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[attr-defined, no-untyped-call]
        return mirrored, None, None, None, None


class _Mirrored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, triangle: Tensor, *places: Tensor) -> Tensor:
        ctx.save_for_backward(*places)
        _, _, pair, shares = places
        return (triangle * shares.to(triangle.dtype)).index_select(2, pair)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        triangle = _UpperTriangle.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[attr-defined, no-untyped-call]
        return triangle, None, None, None, None


def random_structures(elements: Sequence[int], *, cutoff: float) -> AtomicGraph:
    """Clusters of random atoms, as dense as in molecules and of at most four elements each; always the same, in float64.

    They come without what a descriptor does not need.
    """
    generator = torch.Generator().manual_seed(0)
    numbers, edge_index, vectors, num_atoms = [], [], [], 0
    for cluster in range(CLUSTERS_PER_ELEMENT * len(elements)):
        positions = _cluster(generator)
        difference = positions - positions[:, None]  # (A, A, 3) from the first to the second
        distance = difference.norm(dim=2)
        edges = torch.nonzero((distance < cutoff) & (distance > 0)).T  # (2, E)
        others = torch.randperm(len(elements), generator=generator)[: NUM_ELEMENTS - 1]
        chosen = torch.tensor(elements)[torch.cat([torch.tensor([cluster % len(elements)]), others])]
        numbers.append(chosen[torch.randint(len(chosen), (len(positions),), generator=generator)])
        vectors.append(difference[edges[0], edges[1]])
        edge_index.append(edges + num_atoms)
        num_atoms += len(positions)
    rest = [ABSENT] * (len(fields(AtomicGraph)) - 3)
    return AtomicGraph(torch.cat(numbers), torch.cat(edge_index, dim=1), torch.cat(vectors), *rest)


def _cluster(generator: torch.Generator) -> Tensor:
    """Atoms on half of the sites of a shaken lattice, (A, 3)."""
    site = torch.arange(NUM_SITES, dtype=torch.float64) * SPACING
    lattice = torch.cartesian_prod(site, site, site)
    is_taken = torch.rand(len(lattice), generator=generator) < 0.5
    shifts = torch.rand(lattice.shape, generator=generator, dtype=torch.float64) - 0.5
    return (lattice + SHAKE * shifts)[is_taken]
