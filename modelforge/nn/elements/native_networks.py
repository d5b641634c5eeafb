"""`celu_networks.c` as operators: networks of CELU layers on the CPU, and the gradients by their weights.

They are opaque to the compiler. N rows, I inputs; weights and biases are those of all layers of the first group, and so on.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int, c_longlong, c_void_p
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from modelforge.nn.native.library import native

SOURCE = Path(__file__).with_name("celu_networks.c")

torch.library.define(
    "modelforge::celu_networks",
    "(Tensor inputs, Tensor group, Tensor[] weights, Tensor[] biases, int num_layers, float alpha) -> Tensor[]",
)
torch.library.define(
    "modelforge::celu_networks_weights",
    "(Tensor by_energies, Tensor by_gradients, Tensor group, Tensor[] weights, Tensor transposed, Tensor memory, "
    "int num_layers, float alpha) -> Tensor[]",
)


def is_native(inputs: Tensor) -> bool:
    """Whether inputs are on the CPU, and there is a compiler."""
    return inputs.device.type == "cpu" and native(SOURCE, inputs.dtype) is not None


def went_through(
    inputs: Tensor, group: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, num_layers: int, alpha: float
) -> "tuple[Tensor, Tensor, NativeNetworks]":
    """Energies (N,) and their gradients (N, I), for the group (N,) of each row, and what has been gone through."""
    options = (list(weights), list(biases), num_layers, alpha)
    energies, gradients, transposed, memory = torch.ops.modelforge.celu_networks(inputs, group, *options)
    return energies, gradients, NativeNetworks(group, list(weights), transposed, memory, num_layers, alpha)


@dataclass(frozen=True, eq=False)
class NativeNetworks:
    """What gradients by the weights need of the way through all networks."""

    group: Tensor
    weights: list[Tensor]
    transposed: Tensor  # matrices of all hidden layers
    memory: Tensor  # of each row
    num_layers: int
    alpha: float

    def weight_gradients(self, by_energies: Tensor, by_gradients: Tensor) -> list[Tensor]:
        """By all weights, then by all biases, for the derivatives by energies (N,) and gradients (N, I)."""
        kept = (self.group, self.weights, self.transposed, self.memory, self.num_layers, self.alpha)
        found: list[Tensor] = torch.ops.modelforge.celu_networks_weights(by_energies, by_gradients, *kept)
        return found


class _Networks(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("group", "widths", "order", "weights", "biases")),
        *((name, c_longlong) for name in ("num_rows", "num_groups", "num_layers", "memory")),
        ("alpha", c_double),
        ("num_threads", c_int),
    )


def _widths(weights: Sequence[Tensor], num_layers: int) -> list[list[int]]:
    """Of each group: of its inputs and of all layers, the last of which has one output."""
    firsts = range(0, len(weights), num_layers)
    return [[weights[first].shape[1], *(w.shape[0] for w in weights[first : first + num_layers])] for first in firsts]


def _memory(widths: list[list[int]]) -> int:
    """Numbers of a row: inputs and hidden layers, hidden layers again, and a width."""
    return max(sum(of_group[:-1]) + sum(of_group[1:-1]) + max(of_group) for of_group in widths)


def _num_transposed(widths: list[list[int]]) -> int:
    """Of all matrices of hidden layers."""
    return sum(x * y for of_group in widths for x, y in pairwise(of_group[:-1]))


def _pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[c_void_p]":
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _call(
    name: str,
    group: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    num_layers: int,
    alpha: float,
    arguments: Sequence[object],
) -> None:
    library = native(SOURCE, weights[0].dtype)
    assert library is not None, "chosen when there was native code, which cannot be loaded any more"
    widths = _widths(weights, num_layers)
    flat = [width for of_group in widths for width in of_group]
    numbers, of_weights, of_biases = (c_longlong * len(flat))(*flat), _pointers(weights), _pointers(biases)
    order = torch.empty_like(group)
    arrays = [ctypes.cast(array, c_void_p) for array in (numbers, of_weights, of_biases)]
    pointers = (group.data_ptr(), arrays[0], order.data_ptr(), *arrays[1:])
    sizes = (group.shape[0], len(widths), num_layers, _memory(widths))
    networks = _Networks(*pointers, *sizes, alpha, torch.get_num_threads())
    getattr(library, name)(ctypes.byref(networks), *(c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments))


@torch.library.impl("modelforge::celu_networks", "CPU")
def _celu_networks(
    inputs: Tensor, group: Tensor, weights: list[Tensor], biases: list[Tensor], num_layers: int, alpha: float
) -> list[Tensor]:
    inputs, group = inputs.contiguous(), group.contiguous()
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    found = _made(inputs, weights, num_layers)
    energies, gradients, transposed, memory = found
    _call("networks_forward", group, weights, biases, num_layers, alpha, (inputs, transposed, memory, energies, gradients))
    return found


@torch.library.impl("modelforge::celu_networks_weights", "CPU")
def _celu_networks_weights(
    by_energies: Tensor,
    by_gradients: Tensor,
    group: Tensor,
    weights: list[Tensor],
    transposed: Tensor,
    memory: Tensor,
    num_layers: int,
    alpha: float,
) -> list[Tensor]:
    by_energies, by_gradients, group = by_energies.contiguous(), by_gradients.contiguous(), group.contiguous()
    weights = [w.contiguous() for w in weights]
    found, half = _like(weights), len(weights)
    results = (_pointers(found[:half]), _pointers(found[half:]))
    arguments = (by_energies, by_gradients, transposed, memory, torch.empty_like(memory), *results)
    _call("networks_backward", group, weights, [], num_layers, alpha, arguments)
    return found


@torch.library.register_fake("modelforge::celu_networks")  # type: ignore[untyped-decorator]
def _(inputs: Tensor, _: Tensor, weights: list[Tensor], __: list[Tensor], num_layers: int, ___: float) -> list[Tensor]:
    return _made(inputs, weights, num_layers)


@torch.library.register_fake("modelforge::celu_networks_weights")  # type: ignore[untyped-decorator]
def _(_: Tensor, __: Tensor, ___: Tensor, weights: list[Tensor], *____: object) -> list[Tensor]:
    return _like(weights)


def _made(inputs: Tensor, weights: list[Tensor], num_layers: int) -> list[Tensor]:
    """Room for energies, gradients, transposed matrices, and what rows have in memory."""
    widths, num_rows = _widths(weights, num_layers), inputs.shape[0]
    shapes = ((num_rows,), tuple(inputs.shape), (_num_transposed(widths),), (num_rows, _memory(widths)))
    return [inputs.new_empty(shape) for shape in shapes]


def _like(weights: list[Tensor]) -> list[Tensor]:
    """Room for gradients by weights and biases."""
    return [*(w.new_empty(w.shape) for w in weights), *(w.new_empty(w.shape[0]) for w in weights)]
