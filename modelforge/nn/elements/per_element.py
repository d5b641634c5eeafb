"""A network for each element, which may differ in their widths. N atoms, H features of the last hidden layer, Z elements.

The atoms are sorted by element, so that each layer is one product of matrices for each element.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from modelforge.nn.elements import native_networks
from modelforge.nn.elements.celu_networks import celu_energies
from modelforge.nn.elements.grouped_products import back_in_place, grouped_linear, row_groups, sorted_by_group
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
        self.elements, self.activation, self.num_layers = tuple(elements), activation, depths.pop() + 1
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
        return self._outputs(features, self.column[atomic_numbers], *self._weights_and_biases())

    def energies(self, features: Tensor, atomic_numbers: Tensor) -> Tensor:
        """The energies alone, (N,): quicker where features are differentiated in single precision on the CPU, with CELU."""
        if not isinstance(self.activation, nn.CELU) or not _is_quick(features):
            energies, _ = self(features, atomic_numbers)
            return cast(Tensor, energies)
        group = self.column[atomic_numbers]

        def plain(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
            return self._outputs(features, group, weights, biases)[0]

        alpha, num_layers = self.activation.alpha, self.num_layers
        return celu_energies(features, group, *self._weights_and_biases(), num_layers=num_layers, alpha=alpha, plain=plain)

    def _weights_and_biases(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those of all layers of the first element, then of the second, and so on."""
        layers = [layer for network in self.networks.values() for layer in cast(nn.ModuleList, network)]
        return [cast(Tensor, layer.weight) for layer in layers], [cast(Tensor, layer.bias) for layer in layers]

    def _outputs(
        self, features: Tensor, group: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        groups = row_groups(group, num_groups=len(self.elements))
        of_layers = [(weights[place :: self.num_layers], biases[place :: self.num_layers]) for place in range(self.num_layers)]
        x = sorted_by_group(features, groups)
        for layer in of_layers[:-1]:
            x = self.activation(grouped_linear(x, *layer, groups))
        x = x.to(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            energies = grouped_linear(x, *of_layers[-1], groups)
        return back_in_place(energies, groups)[:, 0], back_in_place(x, groups)


def _is_quick(features: Tensor) -> bool:
    """Whether energies are to be differentiated, in single precision, and there is native code for it.

    In double precision the slopes of torch's CELU have an error of 1e-8, as it rounds 1/alpha, and other programs' numbers have
    that too.
    """
    is_single = features.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_single and features.requires_grad and native_networks.is_native(features)
