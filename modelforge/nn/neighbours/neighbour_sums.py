"""Sums over neighbours whose filters belong to pairs of atoms, and so are the same in both directions.

Such a sum is a symmetric operator, which is its own transpose, and its two derivatives are such a sum and a product: they can
be differentiated any number of times, and nothing of the size of the edges is kept.

N atoms, P pairs, F features; C components of a feature, which come in parts that share a filter, Q parts.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import sum_over_edges
from modelforge.nn.neighbours import native_sums
from modelforge.nn.neighbours.pairs import Pairs


def sum_over_neighbours(filters: Tensor, x: Tensor, pairs: Pairs, graph: AtomicGraph, *, parts: Sequence[int] = (1,)) -> Tensor:
    """sum_j f_ij x_j; (P, Q, F) and (N, C, F) -> (N, C, F), where `parts` are the numbers of components with one filter."""
    return cast(Tensor, _SumOverNeighbours.apply(filters, x, pairs, graph, parts))  # type: ignore[no-untyped-call]


def products_of_pairs(x: Tensor, y: Tensor, pairs: Pairs, graph: AtomicGraph, *, parts: Sequence[int] = (1,)) -> Tensor:
    """<x_i, y_j> + <x_j, y_i> of each part, the slope of <x, sum_j f_ij y_j> by f; 2 x (N, C, F) -> (P, Q, F)."""
    return cast(Tensor, _ProductsOfPairs.apply(x, y, pairs, graph, parts))  # type: ignore[no-untyped-call]


class _SumOverNeighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, filters: Tensor, x: Tensor, pairs: Pairs, graph: AtomicGraph, parts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(filters, x)
        ctx.edges = (pairs, graph, parts)  # type: ignore[attr-defined]
        if native_sums.is_native(x):
            return native_sums.sum_over_neighbours(filters, x, pairs, graph, parts)
        sums = []
        for part, weights in zip(torch.split(x, list(parts), dim=1), filters.unbind(dim=1), strict=True):
            weights_of_edges = weights.index_select(0, pairs.of_edge)[:, None]  # (E, 1, F)
            sums.append(sum_over_edges(part.index_select(0, graph.senders).mul_(weights_of_edges), graph))
        return torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        filters, x = ctx.saved_tensors  # type: ignore[attr-defined]
        pairs, graph, parts = ctx.edges  # type: ignore[attr-defined]
        by_filters = products_of_pairs(gradients[0], x, pairs, graph, parts=parts)
        return by_filters, sum_over_neighbours(filters, gradients[0], pairs, graph, parts=parts), None, None, None


class _ProductsOfPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor, pairs: Pairs, graph: AtomicGraph, parts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.edges = (pairs, graph, parts)  # type: ignore[attr-defined]
        if native_sums.is_native(x):
            return native_sums.products_of_pairs(x, y, pairs, graph, parts)
        i, j = graph.receivers[pairs.first], graph.senders[pairs.first]
        products = []
        for a, b in zip(torch.split(x, list(parts), dim=1), torch.split(y, list(parts), dim=1), strict=True):
            one_way = a.index_select(0, i).mul_(b.index_select(0, j))  # (P, ., F)
            other_way = a.index_select(0, j).mul_(b.index_select(0, i))
            products.append(one_way.add_(other_way).sum(dim=1, keepdim=True))
        return torch.cat(products, dim=1) if len(products) > 1 else products[0]

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, y = ctx.saved_tensors  # type: ignore[attr-defined]
        pairs, graph, parts = ctx.edges  # type: ignore[attr-defined]
        by_x, by_y = (sum_over_neighbours(gradients[0], other, pairs, graph, parts=parts) for other in (y, x))
        return by_x, by_y, None, None, None
