"""Write structures with reference and predicted labels as extended XYZ, for run folders.

Numbers are written with all their digits, so that reading gives the same bits again. A label that is NaN is left out.

Legend: S structures, N atoms of all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from modelforge.data.sources.extxyz.header import SPECIAL
from modelforge.data.structures import COLUMNS, LABELS, Array, Floats, Structures
from modelforge.files import replacing

ATOMS_AT_A_TIME = 50_000


@dataclass(frozen=True, eq=False)
class Extra:
    """A label to write: a value or several for each structure or atom."""

    name: str
    values: Array  # (S, ...), (N,) or (N, 3)

    def take(self, chosen: slice) -> "Extra":
        """The values of some structures, or of some atoms."""
        return Extra(self.name, self.values[chosen])


def write_extxyz(
    path: Path,
    structures: Structures,
    *,
    predicted_energy: Floats | None = None,
    predicted_forces: Floats | None = None,
    predicted_stress: Floats | None = None,
    predicted_dipole: Floats | None = None,
    predicted_quadrupole: Floats | None = None,
    predicted_partial_charges: Floats | None = None,
) -> None:
    """Write structures with all their labels, and predictions under keys that begin with `predicted_`; replaces the file.

    The predictions have the shapes of the labels and, as all numbers here, units of eV, angstrom and elementary charges. The
    file appears under its name only when it is complete.
    """
    predicted = {
        "energy": predicted_energy,
        "stress": predicted_stress,
        "dipole": predicted_dipole,
        "quadrupole": predicted_quadrupole,
        "forces": predicted_forces,
        "partial_charges": predicted_partial_charges,
    }
    of_structures = [Extra("group", structures.group)] if has_groups(structures) else []
    of_structures += [Extra(name, getattr(structures, name)) for name in LABELS if not COLUMNS[name].per_atom]
    of_atoms = [Extra(name, getattr(structures, name)) for name in LABELS if COLUMNS[name].per_atom]
    for name, values in predicted.items():
        if values is not None:
            assert values.shape == getattr(structures, name).shape
            (of_atoms if COLUMNS[name].per_atom else of_structures).append(Extra(f"predicted_{name}", values))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(frame_texts(structures, of_structures, of_atoms))


def has_groups(structures: Structures) -> bool:
    """Whether some structures belong together."""
    return len(np.unique(structures.group)) < len(structures)


def frame_texts(structures: Structures, of_structures: list[Extra], of_atoms: list[Extra]) -> Iterator[str]:
    """The text of each structure, made in pieces of many atoms so that memory stays bounded."""
    offsets = structures.offsets
    first = 0
    while first < len(structures):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + ATOMS_AT_A_TIME, side="right")) - 1)
        chosen, atoms = slice(first, last), slice(int(offsets[first]), int(offsets[last]))
        yield from piece_texts(
            structures.take(np.arange(first, last)),
            [extra.take(chosen) for extra in of_structures],
            [extra.take(atoms) for extra in of_atoms],
        )
        first = last


def piece_texts(piece: Structures, of_structures: list[Extra], of_atoms: list[Extra]) -> Iterator[str]:
    """The text of each structure of a piece: atom count, header, a line per atom."""
    offsets = piece.offsets.tolist()
    symbols = [chemical_symbols[number] for number in piece.atomic_numbers.tolist()]
    positions = texts_of_atoms(piece.positions)
    columns_of_atoms = [
        (f":{extra.name}:R:{extra.values[0].size}", texts_of_atoms(extra.values), has_any(extra.values, piece))
        for extra in of_atoms
        if np.isfinite(extra.values).any()
    ]
    headers = header_texts(piece, of_structures)
    for structure, (start, end) in enumerate(pairwise(offsets)):
        present = [(layout, texts) for layout, texts, is_present in columns_of_atoms if is_present[structure]]
        properties = "Properties=species:S:1:pos:R:3" + "".join(layout for layout, _ in present)
        columns = [symbols, positions, *(texts for _, texts in present)]
        lines = map(" ".join, zip(*(column[start:end] for column in columns), strict=True))
        yield "\n".join([str(end - start), f"{properties} {headers[structure]}", *lines, ""])


def texts_of_atoms(values: Floats) -> list[str]:
    """Numbers or vectors as text, with all digits, (N,) or (N, 3) to N."""
    words = [repr(value) for value in values.ravel().tolist()]
    if values.ndim == 1:
        return words
    return list(map(" ".join, zip(words[0::3], words[1::3], words[2::3], strict=True)))


def has_any(vectors: Floats, piece: Structures) -> NDArray[np.bool_]:
    """Which structures have a value at any of their atoms, (N,) or (N, 3) to (S,)."""
    known = np.isfinite(vectors).reshape(len(vectors), -1).any(axis=1)
    present: NDArray[np.bool_] = np.logical_or.reduceat(known, piece.offsets[:-1])
    return present


def header_texts(piece: Structures, of_structures: list[Extra]) -> list[str]:
    """The headers, without `Properties`."""
    headers = []
    for structure in range(len(piece)):
        words = [f'pbc="{" ".join("FT"[repeats] for repeats in piece.periodic[structure].tolist())}"']
        if piece.cell[structure].any():
            words.append(f"Lattice={quoted(number_text(piece.cell[structure]))}")
        if subset := piece.subset_names[piece.subset[structure]]:
            words.append(f"config_type={quoted(subset)}")
        if piece.weight[structure] != 1.0:
            words.append(f"config_weight={float(piece.weight[structure])!r}")
        for extra in of_structures:
            if np.isfinite(extra.values[structure]).all():
                words.append(f"{extra.name}={quoted(number_text(extra.values[structure]))}")
        headers.append(" ".join(words))
    return headers


def number_text(values: Floats) -> str:
    """Numbers with all digits, row by row."""
    return " ".join(map(repr, np.ravel(values).tolist()))


def quoted(text: str) -> str:
    """A value of a header, in quotes where it needs them."""
    if not SPECIAL.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
