"""Triples as tensors: what sums over the triples of atoms, and over those of edges, need to know.

Legend: N atoms, E edges, M triples, P unordered pairs of Z elements. Nothing is sorted, and no size is read back.
"""

import torch
from torch import Tensor

from modelforge.atoms.graph import AtomicGraph
from modelforge.atoms.sums import Segments, starts_of


def edges_of_triples(graph: AtomicGraph) -> Segments:
    """The first edges of all triples, then the second ones, as 2M rows that belong to E edges.

    A near edge of rank r among the n near edges of its atom is in n - 1 triples, one with each other rank s: that one is
    number s of its triples, or s - 1 if s > r.
    """
    edges = graph.triples.flatten()  # (2M,)
    others = graph.triples.flip(0).flatten()
    is_near = torch.zeros_like(graph.receivers).index_fill(0, edges, 1)  # (E,)
    before = torch.cat([is_near.new_zeros(1), is_near.cumsum(0)])  # (E + 1,) near edges before each edge, and all
    first = before[graph.first_edge]  # (N,)
    num_near = torch.cat([first[1:], before[-1:]]) - first
    rank = before[:-1] - first[graph.receivers]  # (E,)
    num_triples = is_near * (num_near[graph.receivers] - 1)
    starts = num_triples.cumsum(0) - num_triples
    rank_of_other = rank[others]
    place = starts[edges] + rank_of_other - (rank_of_other > rank[edges]).long()  # (2M,) each place once
    order = torch.empty_like(place).scatter(0, place, torch.arange(place.shape[0], device=place.device))
    return Segments(order, starts, edges)


def element_pairs_of_triples(graph: AtomicGraph, column: Tensor, *, num_elements: int) -> Segments:
    """The triples as M rows that belong to the pairs of elements of each atom, (0, 0), (0, 1), ... (1, 1), ..., N P owners.

    `column` (Z_max + 1,) is the place of each element; it must rise with the atomic number, as triples are sorted by that.
    """
    num_pairs = num_elements * (num_elements + 1) // 2
    first, second = column[graph.atomic_numbers[graph.senders[graph.triples]]]  # (M,)
    pair = first * (2 * num_elements - 1 - first) // 2 + second
    return _of_sorted(graph.receivers[graph.triples[0]] * num_pairs + pair, graph.num_atoms * num_pairs)


def _of_sorted(owner: Tensor, num_owners: int) -> Segments:
    return Segments(torch.arange(owner.shape[0], device=owner.device), starts_of(owner, num_owners), owner)
