"""What all edges of an atom look like: weighted sums of their harmonics, channel by channel, and what edges read of it.

    environment:  G_iau = sum_j w_ijlu Y_ija           with a component a of degree l
    reading:      q_ijlu = sum_{a of l} Y_ija D_iau
    numbers:      y_ija = sum_u w_ijlu D_iau

They are the slopes of one form, sum w Y D, by each of its factors, so that the derivatives of one are the two others, and all
can be differentiated any number of times. Nothing of the size of edges times components times channels is ever written.

N atoms, E edges, L degrees (l_max + 1), B components, L^2, U channels.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.autograd import is_wanted
from modelforge.nn.dense_networks import Projected, scaled_product
from modelforge.nn.equivariant.joined_rows import joined, parted


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """Where the rows of edges and of the atoms that receive them stand; their numbers are the harmonics, in two orders."""

    num_atoms: int
    num_degrees: int  # L, or 1 where all degrees of an edge have one row of weights
    weights: Tensor  # (B E,) rows of weights (E L, U), component by component
    edges_of_atoms: Tensor  # (B N,) where those of a component of an atom begin
    owners: Tensor  # (B E,) rows of environments (B N, U) that they are summed to
    atoms: Tensor  # (E B,) rows of environments, edge by edge
    degrees: Tensor  # (E L,) where those of a degree of an edge begin


def edge_rows(graph: AtomicGraph, *, l_max: int, by_degree: bool = True) -> EdgeRows:
    """Those of a graph, for harmonics of degrees 0 to l_max and weights by degree, (E, L, U), or one for all, (E, 1, U)."""
    tables = torch.ops.modelforge.environment_rows(graph.receivers, graph.first_edge, l_max, by_degree)
    return EdgeRows(graph.num_atoms, l_max + 1 if by_degree else 1, *tables)


def environments(weights: Tensor, harmonics: Tensor, rows: EdgeRows) -> Tensor:
    """Weights (E, L, U), harmonics (E, B) -> (B, N, U), in the precision of the harmonics."""
    weights = weights.to(harmonics.dtype)
    if weights.shape[0] == 0:  # zeros that a loss can still be differentiated through
        return (weights.sum(dim=(0, 1)) + harmonics.sum()).expand(harmonics.shape[1], rows.num_atoms, -1)
    return cast(Tensor, _Environments.apply(weights, harmonics, rows))  # type: ignore[no-untyped-call]


def environments_of_projected(weights: Projected, harmonics: Tensor, rows: EdgeRows) -> Tensor:
    """Environments (B, N, U) of weights (E, L U) that are features (E, H) times a matrix, which is multiplied after the sum.

    `rows` are those of weights that are the same for all degrees.
    """
    num_components, num_degrees = harmonics.shape[1], math.isqrt(harmonics.shape[1])
    with torch.autocast(harmonics.device.type, enabled=False):
        sums = environments(weights.rows[:, None], harmonics, rows)  # (B, N, H)
        of_degrees = parted(sums, [2 * degree + 1 for degree in range(num_degrees)])
        matrices = parted(weights.matrix.T.to(sums.dtype), [weights.matrix.shape[1] // num_degrees] * num_degrees)  # (U, H)
        pairs = zip(of_degrees, matrices, strict=True)
        products = [scaled_product(part.flatten(0, 1), matrix.T, weights.factor) for part, matrix in pairs]
        return joined(products).view(num_components, rows.num_atoms, -1)


def readings(harmonics: Tensor, of_atoms: Tensor, rows: EdgeRows) -> Tensor:
    """Harmonics (E, B), features of the receivers (B, N, U) -> (E, L, U)."""
    if harmonics.shape[0] == 0:
        return (harmonics.sum() + of_atoms.sum(dim=(0, 1))).expand(0, rows.num_degrees, -1)
    return cast(Tensor, _Readings.apply(harmonics, of_atoms, rows))  # type: ignore[no-untyped-call]


class _Environments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weights: Tensor, harmonics: Tensor, rows: EdgeRows) -> Tensor:
        ctx.save_for_backward(weights, harmonics)
        ctx.rows = rows  # type: ignore[attr-defined]
        numbers = harmonics.T.reshape(-1)
        sums = _sums(weights.flatten(0, 1), rows.weights, rows.edges_of_atoms, numbers)
        return sums.view(harmonics.shape[1], -1, weights.shape[2])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (weights, harmonics), rows = ctx.saved_tensors, ctx.rows  # type: ignore[attr-defined]
        by_weights = readings(harmonics, gradients[0], rows) if is_wanted(ctx, 0) else None
        return by_weights, _numbers(weights, gradients[0], rows) if is_wanted(ctx, 1) else None, None


class _Readings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, harmonics: Tensor, of_atoms: Tensor, rows: EdgeRows) -> Tensor:
        ctx.save_for_backward(harmonics, of_atoms)
        ctx.rows = rows  # type: ignore[attr-defined]
        sums = _sums(of_atoms.flatten(0, 1), rows.atoms, rows.degrees, harmonics.reshape(-1))
        return sums.view(-1, rows.num_degrees, of_atoms.shape[2])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (harmonics, of_atoms), rows = ctx.saved_tensors, ctx.rows  # type: ignore[attr-defined]
        by_harmonics = _numbers(gradients[0], of_atoms, rows) if is_wanted(ctx, 0) else None
        return by_harmonics, environments(gradients[0], harmonics, rows) if is_wanted(ctx, 1) else None, None


def _numbers(weights: Tensor, of_atoms: Tensor, rows: EdgeRows) -> Tensor:
    """The slope by the harmonics; weights (E, L, U), features of the receivers (B, N, U) -> (E, B)."""
    return cast(Tensor, _Numbers.apply(weights, of_atoms, rows))  # type: ignore[no-untyped-call]


class _Numbers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weights: Tensor, of_atoms: Tensor, rows: EdgeRows) -> Tensor:
        ctx.save_for_backward(weights, of_atoms)
        ctx.rows = rows  # type: ignore[attr-defined]
        options = (rows.weights, rows.edges_of_atoms, rows.owners, 0)
        numbers: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            of_atoms.flatten(0, 1), weights.flatten(0, 1).contiguous(), *options
        )
        return numbers.view(of_atoms.shape[0], -1).T

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (weights, of_atoms), rows = ctx.saved_tensors, ctx.rows  # type: ignore[attr-defined]
        by_weights = readings(gradients[0], of_atoms, rows) if is_wanted(ctx, 0) else None
        return by_weights, environments(weights, gradients[0], rows) if is_wanted(ctx, 1) else None, None


def _sums(rows: Tensor, entries: Tensor, starts: Tensor, numbers: Tensor) -> Tensor:
    return functional.embedding_bag(entries, rows.contiguous(), starts, mode="sum", per_sample_weights=numbers)


# An operator, opaque to the compiler: many small steps, of which none is differentiated.

torch.library.define(
    "modelforge::environment_rows", "(Tensor receivers, Tensor first_edge, int l_max, bool by_degree) -> Tensor[]"
)


@torch.library.impl("modelforge::environment_rows", "CompositeExplicitAutograd")
def _environment_rows(receivers: Tensor, first_edge: Tensor, l_max: int, by_degree: bool) -> list[Tensor]:
    device, num_edges, num_atoms, num_components = receivers.device, len(receivers), len(first_edge), (l_max + 1) ** 2
    edges, components = torch.arange(num_edges, device=device), torch.arange(num_components, device=device)[:, None]
    widths = [2 * degree + 1 for degree in range(l_max + 1)] if by_degree else [num_components]
    degree = torch.tensor([degree for degree, width in enumerate(widths) for _ in range(width)], device=device)[:, None]
    first = torch.tensor(list(accumulate(widths, initial=0))[:-1], device=device)  # component of each degree
    owners = components * num_atoms + receivers  # (B, E)
    return [
        (edges * len(widths) + degree).flatten(),
        (components * num_edges + first_edge).flatten(),
        owners.flatten(),
        owners.T.flatten(),
        (edges[:, None] * num_components + first).flatten(),
    ]


@torch.library.register_fake("modelforge::environment_rows")  # type: ignore[untyped-decorator]
def _(receivers: Tensor, first_edge: Tensor, l_max: int, by_degree: bool) -> list[Tensor]:
    num_edges, num_atoms, num_components = receivers.shape[0], first_edge.shape[0], (l_max + 1) ** 2
    of_components, of_degrees = num_components * num_edges, (l_max + 1 if by_degree else 1) * num_edges
    sizes = (of_components, num_components * num_atoms, of_components, of_components, of_degrees)
    return [receivers.new_empty(size) for size in sizes]
