"""Edges of a set as they are gathered into batches. S_b chosen structures, N_b atoms and E_b edges of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from modelforge.data.batching.rows import Rows, Spans


@dataclass(frozen=True, eq=False)
class GatheredEdges:
    """The edges of a batch, sorted by receiver."""

    index: Tensor  # (2, E_b) receiver, sender
    vectors: Tensor  # (E_b, 3) angstrom
    reverse: Tensor  # (E_b,)
    first: Tensor  # (N_b,)
    spans: Spans  # which rows of the set they are


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """Edges of all structures of a set; S structures, N atoms, E edges of the set."""

    num_edges: Tensor  # (S,)
    first_edge: Tensor  # (S,)
    edges_of_atom: Rows  # (N,) how many edges each atom receives
    sender_shift: Rows  # (E,) sender minus receiver
    reverse_shift: Rows  # (E,) place of the reverse edge minus the place of the edge
    vectors: Rows  # (E, 3)

    def gather(self, chosen: Tensor, atoms: Spans, dtype: torch.dtype) -> GatheredEdges:
        """The edges of the chosen structures (S_b,), whose atoms are these."""
        edges = Spans(self.first_edge[chosen], self.num_edges[chosen])
        edges_of_atom = self.edges_of_atom.gather(atoms).long()
        vectors = self.vectors.gather(edges).to(dtype)
        receivers = torch.repeat_interleave(edges_of_atom, output_size=vectors.shape[0])  # (E_b,)
        return GatheredEdges(
            index=torch.stack([receivers, receivers + self.sender_shift.gather(edges)]),
            vectors=vectors,
            reverse=torch.arange(vectors.shape[0], device=vectors.device) + self.reverse_shift.gather(edges),
            first=edges_of_atom.cumsum(0) - edges_of_atom,
            spans=edges,
        )


def no_edges(like: GatheredEdges) -> GatheredEdges:
    """No edges, in the place of others; for an atom, too, there is no first one."""
    return GatheredEdges(like.index[:, :0], like.vectors[:0], like.reverse[:0], like.first[:0], like.spans)
