"""Tensors one after the other in one, and back: each is the derivative of the other.

Slices would be differentiated as sums of tensors that are filled up with zeros; compiled, all who read such a sum compute it
anew.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (M_k, ...) -> (sum of M_k, ...)."""
    return cast(Tensor, _Joined.apply(*parts))  # type: ignore[no-untyped-call]


def parted(whole: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """The reverse."""
    return cast(tuple[Tensor, ...], _Parted.apply(whole, lengths))  # type: ignore[no-untyped-call]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *parts: Tensor) -> Tensor:
        ctx.lengths = [part.shape[0] for part in parts]  # type: ignore[attr-defined]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return parted(gradients[0], ctx.lengths)  # type: ignore[attr-defined]


class _Parted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, whole: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:  # noqa: ARG004
        return torch.split(whole, list(lengths))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return joined(gradients), None
