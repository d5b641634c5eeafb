"""Products of 3x3 matrices, one for each atom and feature, (N, 3, 3, F) with the features last.

Their derivatives are written as such products again: the graph of second derivatives then has a few products in the place of
the many operations that automatic differentiation makes of each, and compiles much faster.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def anticommutator(x: Tensor, y: Tensor) -> Tensor:
    """X Y + Y X. Unlike X Y it keeps its form under reflections, which transpose matrices of edge vectors."""
    return cast(Tensor, _Anticommutator.apply(x, y))  # type: ignore[no-untyped-call]


def square(x: Tensor) -> Tensor:
    """X X."""
    return cast(Tensor, _Square.apply(x))  # type: ignore[no-untyped-call]


class _Anticommutator(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return _add_product(y, x, to=_product(x, y))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradients[0]
        return anticommutator(gradient, y.transpose(1, 2)), anticommutator(gradient, x.transpose(1, 2))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _product(x, x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return anticommutator(gradients[0], x.transpose(1, 2))


def _product(x: Tensor, y: Tensor) -> Tensor:
    return _add_product(x, y, to=x[:, :, 0, None] * y[:, None, 0], first=1)


def _add_product(x: Tensor, y: Tensor, *, to: Tensor, first: int = 0) -> Tensor:
    for k in range(first, 3):
        to = to.addcmul(x[:, :, k, None], y[:, None, k])
    return to
