"""Layers whose weights begin with variance 1 and are divided by the root of the number of inputs when they are used.

So the features begin with variance 1 at any width, and one learning rate suits all layers (Geiger, Smidt, arXiv:2207.09453).
Layers of irreps take and give one tensor for each, (2l+1, N, C): components, atoms, channels. Z elements.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelforge.nn.elements.grouped_products import RowGroups, back_in_place, grouped_linear, sorted_by_group
from modelforge.nn.equivariant.irreps import Irrep

SILU_GAIN = 1.6791767923989418
"""What makes the second moment of silu 1, as e3nn has it (by sampling; exactly it is 1.67653)."""
TANH_GAIN = 1.5937334472592695
"""Likewise of tanh (exactly 1.59254)."""
Distribution = Literal["normal", "uniform"]


class RadialNetwork(nn.Module):
    """Dense layers without biases, with silu times a gain between them: what is zero stays zero, and stays so smoothly."""

    def __init__(self, widths: Sequence[int], *, gain: float, distribution: Distribution) -> None:
        """`widths`: from the inputs to the outputs."""
        super().__init__()
        self.gain = gain
        self.weights = nn.ParameterList(_random(*pair, distribution=distribution) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(Q, inputs) -> (Q, outputs)."""
        for place, weight in enumerate(self.weights):
            factor = (1.0 if place == 0 else self.gain) * weight.shape[0] ** -0.5
            x = (functional.silu(x) if place else x) @ (weight * factor)
        return x


def _random(*shape: int, distribution: Distribution) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) if distribution == "normal" else (2.0 * torch.rand(shape) - 1.0) * 3.0**0.5)


class IrrepLinear(nn.Module):
    """A matrix for each irrep; components of different irreps never mix."""

    def __init__(self, num_in: Mapping[Irrep, int], num_out: Mapping[Irrep, int], *, factor: float = 1.0) -> None:
        """Channels of each irrep; irreps without channels to come from or to go to are left out."""
        super().__init__()
        self.irreps = [irrep for irrep in num_in if irrep in num_out]
        self.factor = factor
        self.weights = nn.ParameterDict(
            {str(irrep): nn.Parameter(torch.randn(num_in[irrep], num_out[irrep])) for irrep in self.irreps}
        )

    def forward(self, features: Mapping[Irrep, Tensor]) -> dict[Irrep, Tensor]:
        """(2l+1, N, inputs) -> (2l+1, N, outputs) of each irrep."""
        results = {}
        for irrep in self.irreps:
            weight = self.weights[str(irrep)]
            results[irrep] = features[irrep] @ (weight * (self.factor * weight.shape[0] ** -0.5))
        return results


class ElementLinear(nn.Module):
    """A matrix for each irrep and each element: a product with a vector of the element, by which it is divided too.

    With the vector of the element (V numbers), weights are (inputs, V, outputs) and factors 1/sqrt(inputs V). The weights of an
    element are contracted with its vector once, so that an atom costs one product with a matrix.
    """

    def __init__(self, num_in: Mapping[Irrep, int], num_out: Mapping[Irrep, int], *, num_attributes: int) -> None:
        super().__init__()
        self.irreps = [irrep for irrep in num_in if irrep in num_out]
        self.weights = nn.ParameterDict(
            {str(irrep): nn.Parameter(torch.randn(num_in[irrep], num_attributes, num_out[irrep])) for irrep in self.irreps}
        )

    def forward(self, features: Mapping[Irrep, Tensor], attributes: Tensor | None, groups: RowGroups) -> dict[Irrep, Tensor]:
        """(2l+1, N, inputs), attributes (Z, V) or none for one-hot ones -> (2l+1, N, outputs); atoms grouped by element."""
        results = {}
        for irrep in self.irreps:
            weight = self.weights[str(irrep)]
            factor = (weight.shape[0] * weight.shape[1]) ** -0.5
            of_elements = weight.transpose(0, 1) if attributes is None else torch.einsum("zv,uvw->zuw", attributes, weight)
            results[irrep] = _of_elements(features[irrep], of_elements * factor, groups)
        return results


def _of_elements(x: Tensor, weights: Tensor, groups: RowGroups) -> Tensor:
    """(2l+1, N, inputs) by the matrix of each atom's element, (Z, inputs, outputs)."""
    dimension = x.shape[0]
    rows = sorted_by_group(x.transpose(0, 1), groups).flatten(0, 1)  # (N (2l+1), inputs)
    # Of the groups the product reads the ends only; order and place stay those of atoms, as the rows are in order already.
    groups_of_rows = RowGroups(groups.order, groups.place, groups.ends * dimension)
    products = grouped_linear(rows, list(weights.transpose(1, 2).unbind()), [], groups_of_rows)
    return back_in_place(products.view(-1, dimension, products.shape[1]), groups).transpose(0, 1)
