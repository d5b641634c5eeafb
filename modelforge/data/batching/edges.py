"""Edges of many structures in the compact form that batches are gathered from; those of large data are kept on disk.

Legend: S structures, N atoms, E edges of all of them.
"""

from contextlib import suppress
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelforge.atoms.neighbors import Edges, find_edges
from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.prepared_once import Say, prepared_once, silent
from modelforge.data.structures import Array, Integers, Structures
from modelforge.errors import UserError

VERSION = 2  # of the rules by which edges are found and sorted
LONGEST_CUTOFF = 200.0  # angstrom: beyond it, all pairs of atoms are meant, which in a crystal are without end
KEPT_FROM_ATOMS = 200_000  # smaller data find their edges in a second or so
ATOMS_AT_A_TIME = 50_000
NAMES = ("num_edges", "edges_of_atom", "sender_shift", "reverse_shift", "vectors")


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Edges sorted by receiver, structure after structure; numbers are relative, so that they fit into few bytes."""

    num_edges: Integers  # (S,)
    edges_of_atom: NDArray[np.int32]  # (N,) how many edges each atom receives
    sender_shift: NDArray[np.int16] | NDArray[np.int32]  # (E,) sender minus receiver
    reverse_shift: NDArray[np.int32]  # (E,) place of the reverse edge minus the place of the edge
    vectors: Array  # (E, 3) angstrom, in the precision of the training
    columns: Columns | None = None  # where they are mapped from


def edges_of(
    structures: Structures,
    *,
    cutoff: float,
    dtype: str = "float32",
    key: str = "",
    cache: Path | None = None,
    mapped: Columns | None = None,
    say: Say = silent,
) -> EdgeTable:
    """Edges of all structures within the cutoff in angstrom; with a cache and a key (the content hash) large ones are kept.

    `mapped` are the columns that the structures come from, if they are mapped files.
    """
    refuse_endless(structures, cutoff=cutoff)
    if cache is None or structures.offsets[-1] < KEPT_FROM_ATOMS:
        parts = [_part(piece, cutoff=cutoff, dtype=dtype) for piece in structures.pieces(ATOMS_AT_A_TIME)]
        joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in NAMES}
        return EdgeTable(**joined)
    folder = cache / "edges" / f"{key}-{cutoff!r}-{dtype}-{VERSION}"
    what = f"finding the edges of {len(structures):,} structures once, kept in {folder}"

    def make(temporary: Path) -> None:
        _write(temporary, structures, cutoff=cutoff, dtype=dtype, mapped=mapped)

    for _ in range(2):
        prepared_once(folder, make, what=what, say=say)
        try:
            columns = Columns(folder)
            return EdgeTable(**{name: columns.arrays[name] for name in NAMES}, columns=columns)
        except DamagedColumns as error:
            say(f"{error}: damaged; finding them again")
            with suppress(OSError):  # they are not kept again then
                (folder / INDEX).unlink()
    return edges_of(structures, cutoff=cutoff, dtype=dtype)


def refuse_endless(structures: Structures, members: Integers | slice = slice(None), *, cutoff: float) -> None:
    """A `UserError` where a cutoff means all pairs of atoms, and one of the members is periodic."""
    if cutoff <= LONGEST_CUTOFF:
        return
    periodic = np.arange(len(structures))[members][structures.periodic[members].any(axis=1)]
    if len(periodic):
        what = "potential.coulomb has no cutoff" if isinf(cutoff) else f"the cutoff of the potential is {cutoff:g} A"
        raise UserError(
            f"{structures.place(int(periodic[0]))}: is periodic, but {what}, so all pairs of atoms would count, which are "
            "without end; give a cutoff (of the Coulomb energy: potential.coulomb.cutoff), or leave periodic structures out"
        )


def _write(folder: Path, structures: Structures, *, cutoff: float, dtype: str, mapped: Columns | None) -> None:
    writer = ColumnWriter(folder)
    shift_type = _shift_type(structures)
    try:
        for piece in structures.pieces(ATOMS_AT_A_TIME):
            part = _part(piece, cutoff=cutoff, dtype=dtype)
            for name in NAMES:
                writer.add(name, part[name].astype(shift_type) if name == "sender_shift" else part[name])
            if mapped is not None:
                mapped.release()
        writer.finish({"cutoff": cutoff})
    finally:
        writer.close()


def _part(piece: Structures, *, cutoff: float, dtype: str) -> dict[str, Array]:
    edges = find_edges(piece.num_atoms, piece.positions, piece.cell, piece.periodic, cutoff=cutoff)
    receivers = edges.receivers + np.repeat(piece.offsets[:-1], edges.num_edges)
    return {
        "num_edges": edges.num_edges,
        "edges_of_atom": np.bincount(receivers, minlength=len(piece.atomic_numbers)).astype(np.int32),
        "sender_shift": (edges.senders - edges.receivers).astype(_shift_type(piece)),
        "reverse_shift": edges.reverse - _places(edges),
        "vectors": edges.vectors.astype(dtype),
    }


def _places(edges: Edges) -> NDArray[np.int32]:
    """Place of each edge among those of its structure, (E,)."""
    first = np.cumsum(edges.num_edges) - edges.num_edges
    return (np.arange(len(edges.senders)) - np.repeat(first, edges.num_edges)).astype(np.int32)


def _shift_type(structures: Structures) -> str:
    return "int16" if structures.num_atoms.max() < 2**15 else "int32"
