"""Sums over edges and atoms, and the values that edges and atoms take from their owners.

Legend: S structures, N atoms, E edges. Each sum is the transpose of a selection, and each is the other's derivative, so all
can be differentiated any number of times. Sums run over sorted segments: the result does not depend on the number of threads,
and no atomic additions are needed.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph


def sum_over_edges(per_edge: Tensor, graph: AtomicGraph) -> Tensor:
    """Sum an edge quantity over the edges that each atom receives, (E, ...) -> (N, ...)."""
    return _segment_sum(per_edge, _counting(per_edge), graph.first_edge, graph.receivers)


def sum_over_sent_edges(per_edge: Tensor, graph: AtomicGraph) -> Tensor:
    """Sum an edge quantity over the edges that each atom sends, (E, ...) -> (N, ...)."""
    return _segment_sum(per_edge, graph.reverse_edge, graph.first_edge, graph.senders)


def at_senders(per_atom: Tensor, graph: AtomicGraph) -> Tensor:
    """The value of each edge's sender, (N, ...) -> (E, ...)."""
    return _select(per_atom, graph.reverse_edge, graph.first_edge, graph.senders)


def at_receivers(per_atom: Tensor, graph: AtomicGraph) -> Tensor:
    """The value of each edge's receiver, (N, ...) -> (E, ...)."""
    return _select(per_atom, _counting(graph.receivers), graph.first_edge, graph.receivers)


def sum_over_atoms(per_atom: Tensor, graph: AtomicGraph) -> Tensor:
    """Sum an atom quantity over the atoms of each structure, (N, ...) -> (S, ...)."""
    return _segment_sum(per_atom, _counting(per_atom), graph.first_atom, graph.structure_index)


def at_atoms(per_structure: Tensor, graph: AtomicGraph) -> Tensor:
    """The value of each atom's structure, (S, ...) -> (N, ...)."""
    return _select(per_structure, _counting(graph.structure_index), graph.first_atom, graph.structure_index)


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows that belong to owners, R rows and G owners."""

    order: Tensor  # (R,) the rows, owner after owner
    starts: Tensor  # (G,) where the rows of each owner begin in that order
    owner: Tensor  # (R,) the owner of each row


def sum_over_segments(rows: Tensor, segments: Segments) -> Tensor:
    """Sum a quantity over the rows of each owner, (R, ...) -> (G, ...)."""
    return _segment_sum(rows, segments.order, segments.starts, segments.owner)


def at_rows(owners: Tensor, segments: Segments) -> Tensor:
    """The value of each row's owner, (G, ...) -> (R, ...)."""
    return _select(owners, segments.order, segments.starts, segments.owner)


def elements_of_edges(graph: AtomicGraph, column: Tensor, *, num_elements: int) -> Segments:
    """The edges as E rows that belong to the elements of the senders of each atom, N Z owners.

    `column` (Z_max + 1,) is the place of each element.
    """
    owner = graph.receivers * num_elements + column[graph.atomic_numbers[graph.senders]]
    order = torch.argsort(owner.int(), stable=True)  # half as long as with 64 bits
    return Segments(order, starts_of(owner[order], graph.num_atoms * num_elements), owner)


def starts_of(sorted_owner: Tensor, num_owners: int) -> Tensor:
    """Where the rows of each owner begin, if rows are sorted by owner, (R,) -> (G,)."""
    return torch.searchsorted(sorted_owner, torch.arange(num_owners, device=sorted_owner.device))


def _counting(rows: Tensor) -> Tensor:
    return torch.arange(rows.shape[0], device=rows.device)


# Below: rows (M, ...), owners (G, ...). `order` (M,) lists the rows segment by segment, `starts` (G,) is where each segment
# begins in that list, and `owner` (M,) is the segment of each row.


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, order: Tensor, starts: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(order, starts, owner)
        # embedding_bag is the one operator that selects and sums rows without writing the selection; it stays a
        # call of its own when Inductor compiles, which would otherwise fuse the selection into a scalar reduction.
        sums = functional.embedding_bag(order, rows.reshape(rows.shape[0], -1), starts, mode="sum")
        return sums.view(starts.shape[0], *rows.shape[1:])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _select(gradients[0], *ctx.saved_tensors), None, None, None  # type: ignore[attr-defined]


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, owners: Tensor, order: Tensor, starts: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(order, starts, owner)
        return owners.index_select(0, owner)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _segment_sum(gradients[0], *ctx.saved_tensors), None, None, None  # type: ignore[attr-defined]


def _segment_sum(rows: Tensor, order: Tensor, starts: Tensor, owner: Tensor) -> Tensor:
    if rows.shape[0] == 0:  # zeros that a loss can still be differentiated through
        return rows.sum(dim=0, keepdim=True).expand(starts.shape[0], *rows.shape[1:])
    return cast(Tensor, _SegmentSum.apply(rows, order, starts, owner))  # type: ignore[no-untyped-call]


def _select(owners: Tensor, order: Tensor, starts: Tensor, owner: Tensor) -> Tensor:
    return cast(Tensor, _Select.apply(owners, order, starts, owner))  # type: ignore[no-untyped-call]
