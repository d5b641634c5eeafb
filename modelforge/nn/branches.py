"""A value whose derivatives by some of its inputs are given as functions, and computed only where they are asked for.

Autograd computes all derivatives of a node where one is asked for. A value is therefore joined with zeros that have the other
inputs alone; the sum is not written, as it is the value.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Derivative = Callable[[Tensor], Tensor]
"""The gradient by the inputs for that by the value."""


def with_branch(value: Tensor, inputs: Tensor, derivative: Derivative) -> Tensor:
    """The value, which is also a function of the inputs; the derivative is to track its operations where grad mode is on."""
    zero = _Zero.apply(inputs, value.shape, derivative)  # type: ignore[no-untyped-call]
    return cast(Tensor, _Joined.apply(value, zero))  # type: ignore[no-untyped-call]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, zero: Tensor) -> Tensor:  # noqa: ARG004
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor | None) -> tuple[Tensor | None, Tensor | None]:  # noqa: ARG004
        return upstream[0], upstream[0]


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, shape: torch.Size, derivative: Derivative) -> Tensor:
        ctx.derivative = derivative  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return inputs.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor | None) -> tuple[Tensor | None, None, None]:
        # Nodes on the way to the inputs are visited also where nothing comes from above.
        return None if upstream[0] is None else ctx.derivative(upstream[0]), None, None  # type: ignore[attr-defined]
