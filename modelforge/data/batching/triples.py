"""Triples of many structures in the compact form that batches are gathered from; those of large data are kept on disk.

Legend: S structures, N atoms, E edges, M triples of all of them; b marks those of a batch.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelforge.atoms.triples import find_triples
from modelforge.data.batching.edge_rows import GatheredEdges
from modelforge.data.batching.edges import EdgeTable
from modelforge.data.batching.rows import Rows, Spans
from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.prepared_once import Say, prepared_once, silent
from modelforge.data.structures import Array, Integers, Structures

VERSION = 1  # of the rules by which triples are found and sorted
ATOMS_AT_A_TIME = 10_000
LARGEST_BYTE = 255
NAMES = ("triples_of_atom", "triple_edges")


@dataclass(frozen=True, eq=False)
class TripleTable:
    """Triples, structure after structure; edges are counted from the first that the atom receives: a byte, if these are few."""

    num_triples: Integers  # (S,)
    triples_of_atom: NDArray[np.int32]  # (N,)
    edges: Array  # (M, 2)
    columns: Columns | None = None  # where they are mapped from


@dataclass(frozen=True, eq=False)
class TripleRows:
    """Triples of all structures of a set, as they are gathered into batches."""

    num_triples: Tensor  # (S,)
    first_triple: Tensor  # (S,)
    triples_of_atom: Rows  # (N,)
    edges: Rows  # (M, 2)

    def gather(self, chosen: Tensor, atoms: Spans, edges: GatheredEdges) -> Tensor:
        """The triples of the chosen structures (S_b,), whose atoms and edges are these, (2, M_b)."""
        local = self.edges.gather(Spans(self.first_triple[chosen], self.num_triples[chosen])).long()  # (M_b, 2)
        first_edge = torch.repeat_interleave(edges.first, self.triples_of_atom.gather(atoms).long(), output_size=local.shape[0])
        return (local + first_edge[:, None]).T.contiguous()


def triples_of(structures: Structures, edges: EdgeTable, *, cutoff: float, say: Say = silent) -> TripleTable:
    """Triples of all structures of edges within the cutoff in angstrom; they are kept on disk where the edges are."""
    if edges.columns is None:
        parts = list(_parts(structures, edges, cutoff=cutoff))
        of_atom, of_edges = (np.concatenate(some) for some in zip(*parts, strict=True))
        return TripleTable(_of_structures(structures, of_atom), of_atom, of_edges)
    beside = edges.columns.folder
    folder = beside.with_name(f"{beside.name}-triples-{cutoff!r}-{VERSION}")
    what = f"finding the triples of {len(structures):,} structures once, kept in {folder}"
    for _ in range(2):
        prepared_once(folder, lambda temporary: _write(temporary, structures, edges, cutoff=cutoff), what=what, say=say)
        try:
            columns = Columns(folder)
            of_atom, of_edges = (columns.arrays[name] for name in NAMES)
            return TripleTable(_of_structures(structures, of_atom), of_atom, of_edges, columns)
        except DamagedColumns as error:
            say(f"{error}: damaged; finding them again")
            with suppress(OSError):  # they are not kept again then
                (folder / INDEX).unlink()
    return triples_of(structures, replace(edges, columns=None), cutoff=cutoff)


def _write(folder: Path, structures: Structures, edges: EdgeTable, *, cutoff: float) -> None:
    writer = ColumnWriter(folder)
    try:
        for part in _parts(structures, edges, cutoff=cutoff):
            for name, values in zip(NAMES, part, strict=True):
                writer.add(name, values)
            if edges.columns is not None:
                edges.columns.release()
        writer.finish({"cutoff": cutoff})
    finally:
        writer.close()


def _parts(structures: Structures, edges: EdgeTable, *, cutoff: float) -> Iterator[tuple[Array, Array]]:
    """The columns of consecutive structures."""
    small = "uint8" if int(edges.edges_of_atom.max()) <= LARGEST_BYTE + 1 else "int32"
    atom = edge = 0
    for piece in structures.pieces(ATOMS_AT_A_TIME):
        edges_of_atom = edges.edges_of_atom[atom : atom + len(piece.atomic_numbers)].astype(np.int64)
        of_piece = slice(edge, edge + int(edges_of_atom.sum()))
        senders = np.repeat(np.arange(len(edges_of_atom)), edges_of_atom) + edges.sender_shift[of_piece]
        is_near = np.einsum("ij,ij->i", *[edges.vectors[of_piece].astype(np.float64)] * 2) < cutoff**2
        triples = find_triples(edges_of_atom, piece.atomic_numbers[senders], is_near)
        atom, edge = atom + len(edges_of_atom), of_piece.stop
        yield triples.triples_of_atom.astype(np.int32), triples.edges.astype(small)


def _of_structures(structures: Structures, triples_of_atom: NDArray[np.int32]) -> Integers:
    return np.add.reduceat(triples_of_atom, structures.offsets[:-1], dtype=np.int64)
