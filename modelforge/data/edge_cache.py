"""Edges that took long to find are kept on disk, by the content of the structures and the cutoff.

The folder is $XDG_CACHE_HOME/modelforge/edges (~/.cache by default); whatever lies there may be deleted at any time.
"""

import contextlib
import hashlib
import os
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from modelforge.atoms.neighbors import Edges, find_edges
from modelforge.data.structures import Structures
from modelforge.files import replacing

VERSION = 1  # of the rules by which edges are found and sorted
WORTH_KEEPING = 1.0  # seconds
NAMES = tuple(field.name for field in fields(Edges))


def edges_of(structures: Structures, *, cutoff: float) -> Edges:
    """Edges of all structures within the cutoff in angstrom: from the cache, or found and perhaps kept."""
    path = cache_folder() / f"{_key(structures, cutoff)}.npz"
    if (kept := _read(path)) is not None:
        return kept
    begun = time.perf_counter()
    edges = find_edges(structures.num_atoms, structures.positions, structures.cell, structures.periodic, cutoff=cutoff)
    if time.perf_counter() - begun > WORTH_KEEPING:
        _keep(path, edges)
    return edges


def cache_folder() -> Path:
    """Where edges are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelforge" / "edges"


def _key(structures: Structures, cutoff: float) -> str:
    digest = hashlib.blake2b(f"{VERSION} {cutoff!r}".encode(), digest_size=16)
    for column in (structures.num_atoms, structures.positions, structures.cell, structures.periodic):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Edges | None:
    """Edges of the cache; a file that is not there or damaged is as good as none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return Edges(**{name: kept[name] for name in NAMES})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _keep(path: Path, edges: Edges) -> None:
    """Write at once or not at all; a full or read-only disk only means that edges are found again next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                num_edges=edges.num_edges,
                receivers=edges.receivers,
                senders=edges.senders,
                vectors=edges.vectors,
                reverse=edges.reverse,
            )
