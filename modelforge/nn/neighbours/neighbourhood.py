"""Who sends to whom: the selections and sums by which atoms and edges exchange rows, without differentiation.

Features are stored component after component, (C, N, F): each component is a table of rows that lies together in memory, and
an operation on the rows of all edges stays within a processor's cache.

N atoms, E edges, P pairs, F features, C components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.neighbours.pairs import Pairs


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Indices that all sums over neighbours of a graph need."""

    pairs: Pairs
    sign: Tensor  # (E, 1) 1 for the first edge of a pair, -1 for the second
    senders: Tensor  # (E,)
    receivers: Tensor  # (E,)
    starts: Tensor  # (N,) first edge that each atom receives
    edges: Tensor  # (3E,) all edges, three times
    starts_of_vectors: Tensor  # (3N,) where the edges of each atom begin in them
    senders_of_vectors: Tensor  # (3E,) rows of a sender's three components, edge after edge
    triplets: Tensor  # (E,) where the three of each edge begin in them


def neighbourhood_of(graph: AtomicGraph, pairs: Pairs) -> Neighbourhood:
    """The indices of a graph."""
    num_atoms, num_edges = graph.num_atoms, graph.num_edges
    edges = torch.arange(num_edges, device=graph.senders.device)
    components = torch.arange(3, device=edges.device)
    return Neighbourhood(
        pairs=pairs,
        sign=signs_of(pairs, graph.edge_vectors.dtype),
        senders=graph.senders,
        receivers=graph.receivers,
        starts=graph.first_edge,
        edges=edges.repeat(3),
        starts_of_vectors=(components[:, None] * num_edges + graph.first_edge).flatten(),
        senders_of_vectors=(graph.senders[:, None] + components * num_atoms).flatten(),
        triplets=3 * edges,
    )


def signs_of(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """1 for the first edge of each pair, -1 for the second, (E, 1)."""
    edges = torch.arange(pairs.of_edge.shape[0], device=pairs.of_edge.device)
    return ((edges == pairs.first[pairs.of_edge]).to(dtype) * 2.0 - 1.0)[:, None]


def of_edges(per_pair: Tensor, near: Neighbourhood) -> Tensor:
    """The value of each edge's pair, (P, F) -> (E, F), as a constant: no gradient is to run through it."""
    return per_pair.detach().index_select(0, near.pairs.of_edge)


def vectors_of_edges(per_pair: Tensor, near: Neighbourhood) -> Tensor:
    """The vectors of pairs as their edges see them, (P, 3) -> (E, 3)."""
    return of_edges(per_pair, near) * near.sign


def of_pairs(per_edge: Tensor, near: Neighbourhood) -> Tensor:
    """Sum over the two edges of each pair, (E, F) -> (P, F)."""
    return per_edge.index_select(0, near.pairs.first).add_(per_edge.index_select(0, near.pairs.second))


def received(per_edge: Tensor, near: Neighbourhood) -> Tensor:
    """Sum over the edges that each atom receives, (E, F) -> (N, F)."""
    edges = near.edges[: per_edge.shape[0]]
    return functional.embedding_bag(edges, per_edge, near.starts, mode="sum")


def received_along(per_edge: Tensor, directions: Tensor, near: Neighbourhood) -> Tensor:
    """sum_j u_ij x_ij, (E, F) and (E, 3) -> (3, N, F)."""
    weights = directions.T.reshape(-1)  # (3E,)
    sums = functional.embedding_bag(near.edges, per_edge, near.starts_of_vectors, mode="sum", per_sample_weights=weights)
    return sums.view(3, -1, per_edge.shape[1])


def sent_along(vectors: Tensor, directions: Tensor, near: Neighbourhood) -> Tensor:
    """<u_ij, v_j> of the sender j of each edge, (3, N, F) and (E, 3) -> (E, F)."""
    rows, weights = vectors.reshape(-1, vectors.shape[2]), directions.reshape(-1)  # (3N, F), (3E,)
    return functional.embedding_bag(near.senders_of_vectors, rows, near.triplets, mode="sum", per_sample_weights=weights)


def products_with_received(per_edge: Tensor, vectors: Tensor, near: Neighbourhood) -> Tensor:
    """sum_F x_ij v_i of the receiver i of each edge, (E, F) and (3, N, F) -> (E, 3)."""
    rows = [(component.index_select(0, near.receivers).mul_(per_edge)).sum(dim=1) for component in vectors.unbind()]
    return torch.stack(rows, dim=1)
