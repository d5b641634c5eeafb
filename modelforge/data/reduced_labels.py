"""Labels less the fixed energies of the potential: what its network is trained on. Those of large data are kept on disk.

Legend: S structures, N atoms.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelforge.data.store.columns import INDEX, Columns, ColumnWriter, DamagedColumns
from modelforge.data.store.opening import OpenedData
from modelforge.data.store.prepared_once import Say, prepared_once
from modelforge.data.structures import Array, Floats, Integers, Structures
from modelforge.errors import UserError
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.pairs import FixedEnergy

KEPT_FROM_ATOMS = 200_000  # smaller data take a second or so
ATOMS_AT_A_TIME = 50_000
NAMES = ("energy", "forces", "stress", "fixed_energy")


@dataclass(frozen=True, eq=False)
class ReducedLabels:
    """Structures whose energy, forces and stress are what the fixed energies leave of them."""

    structures: Structures  # with labels for those that were asked for, if there are fixed energies at all
    fixed_energy: Floats  # (S,) eV, what was taken off; NaN for structures that were not asked for
    terms: FixedTerms
    columns: Columns | None  # what the forces are mapped from, if they are


def reduced_labels(opened: OpenedData, terms: FixedTerms, used: Integers, *, cache: Path, say: Say) -> ReducedLabels:
    """The labels of the used structures less the fixed energies, in float64; all as they are where there is none.

    A `UserError` where a fixed energy is not finite, or cannot be computed.
    """
    structures = opened.structures
    if terms.is_empty:
        return ReducedLabels(structures, np.zeros(len(structures)), terms, opened.columns)
    is_used = np.zeros(len(structures), dtype=bool)
    is_used[used] = True
    if structures.offsets[-1] < KEPT_FROM_ATOMS:
        return _with_labels(structures, _labels(structures, is_used, terms), terms, None)
    digest = hashlib.blake2b(f"{opened.content_hash} {terms.key} ".encode() + is_used.tobytes(), digest_size=16)
    folder = cache / "fixed_energies" / digest.hexdigest()
    what = f"computing {terms} of {len(used):,} structures once, kept in {folder}"

    def make(temporary: Path) -> None:
        _write(temporary, opened, is_used, terms)

    for _ in range(2):
        prepared_once(folder, make, what=what, say=say)
        try:
            columns = Columns(folder)
            return _with_labels(structures, columns.arrays, terms, columns)
        except DamagedColumns as error:
            say(f"{error}: damaged; computing them again")
            with suppress(OSError):  # they are not made again then, and stay damaged
                (folder / INDEX).unlink()
    raise UserError(f"dataset.cache_folder: {folder} is damaged again and again; check the disk, or name another folder")


def less_fixed(structures: Structures, fixed: FixedEnergy) -> Structures:
    """The structures with what a fixed energy leaves of their labels."""
    return replace(
        structures,
        energy=structures.energy - fixed.energy,
        forces=structures.forces - fixed.forces,
        stress=structures.stress - fixed.stress,
    )


def _with_labels(structures: Structures, labels: dict[str, Array], terms: FixedTerms, columns: Columns | None) -> ReducedLabels:
    reduced = replace(structures, energy=labels["energy"], forces=labels["forces"], stress=labels["stress"])
    return ReducedLabels(reduced, labels["fixed_energy"], terms, columns)


def _write(folder: Path, opened: OpenedData, is_used: NDArray[np.bool_], terms: FixedTerms) -> None:
    writer = ColumnWriter(folder)
    first = 0
    try:
        for piece in opened.structures.pieces(ATOMS_AT_A_TIME):
            for name, values in _labels(piece, is_used[first : first + len(piece)], terms).items():
                writer.add(name, values)
            first += len(piece)
            if opened.columns is not None:
                opened.columns.release()
        writer.finish({"terms": terms.key})
    finally:
        writer.close()


def _labels(piece: Structures, is_used: NDArray[np.bool_], terms: FixedTerms) -> dict[str, Array]:
    """The columns of `NAMES` for some structures, NaN for those that are not used."""
    chosen = np.flatnonzero(is_used)
    num, num_atoms = len(piece), len(piece.atomic_numbers)
    labels = {
        name: np.full(shape, np.nan) for name, shape in zip(NAMES, ((num,), (num_atoms, 3), (num, 3, 3), (num,)), strict=True)
    }
    if not len(chosen):
        return labels
    some = piece.take(chosen)
    fixed = terms.of(some)
    _refuse_infinite(some, fixed, terms)
    reduced = less_fixed(some, fixed)
    labels["energy"][chosen], labels["stress"][chosen], labels["fixed_energy"][chosen] = (
        reduced.energy,
        reduced.stress,
        fixed.energy,
    )
    labels["forces"][piece.atoms_of(chosen)] = reduced.forces
    return labels


def _refuse_infinite(structures: Structures, fixed: FixedEnergy, terms: FixedTerms) -> None:
    has_forces = np.logical_and.reduceat(np.isfinite(fixed.forces).all(axis=1), structures.offsets[:-1])
    if len(infinite := np.flatnonzero(~(np.isfinite(fixed.energy) & has_forces))):
        raise UserError(
            f"{structures.place(int(infinite[0]))}: must have a finite energy and finite forces of {terms} (got "
            f"{fixed.energy[infinite[0]]} eV); two of its atoms lie upon each other: correct it, or leave it out of the data"
        )
