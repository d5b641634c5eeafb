"""A network for each element, which may differ in their widths. N atoms, H features of the last hidden layer, Z elements.

The atoms are sorted by element, so that each layer is one product of matrices for each element.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from modelforge.nn.grouped_products import RowGroups, back_in_place, grouped_linear, row_groups, sorted_by_group
from modelforge.nn.layers import dense


class ElementNetworks(nn.Module):
    """Dense layers from the features of an atom to its energy, others for each element; the last layer is linear.

    All networks have the same number of layers. Their weights are named by the element: their order means nothing.
    """

    column: Tensor

    def __init__(
        self, elements: Sequence[int], *, num_in: int, widths: Mapping[int, Sequence[int]], activation: nn.Module
    ) -> None:
        """`widths`: those of the hidden layers for each element."""
        super().__init__()
        depths = {len(widths[element]) for element in elements}
        assert len(depths) == 1, "networks of different depth cannot share their matrix products"
        self.elements, self.activation = tuple(elements), activation
        self.num_hidden = max(widths[element][-1] for element in elements)
        self.networks = nn.ModuleDict(
            {
                chemical_symbols[element]: nn.ModuleList(dense(*pair) for pair in pairwise((num_in, *widths[element], 1)))
                for element in elements
            }
        )
        column = torch.zeros(max(elements) + 1, dtype=torch.long)
        column[torch.as_tensor(elements)] = torch.arange(len(elements))
        self.register_buffer("column", column, persistent=False)

    def forward(self, features: Tensor, atomic_numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, num_in) -> energies (N,) and what the last hidden layer gives, (N, H), zero beyond an element's width.

        Hidden layers follow autocast; energies are in the precision of the weights.
        """
        groups = row_groups(self.column[atomic_numbers], num_groups=len(self.elements))
        layers = list(zip(*cast(list[nn.ModuleList], list(self.networks.values())), strict=True))
        x = sorted_by_group(features, groups)
        for layer in layers[:-1]:
            x = self.activation(_apply(layer, x, groups))
        x = x.to(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            energies = _apply(layers[-1], x, groups)
        return back_in_place(energies, groups)[:, 0], back_in_place(x, groups)


def _apply(layers: Sequence[nn.Module], x: Tensor, groups: RowGroups) -> Tensor:
    weights, biases = ([cast(Tensor, getattr(layer, name)) for layer in layers] for name in ("weight", "bias"))
    return grouped_linear(x, weights, biases, groups)
