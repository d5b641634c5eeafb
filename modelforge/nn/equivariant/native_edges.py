"""`edge_products.c` as functions of tensors: the same as the operators of `edge_products.py`, on the CPU."""

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from modelforge.nn.equivariant.edge_layout import Layout
from modelforge.nn.native.library import native_rows

SOURCE = Path(__file__).with_name("edge_products.c")
WIDEST = 13  # components of a result, in edge_products.c
NUM_TABLES = 6
"""Tables that native code needs: first edge that each atom receives, senders, reverses, pairs of edges, both edges of pairs."""


class _Edges(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("layout", "first", "senders", "reverses", "pairs", "first_of_pair", "second_of_pair")),
        *((f"num_{name}", c_longlong) for name in ("atoms", "edges", "pairs", "features", "paths", "entries")),
        ("num_threads", c_int),
    )


def library_for(weights: Tensor) -> ctypes.CDLL | None:
    """The compiled source for weights (Q, P, C) on the CPU, if there can be one."""
    return native_rows(SOURCE, weights.dtype, weights.shape[2]) if weights.device.type == "cpu" else None


def push(
    weights: Sequence[Tensor], features: Sequence[Tensor], numbers: Tensor, tables: Sequence[Tensor], layout: Layout
) -> Tensor:
    """See `edge_products.push`."""
    weights, features = [w.contiguous() for w in weights], [h.contiguous() for h in features]
    results = numbers.new_empty(layout.num_results * features[0].shape[1], features[0].shape[2])
    _call("push", tables, layout, results, len(weights), _pointers(weights), _pointers(features), numbers.contiguous(), results)
    return results


def pull(
    weights: Tensor | None, features: Tensor | None, numbers: Tensor, results: Tensor, tables: Sequence[Tensor], layout: Layout
) -> list[Tensor]:
    """See `edge_products.pull`; what is not asked for is empty."""
    num_atoms, num_pairs, channels, num_paths = len(tables[0]), len(tables[4]), results.shape[1], sum(layout.num_paths)
    of_edges = results.new_empty(0 if features is None else len(numbers), num_paths, channels)
    by_weights = results.new_empty((0,) if features is None else (num_pairs, num_paths, channels))
    by_features = results.new_empty((0,) if weights is None else (sum(layout.dimensions), num_atoms, channels))
    if len(numbers) == 0:  # tensors without elements have no address, and would be taken for absent ones
        return [by_weights.zero_(), by_features.zero_()]
    given = [None if tensor is None else tensor.contiguous() for tensor in (weights, features)]
    arguments = (numbers.contiguous(), results.contiguous(), of_edges, by_weights, by_features)
    _call("pull", tables, layout, results, *given, *arguments)
    return [by_weights, by_features]


def numbers_of(weights: Tensor, features: Tensor, results: Tensor, tables: Sequence[Tensor], layout: Layout) -> Tensor:
    """See `edge_products.numbers_of`."""
    numbers = weights.new_empty(len(tables[1]), len(layout.entries))
    arguments = (weights.contiguous(), features.contiguous(), results.contiguous(), numbers)
    _call("numbers_of", tables, layout, results, *arguments)
    return numbers


def _call(name: str, tables: Sequence[Tensor], layout: Layout, results: Tensor, *arguments: object) -> None:
    library = native_rows(SOURCE, results.dtype, results.shape[1])
    assert library is not None, "tables were made for native code, which cannot be loaded any more"
    pointers = (c_void_p(table.data_ptr()) for table in tables)
    sizes = (len(tables[0]), len(tables[1]), len(tables[4]), *_sizes(layout), torch.get_num_threads())
    edges = _Edges(ctypes.cast(_description(layout), c_void_p), *pointers, *sizes)
    getattr(library, name)(ctypes.byref(edges), *(_argument(argument) for argument in arguments))


def _argument(argument: object) -> object:
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    return c_longlong(argument) if isinstance(argument, int) else argument


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


@cache
def _sizes(layout: Layout) -> tuple[int, int, int]:
    assert max(layout.widths_of_products) <= WIDEST, "a result of a degree above 6"
    return sum(layout.dimensions), sum(layout.num_paths), len(layout.entries)


@cache
def _description(layout: Layout) -> "ctypes.Array[c_longlong]":
    numbers = layout.description
    return (c_longlong * len(numbers))(*numbers)
