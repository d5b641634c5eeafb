"""AIMNet2: atoms in molecules with charges (Anstine, Zubatyuk, Isayev, Chem. Sci. 16, 10228, 2025).

Each atom has features a (A, K), first those of its element, a charge q, and what it sees of its neighbours:

    conv x:   S = sum_j x_j g(d_ij),  V = sum_j x_j g(d_ij) u_ij,  [S, |sum_k W_kh V_k|^2],   g_k = exp(-eta (d - s_k)^2) f_c
    pass:     (dq, f, da) = MLP([a, conv a, q, conv q]);   a <- a + da;   q <- p + f^2/(sum f^2 + 1e-6) (Q - sum p),  p = q + dq
    last:     features = MLP([a, conv a, q, conv q]);   energy = MLP(features)

Charges are shared out over each structure, whatever its size: they add up to its total charge Q. In the first pass there are
none yet. It reproduces aimnet's weights. N atoms, P pairs, A features, K radial functions, H vectors, C channels: A, or A + 1
with the charges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import sum_over_edges
from modelforge.nn.cutoffs import cosine_cutoff
from modelforge.nn.layers import ElementEmbedding, dense, without_autocast
from modelforge.nn.neighbours.pairs import Pairs, mean_of_pair, pairs_of
from modelforge.potentials.heads import conserved
from modelforge.potentials.potential import AtomicOutputs, Potential, PotentialFields
from modelforge.section import Count, Length, SectionError

CHARGE_EPSILON = 1e-6  # beside the sum of the squares f^2, e.g. of an ion alone whose f is 0
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]


class AIMNet2Section(PotentialFields):
    """AIMNet2: features and partial charges that act on each other over a few passes; knows ions by their total charge."""

    name: Literal["aimnet2"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other, other than by the Coulomb energy and by sharing the total charge."""
    partial_charges: Literal[True] = True
    """Charges are a part of the network."""
    num_features: Count = 16
    """Features of an atom for each radial function."""
    num_radial: Count = 16
    """Radial basis functions (Gaussians)."""
    first_radial: Length = 0.8
    """Centre of the first radial function; the others follow evenly up to the cutoff."""
    num_vectors: Count = 12
    """Mixtures of the radial functions of each feature, whose vectors to the neighbours are seen by their lengths."""
    hidden_widths: Annotated[tuple[Widths, ...], Field(min_length=2)] = ((512, 380), (512, 380), (512, 380, 380))
    """Widths of the hidden layers in each pass: as many passes as lists."""
    num_outputs: Count = 256
    """Features that the last pass gives for the energy and other heads."""
    readout_widths: Widths = (128, 128)
    """Widths of the hidden layers from these features to the energy."""

    @model_validator(mode="after")
    def _radial_functions_are_within_the_cutoff(self) -> "AIMNet2Section":
        if self.first_radial >= self.cutoff:
            raise SectionError(("first_radial", f"must be below the cutoff of {self.cutoff:g} (got {self.first_radial:g})"))
        return self

    def build(self, elements: Sequence[int]) -> "AIMNet2":
        """A network with random weights for these elements."""
        return AIMNet2(self, elements)


class Network(nn.Module):
    """Dense layers with GELU between them; the last one is in full precision also under autocast."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [(dense(num_in, num_out), nn.GELU()) for num_in, num_out in pairwise(widths[:-1])]
        self.hidden = nn.Sequential(*(module for layer in layers for module in layer))
        self.output = dense(*widths[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return without_autocast(self.output, self.hidden(x), dtype=x.dtype)


class AIMNet2(Potential):
    """The network of the module's docstring."""

    centres: Tensor
    steepness: Tensor

    def __init__(self, section: AIMNet2Section, elements: Sequence[int]) -> None:
        super().__init__(section, elements=elements, num_scalars=section.num_outputs, has_charges=True)
        num_features, num_radial, num_vectors = section.num_features, section.num_radial, section.num_vectors
        self.shape = (num_features, num_radial)
        all_features = num_features * num_radial
        self.embedding = ElementEmbedding(elements, all_features, charge=section.charge_embedding, spin=section.spin_embedding)
        self.mixing = nn.Parameter(torch.randn(num_features + 1, num_radial, num_vectors) / num_radial**0.5)  # (A + 1, K, H)
        of_features, of_charges = all_features + num_features * (num_radial + num_vectors), 1 + num_radial + num_vectors
        widths_in = (of_features, *(of_features + of_charges for _ in section.hidden_widths[1:]))
        widths_out = (*(2 + all_features for _ in section.hidden_widths[1:]), section.num_outputs)
        widths = zip(widths_in, section.hidden_widths, widths_out, strict=True)
        self.networks = nn.ModuleList(Network(num_in, *hidden, num_out) for num_in, hidden, num_out in widths)
        self.readout = Network(section.num_outputs, *section.readout_widths, 1)
        centres = torch.linspace(section.first_radial, section.cutoff, num_radial + 1, dtype=torch.float64)[:-1]
        self.register_buffer("centres", centres.to(torch.get_default_dtype()))
        steepness = (num_radial / (section.cutoff - section.first_radial)) ** 2
        self.register_buffer("steepness", torch.full_like(self.centres, steepness))

    def forward(self, graph: AtomicGraph) -> AtomicOutputs:
        """Atomic energies, features and charges."""
        neighbours = neighbours_of(graph)
        radial = self._radial(neighbours)
        features = self.embedding(graph)  # (N, A K)
        charges = torch.zeros_like(features[:, :0])  # (N, 0): none before the first pass
        changes = self.networks[0](self._seen(features, charges, radial, neighbours))
        for network in self.networks[1:]:
            features, charges = updated(features, charges, changes, graph)
            changes = functional.gelu(network(self._seen(features, charges, radial, neighbours)))
        energies = without_autocast(self.readout, changes, dtype=features.dtype)[:, 0]
        return AtomicOutputs.of(energies, changes, charges=charges)

    def _radial(self, neighbours: "Neighbours") -> Tensor:
        """g and g u, for the first edge of each pair, (P, 4, K)."""
        vectors = mean_of_pair(neighbours.signs * neighbours.graph.edge_vectors, neighbours.pairs)  # (P, 3)
        distance = vectors.norm(dim=1, keepdim=True)  # (P, 1)
        radial = torch.exp(-self.steepness * (distance - self.centres) ** 2) * cosine_cutoff(distance, self.cutoff)  # (P, K)
        factors = torch.cat([torch.ones_like(distance), vectors / distance], dim=1)  # (P, 4)
        return factors[:, :, None] * radial[:, None]

    def _seen(self, features: Tensor, charges: Tensor, radial: Tensor, neighbours: "Neighbours") -> Tensor:
        """What a pass knows of each atom: its features and what it sees of its neighbours', the same of charges; (N, in)."""
        of_radial = charges[:, :, None].expand(-1, -1, self.shape[1])  # the same for each radial function
        x = torch.cat([torch.unflatten(features, 1, self.shape), of_radial], dim=1)  # (N, C, K)
        sums = sum_over_neighbours(radial, x, neighbours)  # (4, N, C, K)
        seen = [torch.split(part, [self.shape[0], charges.shape[1]], dim=1) for part in (sums[0], self._lengths(sums[1:]))]
        of_features, of_charges = ([part.flatten(1) for part in parts] for parts in zip(*seen, strict=True))
        return torch.cat([features, *of_features, charges, *of_charges], dim=1)

    def _lengths(self, vectors: Tensor) -> Tensor:
        """Squared lengths of the mixed vectors, (3, N, C, K) -> (N, C, H)."""
        by_channel = vectors.flatten(0, 1).transpose(0, 1)  # (C, 3N, K)
        with torch.autocast(vectors.device.type, enabled=False):
            mixed = torch.bmm(by_channel, self.mixing[: by_channel.shape[0]])  # (C, 3N, H)
        return torch.unflatten(mixed, 1, (3, -1)).square().sum(dim=1).transpose(0, 1)


def updated(features: Tensor, charges: Tensor, changes: Tensor, graph: AtomicGraph) -> tuple[Tensor, Tensor]:
    """Features (N, A K) and charges (N, 1) after a pass; what is missing in the charges goes where f^2 is large."""
    of_charges, f, of_features = changes.tensor_split((1, 2), dim=1)
    charges = of_charges if charges.shape[1] == 0 else charges + of_charges
    shared = conserved(charges[:, 0], graph, weights=f[:, 0].square(), epsilon=CHARGE_EPSILON)
    return features + of_features, shared[:, None]


# Sums over neighbours. What depends on the distance is the same for both edges of a pair, directions are opposite: so all is
# kept by pairs, and the three functions below are each other's derivatives.


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Edges, their pairs, and which of its two edges is the first of a pair."""

    graph: AtomicGraph
    pairs: Pairs
    signs: Tensor  # (E, 1) 1 for the first edge of a pair, -1 for the other one

    def radial_of_edges(self, radial: Tensor) -> list[Tensor]:
        """By component, (P, 4, K) -> 4 x (E, 1, K); three components turn their sign with the edge."""
        scalar, *vector = torch.split(radial.index_select(0, self.pairs.of_edge), 1, dim=1)
        return [scalar, *(component * self.signs[:, :, None] for component in vector)]


def neighbours_of(graph: AtomicGraph) -> Neighbours:
    """The neighbours of the atoms of a graph."""
    edges = torch.arange(graph.num_edges, device=graph.reverse_edge.device)
    signs = torch.where(edges < graph.reverse_edge, 1.0, -1.0).to(graph.edge_vectors.dtype)
    return Neighbours(graph, pairs_of(graph.reverse_edge), signs[:, None])


def sum_over_neighbours(radial: Tensor, x: Tensor, neighbours: Neighbours) -> Tensor:
    """sum_j g_ij x_j, (P, 4, K) and (N, C, K) -> (4, N, C, K)."""
    return cast(Tensor, _SumOverNeighbours.apply(radial, x, neighbours))  # type: ignore[no-untyped-call]


def sum_back(radial: Tensor, y: Tensor, neighbours: Neighbours) -> Tensor:
    """sum_j <g_ji, y_j> over components, the transpose of the above, (P, 4, K) and (4, N, C, K) -> (N, C, K)."""
    return cast(Tensor, _SumBack.apply(radial, y, neighbours))  # type: ignore[no-untyped-call]


def products_of_pairs(y: Tensor, x: Tensor, neighbours: Neighbours) -> Tensor:
    """sum_c y_i x_j of both edges, the slope of <y, sum_j g_ij x_j> by g, (4, N, C, K) and (N, C, K) -> (P, 4, K)."""
    return cast(Tensor, _ProductsOfPairs.apply(y, x, neighbours))  # type: ignore[no-untyped-call]


class _SumOverNeighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, radial: Tensor, x: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.save_for_backward(radial, x)
        ctx.neighbours = neighbours  # type: ignore[attr-defined]
        graph = neighbours.graph
        of_senders = x.index_select(0, graph.senders)  # (E, C, K)
        return torch.stack([sum_over_edges(of_senders * g, graph) for g in neighbours.radial_of_edges(radial)])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        radial, x = ctx.saved_tensors  # type: ignore[attr-defined]
        neighbours = ctx.neighbours  # type: ignore[attr-defined]
        return products_of_pairs(gradients[0], x, neighbours), sum_back(radial, gradients[0], neighbours), None


class _SumBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, radial: Tensor, y: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.save_for_backward(radial, y)
        ctx.neighbours = neighbours  # type: ignore[attr-defined]
        graph = neighbours.graph
        scalar, *vector = neighbours.radial_of_edges(radial)  # of the edges that an atom receives: those sent are opposite
        total = y[0].index_select(0, graph.senders) * scalar  # (E, C, K)
        for component, g in zip(y[1:], vector, strict=True):
            total = total.addcmul(component.index_select(0, graph.senders), g, value=-1.0)
        return sum_over_edges(total, graph)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        radial, y = ctx.saved_tensors  # type: ignore[attr-defined]
        neighbours = ctx.neighbours  # type: ignore[attr-defined]
        return products_of_pairs(y, gradients[0], neighbours), sum_over_neighbours(radial, gradients[0], neighbours), None


class _ProductsOfPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, x: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.neighbours = neighbours  # type: ignore[attr-defined]
        i, j = (atoms[neighbours.pairs.first] for atoms in neighbours.graph.edge_index)
        of_i, of_j = x.index_select(0, i), x.index_select(0, j)  # (P, C, K)
        sums = []
        for place, component in enumerate(y):
            product = component.index_select(0, i) * of_j
            product = product.addcmul(component.index_select(0, j), of_i, value=-1.0 if place else 1.0)
            sums.append(product.sum(dim=1))
        return torch.stack(sums, dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        y, x = ctx.saved_tensors  # type: ignore[attr-defined]
        neighbours = ctx.neighbours  # type: ignore[attr-defined]
        return sum_over_neighbours(gradients[0], x, neighbours), sum_back(gradients[0], y, neighbours), None
