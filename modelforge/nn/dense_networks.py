"""Dense networks whose inputs and outputs come in parts that stand side by side, and are never put together.

So nothing is copied on the way there, nor cut on the way back. What a last layer gives is linear in the features before it, and
so is what the next network makes of it first: such parts may be `Projected`, so that two matrices become one.

E rows, of edges; H features of the layer before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.nn.autograd import is_wanted

MLP_GAIN = 2.0**0.5
"""What the weights behind a silu are multiplied with."""


@dataclass(frozen=True, eq=False)
class Projected:
    """The product of rows with a matrix and a number, left to what multiplies it with another matrix."""

    rows: Tensor  # (E, H)
    matrix: Tensor  # (H, F)
    factor: float


Part = Tensor | Projected
"""Features of rows, (E, F)."""


def value_of(part: Part) -> Tensor:
    """The features themselves."""
    return part if isinstance(part, Tensor) else scaled_product(part.rows, part.matrix, part.factor)


def cheaper(part: Part) -> Part:
    """What costs less to be multiplied with several matrices."""
    return part if isinstance(part, Projected) and part.matrix.shape[0] <= part.matrix.shape[1] else value_of(part)


def projected(part: Part, matrix: Tensor, factor: float) -> Projected:
    """The product with a matrix, which is still to be done."""
    if isinstance(part, Tensor):
        return Projected(part, matrix, factor)
    return Projected(part.rows, scaled_product(part.matrix, matrix, part.factor), factor)


def scaled_product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """f A B, with derivatives that are single products as well. Under autocast it is in half precision, as those of torch."""
    if torch.is_autocast_enabled(left.device.type):
        half = torch.get_autocast_dtype(left.device.type)
        left, right = left.to(half), right.to(half)
    return cast(Tensor, _ScaledProduct.apply(left, right, factor))  # type: ignore[no-untyped-call]


class _ScaledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.factor = factor  # type: ignore[attr-defined]
        nothing = left.new_zeros(1)  # torch does not read it with beta = 0; a compiler may multiply the two
        return torch.addmm(nothing, left, right, beta=0.0, alpha=factor)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (left, right), factor = ctx.saved_tensors, ctx.factor  # type: ignore[attr-defined]
        by_left = scaled_product(gradients[0], right.T, factor) if is_wanted(ctx, 0) else None
        by_right = scaled_product(left.T, gradients[0], factor) if is_wanted(ctx, 1) else None
        return by_left, by_right, None


class DenseNetwork(nn.Module):
    """Layers without biases, with silu times a gain between them: what is zero stays zero, and stays so smoothly.

    Weights begin with variance 1, as in `unit_variance.py`, and are divided by the root of the number of all inputs. There is a
    matrix for each part of the inputs of a layer and each part of its outputs.
    """

    def __init__(self, inputs: Sequence[int], hidden: Sequence[int], outputs: Sequence[int]) -> None:
        """Widths of the parts and of the layers between, of which there may be none."""
        super().__init__()
        self.widths = list(pairwise([list(inputs), *([width] for width in hidden), list(outputs)]))  # rows, columns
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.ParameterList(_random(height, width) for height in rows) for width in columns)
            for rows, columns in self.widths
        )

    def forward(self, parts: Sequence[Part]) -> list[Part]:
        """Each part of the inputs -> each part of the outputs."""
        *before, (last, factor) = self._matrices()
        for (matrices,), factor_before in before:
            parts = [functional.silu(_sum_of_products(parts, matrices, factor_before))]
        if len(parts) == 1:
            return [projected(parts[0], matrix, factor) for (matrix,) in last]
        return [_sum_of_products(parts, matrices, factor) for matrices in last]

    def _matrices(self) -> list[tuple[list[list[Tensor]], float]]:
        """Of each layer, part of its outputs and part of its inputs; and what their products are multiplied with."""
        matrices = []
        for place, ((rows, _), columns) in enumerate(zip(self.widths, self.layers, strict=True)):
            blocks = [list(cast(nn.ParameterList, column)) for column in cast(nn.ModuleList, columns)]
            matrices.append((blocks, (MLP_GAIN if place else 1.0) * sum(rows) ** -0.5))
        return matrices


def _sum_of_products(parts: Sequence[Part], matrices: Sequence[Tensor], factor: float) -> Tensor:
    first, *others = (value_of(projected(part, matrix, factor)) for part, matrix in zip(parts, matrices, strict=True))
    for other in others:
        first = first + other
    return first


def _random(*shape: int) -> nn.Parameter:
    return nn.Parameter((2.0 * torch.rand(shape) - 1.0) * 3.0**0.5)
