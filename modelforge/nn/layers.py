"""Layers that know no potential: dense layers, two-layer networks, element embeddings. N atoms, F features, Z elements.

Under autocast matrix products run in half precision; where that would round what is summed up later, it is switched off.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import at_atoms


def dense(num_in: int, num_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero biases."""
    layer = nn.Linear(num_in, num_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def two_layers(num_in: int, num_hidden: int, num_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """dense -> activation -> dense."""
    return nn.Sequential(dense(num_in, num_hidden), activation(), dense(num_hidden, num_out))


def without_autocast(layers: nn.Module, inputs: Tensor, *, dtype: torch.dtype) -> Tensor:
    """What layers give in `dtype`, that of their weights, also where autocast would run them in half precision."""
    with torch.autocast(inputs.device.type, enabled=False):
        outputs: Tensor = layers(inputs.to(dtype))
        return outputs


class ShiftedSoftplus(nn.Module):
    """ln(1 + e^x) - ln 2, which is 0 at 0 (Schuett et al., arXiv:1706.08566)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        return functional.softplus(x) - math.log(2.0)


class StateEmbedding(nn.Module):
    """Features from the total charge and the spin multiplicity of a structure, the same for all its atoms.

    Layers without biases: a neutral singlet gets zeros, and so does what a network without them says of it.
    """

    def __init__(self, num_features: int, *, charge: bool, spin: bool) -> None:
        super().__init__()
        self.charge, self.spin = charge, spin
        self.network = nn.Sequential(
            dense(charge + spin, num_features, bias=False), nn.SiLU(), dense(num_features, num_features, bias=False)
        )

    def forward(self, graph: AtomicGraph) -> Tensor:
        """(N, F)."""
        inputs = [graph.total_charge] if self.charge else []
        inputs += [graph.spin_multiplicity - 1.0] if self.spin else []
        dtype = graph.total_charge.dtype
        return at_atoms(without_autocast(self.network, torch.stack(inputs, dim=1), dtype=dtype), graph)


class ElementEmbedding(nn.Module):
    """A learned vector for each element, and for the charge and spin of the structure where these are wanted.

    The look-up is a product with one-hot rows: its derivative is then a matrix product, which is deterministic and fast,
    where the derivative of an indexed look-up adds in an order that depends on the threads.
    """

    column: Tensor

    def __init__(self, elements: Sequence[int], num_features: int, *, charge: bool = False, spin: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(elements), num_features))  # (Z, F)
        column = torch.zeros(max(elements) + 1, dtype=torch.long)
        column[torch.as_tensor(elements)] = torch.arange(len(elements))
        self.register_buffer("column", column, persistent=False)
        self.state = StateEmbedding(num_features, charge=charge, spin=spin) if charge or spin else None

    def forward(self, graph: AtomicGraph) -> Tensor:
        """First features of the atoms, (N, F)."""
        features = self._of_elements(graph.atomic_numbers)
        return features if self.state is None else features + self.state(graph)

    def _of_elements(self, atomic_numbers: Tensor) -> Tensor:
        columns = torch.arange(self.weight.shape[0], device=atomic_numbers.device)
        one_hot = self.column[atomic_numbers][:, None] == columns  # (N, Z)
        with torch.autocast(self.weight.device.type, enabled=False):  # features are sums that begin with it
            return one_hot.to(self.weight.dtype) @ self.weight
