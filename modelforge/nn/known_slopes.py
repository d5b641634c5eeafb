"""A function without weights whose derivative is known: quick where forces are trained, right everywhere.

With the Jacobian J of f at x, forces need the gradient J^T g for the g of the values, and the loss of forces needs of that
only the derivative by g, which is J v. What else is asked for, such as second derivatives of f, is that of a plain function.
"""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modelforge.nn.branches import with_branch

Plain = Callable[[Tensor], Tensor]
"""The function by operators that torch differentiates any number of times."""


class Slopes(Protocol):
    """The Jacobian at some inputs."""

    def pulled(self, by_values: Tensor) -> Tensor:
        """J^T g, of the shape of the inputs."""

    def pushed(self, directions: Tensor) -> Tensor:
        """J v, of the shape of the values."""


def with_slopes(inputs: Tensor, values: Tensor, slopes: Slopes, plain: Plain) -> Tensor:
    """The values of a function at the inputs, differentiable."""
    return cast(Tensor, _Value.apply(inputs, values, slopes, plain))  # type: ignore[no-untyped-call]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, values: Tensor, slopes: Slopes, plain: Plain) -> Tensor:
        ctx.others = (inputs, slopes, plain)  # type: ignore[attr-defined]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        inputs, slopes, plain = ctx.others  # type: ignore[attr-defined]
        (by_values,) = upstream

        def derivative(directions: Tensor) -> Tensor:
            is_differentiated = torch.is_grad_enabled()
            with torch.enable_grad():
                at = inputs.view_as(inputs)  # of which the upstream is no function
                (pulled,) = torch.autograd.grad(plain(at), at, by_values, create_graph=True)
                return cast(Tensor, torch.autograd.grad(pulled, at, directions, create_graph=is_differentiated)[0])

        pulled = _Pulled.apply(by_values, slopes, [inputs], plain)  # type: ignore[no-untyped-call]
        return with_branch(pulled, inputs, derivative), None, None, None


class _Pulled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, by_values: Tensor, slopes: Slopes, inputs: list[Tensor], plain: Plain) -> Tensor:
        ctx.others = (slopes, inputs[0], plain)  # type: ignore[attr-defined]
        return slopes.pulled(by_values)

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        slopes, inputs, plain = ctx.others  # type: ignore[attr-defined]
        if not torch.is_grad_enabled():
            return slopes.pushed(upstream[0]), None, None, None
        at = inputs.view_as(inputs)
        values = plain(at)
        by_values = torch.zeros_like(values).requires_grad_()
        (pulled,) = torch.autograd.grad(values, at, by_values, create_graph=True)
        return torch.autograd.grad(pulled, by_values, upstream[0], create_graph=True)[0], None, None, None
