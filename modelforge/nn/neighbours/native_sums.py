"""`neighbour_sums.c` as operators: the sums of `neighbour_sums.py` on the CPU, one node each for the compiler."""

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_longlong, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.native.library import native_rows
from modelforge.nn.neighbours.pairs import Pairs

SOURCE = Path(__file__).with_name("neighbour_sums.c")
EDGES = "Tensor first_edge, Tensor senders, Tensor pair_of_edge, Tensor first_of_pair, Tensor receivers, int[] parts"

torch.library.define("modelforge::sum_over_neighbours", f"(Tensor filters, Tensor x, {EDGES}) -> Tensor")
torch.library.define("modelforge::products_of_pairs", f"(Tensor x, Tensor y, {EDGES}) -> Tensor")


class _Pairs(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("first_edge", "senders", "pair_of_edge", "first_of_pair", "receivers", "parts")),
        *((f"num_{name}", c_longlong) for name in ("atoms", "edges", "pairs", "parts", "components")),
        ("num_threads", c_int),
    )


def is_native(x: Tensor) -> bool:
    """Whether features (N, C, F) are on the CPU, and there is a compiler."""
    return x.device.type == "cpu" and _library(x) is not None


def sum_over_neighbours(filters: Tensor, x: Tensor, pairs: Pairs, graph: AtomicGraph, parts: Sequence[int]) -> Tensor:
    """See `neighbour_sums.py`."""
    found: Tensor = torch.ops.modelforge.sum_over_neighbours(filters, x, *_edges(pairs, graph), list(parts))
    return found


def products_of_pairs(x: Tensor, y: Tensor, pairs: Pairs, graph: AtomicGraph, parts: Sequence[int]) -> Tensor:
    """See `neighbour_sums.py`."""
    found: Tensor = torch.ops.modelforge.products_of_pairs(x, y, *_edges(pairs, graph), list(parts))
    return found


def _edges(pairs: Pairs, graph: AtomicGraph) -> tuple[Tensor, ...]:
    return graph.first_edge, graph.senders, pairs.of_edge, pairs.first, graph.receivers


def _library(x: Tensor) -> ctypes.CDLL | None:
    return native_rows(SOURCE, x.dtype, x.shape[2])


@torch.library.impl("modelforge::sum_over_neighbours", "cpu")
def _sum_over_neighbours(filters: Tensor, x: Tensor, *edges_and_parts: object) -> Tensor:
    sums = torch.empty_like(x, memory_format=torch.contiguous_format)
    _call("sum_over_neighbours", edges_and_parts, filters, x, sums)
    return sums


@torch.library.impl("modelforge::products_of_pairs", "cpu")
def _products_of_pairs(x: Tensor, y: Tensor, *edges_and_parts: object) -> Tensor:
    *edges, parts = edges_and_parts
    products = x.new_empty(len(edges[3]), len(parts), x.shape[2])  # type: ignore[arg-type]
    _call("products_of_pairs", edges_and_parts, x, y, products)
    return products


def _call(name: str, edges_and_parts: Sequence[object], *tensors: Tensor) -> None:
    *edges, parts = edges_and_parts
    assert isinstance(parts, list)
    library = _library(tensors[-1])
    assert library is not None, "native code cannot be loaded any more"
    tables = [table.contiguous() for table in edges if isinstance(table, Tensor)]
    widths = (c_longlong * len(parts))(*parts)
    sizes = (len(tables[0]), len(tables[1]), len(tables[3]), len(parts), sum(parts), torch.get_num_threads())
    pointers = (c_void_p(table.data_ptr()) for table in tables)
    described = _Pairs(*pointers, ctypes.cast(widths, c_void_p), *sizes)
    kept = [tensor.contiguous() for tensor in tensors]  # alive until the call is over
    getattr(library, name)(ctypes.byref(described), *(c_void_p(tensor.data_ptr()) for tensor in kept))


@torch.library.register_fake("modelforge::sum_over_neighbours")  # type: ignore[untyped-decorator]
def _(filters: Tensor, x: Tensor, *edges_and_parts: object) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("modelforge::products_of_pairs")  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, *edges_and_parts: object) -> Tensor:  # noqa: ARG001
    *edges, parts = edges_and_parts
    return x.new_empty(edges[3].shape[0], len(parts), x.shape[2])  # type: ignore[attr-defined, arg-type]
