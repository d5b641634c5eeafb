"""Sums over neighbours of scalars times a direction: the messages that make vectors of scalars.

The sum is linear in the filters f and directions u of pairs and in the rows x, and so is each of its derivatives:

    sum:       D(u, f, x)_i = sum_j u_ij f_ij x_j,   u_ij = -u_ji
    slopes:    by f:  <u_ij, g_i> x_j + <u_ji, g_j> x_i;   by x:  sum_j f_ij <u_ji, g_j>     with g = the gradient of the sum
    turns:     by u:  f_ij (g_i x_j - g_j x_i), summed over features

What slopes and turns are differentiated by are such sums, slopes and turns again, so all can be differentiated any number of
times, and nothing of the size of the edges is kept. N atoms, E edges, P pairs, F features.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.nn.neighbours.filtered_sums import weighted_rows
from modelforge.nn.neighbours.neighbourhood import (
    Neighbourhood,
    of_edges,
    of_pairs,
    products_with_received,
    received,
    received_along,
    sent_along,
    vectors_of_edges,
)


def directed_sum(directions: Tensor, filters: Tensor, x: Tensor, near: Neighbourhood) -> Tensor:
    """sum_j u_ij f_ij x_j; directions (P, 3) of the first edge of each pair, (P, F) and (N, F) -> (3, N, F)."""
    return _sum(near, directions, filters, x, of_edges(filters, near))


# Terms are filters, rows, and the filters again as edges see them, whose derivative is not theirs.
#
# By directions is differentiated through a node of its own, of value zero: a training step needs the derivative once, not
# twice, and autograd leaves out a node that leads to nothing that is asked for, but not a part of one.


def _sum(near: Neighbourhood, directions: Tensor, *terms: Tensor) -> Tensor:
    turn = _TurnOfSum.apply(directions, near, list(terms))  # type: ignore[no-untyped-call]
    return cast(Tensor, _Sum.apply(near, [directions], turn, *terms))  # type: ignore[no-untyped-call]


def _slopes(near: Neighbourhood, directions: Tensor, *operands: Tensor) -> tuple[Tensor, Tensor]:
    """By filters and rows; operands are a term and the gradient of the sum."""
    turns = _TurnOfSlopes.apply(directions, near, list(operands))  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], _Slopes.apply(near, [directions], *turns, *operands))  # type: ignore[no-untyped-call]


def _turn(near: Neighbourhood, gradient: Tensor, *terms: Tensor) -> Tensor:
    """By directions."""
    return cast(Tensor, _Turn.apply(near, gradient, *terms))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, near: Neighbourhood, directions: list[Tensor], turn: Tensor, *terms: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(*terms)
        ctx.others = (near, directions[0])  # type: ignore[attr-defined]
        return received_along(weighted_rows(terms[2::3], terms[1::3], near), vectors_of_edges(directions[0], near), near)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        terms, (near, directions) = ctx.saved_tensors, ctx.others  # type: ignore[attr-defined]
        slopes: list[Tensor | None] = []
        for term in zip(terms[::3], terms[1::3], terms[2::3], strict=True):
            slopes += [*_slopes(near, directions, *term, gradients[0]), None]
        return None, None, gradients[0], *slopes


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        near: Neighbourhood,
        directions: list[Tensor],
        turn_of_filters: Tensor,  # noqa: ARG004
        turn_of_x: Tensor,  # noqa: ARG004
        filters: Tensor,
        x: Tensor,
        weights: Tensor,
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(filters, x, weights, gradient)
        ctx.others = (near, directions[0])  # type: ignore[attr-defined]
        sent = sent_along(gradient, -vectors_of_edges(directions[0], near), near)  # (E, F)
        by_filters = of_pairs(x.index_select(0, near.receivers).mul_(sent), near)
        return by_filters, received(sent.mul_(weights), near)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (filters, x, weights, gradient), (near, directions) = ctx.saved_tensors, ctx.others  # type: ignore[attr-defined]
        by_filters, by_x = gradients
        new_weights = of_edges(by_filters, near)
        slopes = _slopes(near, directions, by_filters, by_x, new_weights, gradient)
        by_gradient = _sum(near, directions, by_filters, x, new_weights, filters, by_x, weights)
        return None, None, by_filters, by_x, *slopes, None, by_gradient


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, near: Neighbourhood, gradient: Tensor, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, *terms)
        ctx.near = near  # type: ignore[attr-defined]
        products = products_with_received(weighted_rows(terms[2::3], terms[1::3], near), gradient, near)  # (E, 3)
        return of_pairs(products * near.sign, near)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, *terms), near = ctx.saved_tensors, ctx.near  # type: ignore[attr-defined]
        slopes: list[Tensor | None] = []
        for term in zip(terms[::3], terms[1::3], terms[2::3], strict=True):
            slopes += [*_slopes(near, gradients[0], *term, gradient), None]
        return None, _sum(near, gradients[0], *terms), *slopes


class _TurnOfSum(torch.autograd.Function):
    """Nothing, (3, N, F), whose derivative is that of a sum by its directions."""

    @staticmethod
    def forward(ctx: FunctionCtx, directions: Tensor, near: Neighbourhood, terms: list[Tensor]) -> Tensor:
        ctx.others = (near, terms)  # type: ignore[attr-defined]
        return directions.new_zeros(()).expand(3, *terms[1].shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        near, terms = ctx.others  # type: ignore[attr-defined]
        return _turn(near, gradients[0], *terms), None, None


class _TurnOfSlopes(torch.autograd.Function):
    """Nothing, (P, F) and (N, F), whose derivative is that of slopes by their directions."""

    @staticmethod
    def forward(ctx: FunctionCtx, directions: Tensor, near: Neighbourhood, operands: list[Tensor]) -> tuple[Tensor, Tensor]:
        ctx.others = (near, operands)  # type: ignore[attr-defined]
        nothing = directions.new_zeros(())
        return nothing.expand_as(operands[0]), nothing.expand_as(operands[1])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        near, (filters, x, weights, gradient) = ctx.others  # type: ignore[attr-defined]
        by_filters, by_x = gradients
        return _turn(near, gradient, by_filters, x, of_edges(by_filters, near), filters, by_x, weights), None, None
