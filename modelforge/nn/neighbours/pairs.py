"""Unordered pairs of atoms: what depends on a distance alone is the same for an edge and its reverse, and is computed once.

Both functions are linear and each is the other's derivative, so they can be differentiated any number of times, without
atomic additions. E edges, P = E/2 pairs.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which edges are the two directions of one pair."""

    of_edge: Tensor  # (E,) the pair of each edge
    first: Tensor  # (P,) an edge of each pair
    second: Tensor  # (P,) its reverse


def pairs_of(reverse_edge: Tensor) -> Pairs:
    """The pairs of a list of edges, given the reverse of each edge (E,); their number is never read back."""
    edges = torch.arange(reverse_edge.shape[0], device=reverse_edge.device)
    num_pairs_so_far = (edges < reverse_edge).cumsum(dim=0)  # (E,)
    first = torch.searchsorted(num_pairs_so_far, edges[: edges.shape[0] // 2] + 1)  # (P,)
    return Pairs(num_pairs_so_far[torch.minimum(edges, reverse_edge)] - 1, first, reverse_edge[first])


def at_both_edges(per_pair: Tensor, pairs: Pairs) -> Tensor:
    """The value of each edge's pair, (P, ...) -> (E, ...)."""
    return cast(Tensor, _AtEdges.apply(per_pair, pairs.of_edge, pairs.first, pairs.second))  # type: ignore[no-untyped-call]


def mean_of_pair(per_edge: Tensor, pairs: Pairs) -> Tensor:
    """The mean over the two edges of each pair, (E, ...) -> (P, ...); for what is the same for both, a selection."""
    both = _SumOfPair.apply(per_edge, pairs.of_edge, pairs.first, pairs.second)  # type: ignore[no-untyped-call]
    return cast(Tensor, 0.5 * both)


class _AtEdges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, per_pair: Tensor, of_edge: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(of_edge, first, second)
        return per_pair.index_select(0, of_edge)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = _SumOfPair.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[attr-defined, no-untyped-call]
        return gradient, None, None, None


class _SumOfPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, per_edge: Tensor, of_edge: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(of_edge, first, second)
        return per_edge.index_select(0, first) + per_edge.index_select(0, second)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = _AtEdges.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[attr-defined, no-untyped-call]
        return gradient, None, None, None
