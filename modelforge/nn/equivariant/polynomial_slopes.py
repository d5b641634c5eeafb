"""How a function of the rows of a polynomial depends on their coefficients, on the CPU, where there is a compiler.

    s_zrm = sum_(n of element z) g_nr x_n,f1(r,m) x_n,f2(r,m) ..        for each channel

Of each atom only the coefficients of its own element have a part; torch would multiply those of all elements by zeros and ones.

N atoms, C channels, Z elements, R rows, M monomials of a row; `polynomial_rows.py` says what these are.
"""

import ctypes
from ctypes import c_int, c_longlong, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from modelforge.nn.native.library import native_rows

SOURCE = Path(__file__).with_name("polynomial_slopes.c")

torch.library.define(
    "modelforge::polynomial_slopes",
    "(Tensor gradients, Tensor rows, Tensor x, Tensor factors, Tensor columns, int num_elements) -> Tensor",
)


def is_native(x: Tensor) -> bool:
    """Whether there is compiled code for such components (N, n, C)."""
    return x.device.type == "cpu" and native_rows(SOURCE, x.dtype, x.shape[2]) is not None


def slopes(gradients: Tensor, rows: Tensor, x: Tensor, factors: Tensor, columns: Tensor, num_elements: int) -> Tensor:
    """(Z, R, M, C); gradients (N, all rows, C), of which `rows` (R,) are these, x (N, n, C), factors (degree, R, M) in its n.

    `columns`: the element of each atom, (N,). There is no derivative of it.
    """
    found: Tensor = torch.ops.modelforge.polynomial_slopes(gradients, rows, x, factors, columns, num_elements)
    return found


class _Monomials(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("factors", "rows", "atoms", "ends")),
        *((f"num_{name}", c_longlong) for name in ("rows", "monomials", "factors", "elements", "gradients", "components")),
        ("num_threads", c_int),
    )


@torch.library.impl("modelforge::polynomial_slopes", "CPU")
def _slopes(gradients: Tensor, rows: Tensor, x: Tensor, factors: Tensor, columns: Tensor, num_elements: int) -> Tensor:
    library = native_rows(SOURCE, x.dtype, x.shape[2])
    assert library is not None, "native code cannot be loaded any more"
    degree, num_rows, num_monomials = factors.shape
    results = x.new_empty(num_elements, num_rows, num_monomials, x.shape[2])
    ends = columns.bincount(minlength=num_elements).cumsum(0)
    tables = [factors.contiguous(), rows.contiguous(), columns.argsort(stable=True), ends]  # live as long as their addresses
    values = [gradients.contiguous(), x.contiguous(), results]
    sizes = (num_rows, num_monomials, degree, num_elements, gradients.shape[1], x.shape[1])
    described = _Monomials(*(c_void_p(table.data_ptr()) for table in tables), *sizes, torch.get_num_threads())
    library.slopes(ctypes.byref(described), *(c_void_p(tensor.data_ptr()) for tensor in values))
    return results


@torch.library.register_fake("modelforge::polynomial_slopes")  # type: ignore[untyped-decorator]
def _(gradients: Tensor, rows: Tensor, x: Tensor, factors: Tensor, columns: Tensor, num_elements: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(num_elements, *factors.shape[1:], x.shape[2])
