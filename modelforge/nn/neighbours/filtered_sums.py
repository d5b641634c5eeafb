"""Sums over neighbours with filters of pairs, component after component: the messages of scalars, and of vectors as they are.

The sum is linear in the filters f and in the rows x, and so is each of its derivatives:

    sum:       S(f, x)_i = sum_j f_ij x_j
    slopes:    by f:  <g_i, x_j> + <g_j, x_i>;   by x:  S(f, g)                     with g = the gradient of the sum

What the slopes are differentiated by are such sums and slopes again, so both can be differentiated any number of times, and
nothing of the size of the edges is kept. N atoms, E edges, P pairs, F features, C components.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.nn.neighbours.neighbourhood import Neighbourhood, of_edges, of_pairs, received


def filtered_sum(filters: Tensor, x: Tensor, near: Neighbourhood) -> Tensor:
    """sum_j f_ij x_j, (P, F) and (C, N, F) -> (C, N, F)."""
    return cast(Tensor, _Sum.apply(near, filters, x, of_edges(filters, near)))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """Of several terms, each of filters, rows, and the filters again as edges see them, whose derivative is not theirs."""

    @staticmethod
    def forward(ctx: FunctionCtx, near: Neighbourhood, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(*terms)
        ctx.near = near  # type: ignore[attr-defined]
        rows, weights = terms[1::3], terms[2::3]
        sums = [received(weighted_rows(weights, components, near), near) for components in zip(*rows, strict=True)]
        return torch.stack(sums)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        terms, near = ctx.saved_tensors, ctx.near  # type: ignore[attr-defined]
        slopes: list[Tensor | None] = [None]
        for filters, x, weights in zip(terms[::3], terms[1::3], terms[2::3], strict=True):
            slopes += [*_Slopes.apply(near, filters, x, gradients[0], weights), None]  # type: ignore[no-untyped-call]
        return tuple(slopes)


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, near: Neighbourhood, filters: Tensor, x: Tensor, gradient: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(filters, x, gradient, weights)
        ctx.near = near  # type: ignore[attr-defined]
        products, by_x = None, []
        for rows, slope in zip(x.unbind(), gradient.unbind(), strict=True):
            own, sent = rows.index_select(0, near.receivers), slope.index_select(0, near.senders)  # (E, F)
            products = own.mul_(sent) if products is None else products.addcmul_(own, sent)
            by_x.append(received(sent.mul_(weights), near))
        assert products is not None
        return of_pairs(products, near), torch.stack(by_x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        (filters, x, gradient, weights), near = ctx.saved_tensors, ctx.near  # type: ignore[attr-defined]
        by_filters, by_x = gradients
        new_weights = of_edges(by_filters, near)
        by_gradient = _Sum.apply(near, by_filters, x, new_weights, filters, by_x, weights)  # type: ignore[no-untyped-call]
        slopes = _Slopes.apply(near, by_filters, by_x, gradient, new_weights)  # type: ignore[no-untyped-call]
        return None, *slopes, by_gradient, None


def weighted_rows(weights: Sequence[Tensor], rows: Sequence[Tensor], near: Neighbourhood) -> Tensor:
    """The sum of f_ij x_j over terms, each (E, F) and (N, F) -> (E, F)."""
    total = rows[0].index_select(0, near.senders).mul_(weights[0])
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        total.addcmul_(row.index_select(0, near.senders), weight)
    return total
