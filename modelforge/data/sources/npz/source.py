"""npz files: rMD17, sGDML and MD17/MD22, and others whose arrays the experiment names.

Legend: C conformations, n atoms of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from modelforge.data.sources.blocks.parts import PART_ATOMS, Plan, parts_of, wanted_names
from modelforge.data.sources.file_source import FileSource, Key
from modelforge.data.sources.npz.arrays import NpzFile, open_npz
from modelforge.data.sources.npz.blocks import NpzReader
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import SourceFiles
from modelforge.errors import UserError

LAYOUTS: tuple[Mapping[str, str], ...] = (
    {
        "atomic_numbers_key": "nuclear_charges",
        "positions_key": "coords",
        "energy_key": "energies",
        "forces_key": "forces",
    },  # rMD17
    {"atomic_numbers_key": "z", "positions_key": "R", "energy_key": "E", "forces_key": "F"},  # sGDML, MD17, MD22
    {"atomic_numbers_key": "atomic_numbers", "positions_key": "positions", "energy_key": "energy", "forces_key": "forces"},
)
"""Names that options stand for where they are not given: of the first layout whose geometry a file holds, else of the last."""


class Npz(FileSource):
    """Structures and labels from npz files.

    The arrays of rMD17 (nuclear_charges, coords, energies, forces) and sGDML, MD17 and MD22 (z, R, E, F) are known, others
    are named by their keys. Every structure is a group of its own, unless `group_key` names groups.
    """

    homes: ClassVar[tuple[str, str]] = ("arrays per structure", "arrays per atom")

    name: Literal["npz"]
    atomic_numbers_key: Key | None = None
    """Array of atomic numbers: one for each atom, the same in all structures, or a row for each structure, filled up with 0
    or -1; by default nuclear_charges, z or atomic_numbers."""
    positions_key: Key | None = None
    """Array of positions (structures, atoms, 3); by default coords, R or positions."""
    cell_key: Key | None = None
    """Array of cells whose rows are the lattice vectors, one or a cell for each structure; without it there is no cell."""
    periodic_key: Key | None = None
    """Array of truth values, 3 or 3 for each structure; without it structures with a cell are periodic along its vectors."""
    energy_key: Key | None = None
    """Array of the total energies; by default energies (with coords), E (with R) or energy."""
    forces_key: Key | None = None
    """Array of the forces; by default forces, or F (with R)."""
    subset_key: Key | None = None
    """Array that names the subset of each structure, or one for all, by which errors are reported."""
    energy_unit_key: Key = "e_unit"
    """Array that states the unit of the energy, if it is there (as in files of sGDML)."""
    length_unit_key: Key = "r_unit"
    """Array that states the unit of the positions, if it is there (as in files of sGDML)."""

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, to be read with these keys and units; the names of arrays are those of the first file."""
        unique = tuple(dict.fromkeys(paths))
        return SourceFiles(explicit(self, unique[0]) if unique else self, unique)

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""
        return read_parts(path, self)


def explicit(section: Npz, path: Path) -> Npz:
    """The same section with the names of the arrays that a file has."""
    with open_npz(path) as file:
        return _explicit(section, file)


def read_parts(path: Path, section: Npz, *, max_atoms: int = PART_ATOMS) -> Iterator[Part]:
    """The structures of a file, part by part of about so many atoms."""
    with open_npz(path) as file:
        resolved = _explicit(section, file)
        geometry = {
            "atomic_numbers": resolved.atomic_numbers_key,
            "positions": resolved.positions_key,
            "cell": section.cell_key,
            "periodic": section.periodic_key,
        }
        names = {**{column: key for column, key in geometry.items() if key}, **wanted_names(resolved)}
        stated = {"energy": section.energy_unit_key, "length": section.length_unit_key}
        reader = NpzReader(file, Plan(path, resolved, names, {}), stated)
        yield from parts_of(reader.blocks(max_atoms), reader.plan, max_atoms=max_atoms)


def _explicit(section: Npz, file: NpzFile) -> Npz:
    layout = next((some for some in LAYOUTS if _fits(some, section, file)), None)
    if layout is None:
        missing = [key for key in (section.atomic_numbers_key, section.positions_key) if key and key not in file.arrays]
        pairs = " or ".join(f"{some['atomic_numbers_key']} and {some['positions_key']}" for some in LAYOUTS)
        expected = f"{' and '.join(missing)}, as the experiment says" if missing else pairs
        raise UserError(
            f"{file.path}: must hold the arrays {expected} (got {', '.join(sorted(file.arrays))}); name them in "
            "dataset.atomic_numbers_key and dataset.positions_key"
        )
    options = ["atomic_numbers_key", "positions_key", "energy_key"] + ["forces_key"] * (not section.gradient_key)
    return section.model_copy(update={option: getattr(section, option) or layout[option] for option in options})


def _fits(layout: Mapping[str, str], section: Npz, file: NpzFile) -> bool:
    """Whether the file holds the geometry under the names of a layout, or under those that the experiment gives."""
    return all((getattr(section, key) or layout[key]) in file.arrays for key in ("atomic_numbers_key", "positions_key"))
