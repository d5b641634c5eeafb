"""`symmetry_functions.c` as operators: symmetry functions on the CPU, and products with their Jacobian.

They are opaque to the compiler, which has one node for each. N atoms, E edges, Z elements, P pairs of them; R, A and T
functions of distance, mean distance and angle.
"""

import ctypes
from ctypes import c_double, c_int, c_longlong, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modelforge.nn.descriptors.symmetry_functions import SymmetryConstants
from modelforge.nn.native.library import native

SOURCE = Path(__file__).with_name("symmetry_functions.c")
SURROUNDINGS = "Tensor first_edge, Tensor senders, Tensor elements, int num_elements, int[] counts, float[] constants"

torch.library.define("modelforge::symmetry_values", f"(Tensor vectors, {SURROUNDINGS}) -> Tensor")
torch.library.define("modelforge::symmetry_pulled", f"(Tensor by_values, Tensor vectors, {SURROUNDINGS}) -> Tensor")
torch.library.define("modelforge::symmetry_pushed", f"(Tensor directions, Tensor vectors, {SURROUNDINGS}) -> Tensor")


@dataclass(frozen=True, eq=False)
class Senders:
    """Which edges each atom receives, and of which elements their senders are."""

    first_edge: Tensor  # (N,)
    senders: Tensor  # (E,)
    elements: Tensor  # (N,) from 0 to Z - 1
    num_elements: int


class NativeSlopes:
    """The Jacobian of all symmetry functions by the edge vectors: what it is computed of, each time."""

    def __init__(self, vectors: Tensor, senders: Senders, constants: SymmetryConstants) -> None:
        """Edge vectors (E, 3)."""
        tensors = (vectors, senders.first_edge, senders.senders, senders.elements)
        self.arguments = (*tensors, senders.num_elements, _counts(constants), _numbers(constants))

    def values(self) -> Tensor:
        """The functions themselves, (N, Z R + P A T)."""
        found: Tensor = torch.ops.modelforge.symmetry_values(*self.arguments)
        return found

    def pulled(self, by_values: Tensor) -> Tensor:
        """(N, Z R + P A T) -> (E, 3)."""
        found: Tensor = torch.ops.modelforge.symmetry_pulled(by_values, *self.arguments)
        return found

    def pushed(self, directions: Tensor) -> Tensor:
        """(E, 3) -> (N, Z R + P A T)."""
        found: Tensor = torch.ops.modelforge.symmetry_pushed(directions, *self.arguments)
        return found


def is_native(vectors: Tensor, constants: SymmetryConstants) -> bool:
    """Whether vectors are on the CPU, and there is a compiler."""
    return vectors.device.type == "cpu" and _library(vectors.dtype, _counts(constants)) is not None


class _Surroundings(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("first_edge", "senders", "elements")),
        *((name, c_longlong) for name in ("num_atoms", "num_edges", "num_elements")),
        *((name, c_double) for name in ("cutoff", "angular_cutoff", "first_shift", "radial_eta", "angular_eta", "zeta")),
        ("num_threads", c_int),
    )


def _counts(constants: SymmetryConstants) -> list[int]:
    return [constants.num_radial, constants.num_shells, constants.num_angles]


def _numbers(constants: SymmetryConstants) -> list[float]:
    """In the order of the fields above."""
    lengths = [constants.cutoff, constants.angular_cutoff, constants.first_shift]
    return [*lengths, constants.radial_eta, constants.angular_eta, constants.zeta]


def _library(dtype: torch.dtype, counts: list[int]) -> ctypes.CDLL | None:
    num_radial, num_shells, num_angles = counts
    return native(SOURCE, dtype, NUM_RADIAL=num_radial, NUM_SHELLS=num_shells, NUM_ANGLES=num_angles)


def _length(num_elements: int, counts: list[int]) -> int:
    """Z R + P A T."""
    num_radial, num_shells, num_angles = counts
    return num_elements * num_radial + num_elements * (num_elements + 1) // 2 * num_shells * num_angles


def _call(
    name: str,
    given: tuple[Tensor, ...],
    found: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    num_elements: int,
    counts: list[int],
    constants: list[float],
) -> Tensor:
    library = _library(found.dtype, counts)
    assert library is not None, "chosen when there was native code, which cannot be loaded any more"
    first_edge, senders, elements = (table.contiguous() for table in tables)
    pointers = (table.data_ptr() for table in (first_edge, senders, elements))
    sizes = (first_edge.shape[0], senders.shape[0], num_elements)
    surroundings = _Surroundings(*pointers, *sizes, *constants, torch.get_num_threads())
    tensors = [*(tensor.contiguous() for tensor in given), found]
    getattr(library, name)(ctypes.byref(surroundings), *(c_void_p(tensor.data_ptr()) for tensor in tensors))
    return found


@torch.library.impl("modelforge::symmetry_values", "CPU")
def _values(
    vectors: Tensor,
    first_edge: Tensor,
    senders: Tensor,
    elements: Tensor,
    num_elements: int,
    counts: list[int],
    constants: list[float],
) -> Tensor:
    found = vectors.new_empty(first_edge.shape[0], _length(num_elements, counts))
    return _call("symmetry_values", (vectors,), found, (first_edge, senders, elements), num_elements, counts, constants)


@torch.library.impl("modelforge::symmetry_pulled", "CPU")
def _pulled(
    by_values: Tensor,
    vectors: Tensor,
    first_edge: Tensor,
    senders: Tensor,
    elements: Tensor,
    num_elements: int,
    counts: list[int],
    constants: list[float],
) -> Tensor:
    found, tables = torch.empty_like(vectors, memory_format=torch.contiguous_format), (first_edge, senders, elements)
    return _call("symmetry_pulled", (vectors, by_values), found, tables, num_elements, counts, constants)


@torch.library.impl("modelforge::symmetry_pushed", "CPU")
def _pushed(
    directions: Tensor,
    vectors: Tensor,
    first_edge: Tensor,
    senders: Tensor,
    elements: Tensor,
    num_elements: int,
    counts: list[int],
    constants: list[float],
) -> Tensor:
    found, tables = vectors.new_empty(first_edge.shape[0], _length(num_elements, counts)), (first_edge, senders, elements)
    return _call("symmetry_pushed", (vectors, directions), found, tables, num_elements, counts, constants)


@torch.library.register_fake("modelforge::symmetry_values")  # type: ignore[untyped-decorator]
def _(
    vectors: Tensor, first_edge: Tensor, _: Tensor, __: Tensor, num_elements: int, counts: list[int], ___: list[float]
) -> Tensor:
    return vectors.new_empty(first_edge.shape[0], _length(num_elements, counts))


@torch.library.register_fake("modelforge::symmetry_pulled")  # type: ignore[untyped-decorator]
def _(_: Tensor, vectors: Tensor, *__: object) -> Tensor:
    return torch.empty_like(vectors, memory_format=torch.contiguous_format)


@torch.library.register_fake("modelforge::symmetry_pushed")  # type: ignore[untyped-decorator]
def _(
    _: Tensor,
    vectors: Tensor,
    first_edge: Tensor,
    __: Tensor,
    ___: Tensor,
    num_elements: int,
    counts: list[int],
    ____: list[float],
) -> Tensor:
    return vectors.new_empty(first_edge.shape[0], _length(num_elements, counts))
