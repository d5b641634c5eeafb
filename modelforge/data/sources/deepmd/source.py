"""Read the systems of DeePMD, folders of npy arrays, into `Structures`.

A system is what a file is for other formats: its frames have one number of atoms, or padding in systems of mixed types.
eV and angstrom are usual. Each frame is a group of its own unless `group_key` names something: the frames of a system are
often one trajectory, but often all data are one system, and one group could not be split.

Legend: F frames that are read together, A atoms of a frame with padding, N atoms of all frames without.
"""

import os
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from modelforge.atoms.units import EnergyUnit, LengthUnit
from modelforge.data.sources.conversion import with_units
from modelforge.data.sources.deepmd.labels import (
    of_atoms,
    of_frames,
    read_boxes,
    read_coordinates,
    read_names,
    read_stresses,
    read_weights,
    single_precision,
)
from modelforge.data.sources.deepmd.system import GEOMETRY, PER_ATOM, FrameSet, System, read_atomic_numbers, read_system
from modelforge.data.sources.file_source import PER_ATOM_OPTIONS, FileSource, Key
from modelforge.data.sources.part import Part
from modelforge.data.sources.paths import absence
from modelforge.data.sources.source import SourceFiles
from modelforge.data.structures import Structures
from modelforge.errors import UserError

PART_ATOMS = 200_000  # atoms in a part


class DeePMD(FileSource):
    """Structures and labels from systems of DeePMD."""

    homes: ClassVar[tuple[str, str]] = ("arrays", "per-atom arrays")

    name: Literal["deepmd"] = "deepmd"
    energy_key: Key | None = "energy"
    """Name of the array of total energies, without .npy."""
    forces_key: Key | None = "force"
    """Name of the array of forces, which are minus the gradient of the energy."""
    virial_key: Key | None = None
    """Name of the array of virials; "virial" by default where any system has such an array."""
    group_key: Key | None = None
    """Name of an array that names the group of each frame, or "system": all frames of a system are a group."""
    subset_key: Key | None = "config_type"
    """Name of an array that names the subset of each frame, or "system": the name of the system's folder."""
    energy_unit: EnergyUnit | None = None
    """Unit of the energy: eV by default."""
    length_unit: LengthUnit | None = None
    """Unit of coordinates and boxes: angstrom by default."""
    type_map: tuple[str, ...] = ()
    """Elements of the types 0, 1, ... in systems without type_map.raw, as in ["O", "H"]."""

    def expand(self, patterns: Sequence[str], *, key: str) -> list[Path]:
        """The systems that paths and globs of folders name: those folders, or all systems below them, sorted."""
        return list(dict.fromkeys(path for pattern in patterns for path in systems_of(pattern, key=key)))

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Systems, to be read with these keys and units, and with their virials."""
        free = not self.virial_key and not self.stress_key
        reader = self.model_copy(update={"virial_key": "virial"}) if free and any(map(has_virials, paths)) else self
        return SourceFiles(reader, tuple(dict.fromkeys(paths)))

    def bytes_of(self, path: Path) -> Sequence[Path]:
        """The arrays and texts of a system."""
        beside = [path / name for name in ("nopbc", "type.raw", "type_map.raw")]
        return sorted([*(file for file in beside if file.is_file()), *path.glob("set.*/*.npy")])

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a system in parts of bounded memory; one that cannot be read to its end is a `UserError`."""
        return read_parts(path, self)


def systems_of(pattern: str, *, key: str) -> list[Path]:
    """The systems that one path or glob names, at least one."""
    place = Path(pattern).expanduser()
    folders = [place] if place.is_dir() else sorted(path for path in globbed(place) if path.is_dir())
    if not folders and not place.exists():
        raise UserError(f"{key}: {absence(pattern, place.absolute()).replace('matches no file', 'matches no folder')}")
    systems = [system for folder in folders for system in systems_below(folder)]
    if not systems:
        got = "a folder without" if folders else "a file"
        raise UserError(f"{key}: {pattern!r} must name a DeePMD system, a folder with type.raw, or folders of them (got {got})")
    return systems


def globbed(place: Path) -> list[Path]:
    """All that a glob matches."""
    return [Path(match) for match in glob(str(place), recursive=True)]


def systems_below(folder: Path) -> list[Path]:
    """The folder if it holds type.raw, else all such folders below it, sorted."""
    if (folder / "type.raw").is_file():
        return [folder]
    return sorted(Path(root) for root, _, files in os.walk(folder) if "type.raw" in files)


def has_virials(path: Path) -> bool:
    """Whether any set of a system has virials."""
    return any(True for _ in path.glob("set.*/virial.npy"))


def read_parts(path: Path, section: DeePMD, *, part_atoms: int = PART_ATOMS) -> Iterator[Part]:
    """The structures of a system, part by part of about `part_atoms` atoms."""
    system = read_system(path, section.type_map)
    note = single_precision(system, section)
    rows = max(1, part_atoms // len(system.types))
    for some in system.sets:
        for first in range(0, some.num_frames, rows):
            yield part_of(system, some, slice(first, min(first + rows, some.num_frames)), section, note)


def part_of(system: System, some: FrameSet, chosen: slice, section: DeePMD, note: str) -> Part:
    """The structures of some frames of a set."""
    structures, units = with_units(
        structures_of(system, some, chosen, section),
        section,
        usual={"energy": "eV", "length": "angstrom"},
        place=str(system.folder),
    )
    if "energy" in units and note:
        units["energy"] += f" ({note} {units['energy']})"
    keys, columns = names_in(some, section)
    num_frames = chosen.stop - chosen.start
    groups = read_names(system, some, chosen, section.group_key, of_system=str(system.folder))
    return Part(
        structures,
        keys=dict.fromkeys(keys, num_frames),
        columns=dict.fromkeys(columns, num_frames),
        units=units,
        groups=groups if section.group_key else None,
    )


def names_in(some: FrameSet, section: DeePMD) -> tuple[list[str], list[str]]:
    """The names of the arrays of a set that hold something for each frame, and of those that do for each atom."""
    asked = {key: option in PER_ATOM_OPTIONS for option, key in section.label_keys().items()}
    keys = [name for name in ("system",) if name in asked and name not in some.names]
    columns: list[str] = []
    for name in some.names:
        if name not in GEOMETRY:
            (columns if asked.get(name, name in PER_ATOM) else keys).append(name)
    return keys, columns


def structures_of(system: System, some: FrameSet, chosen: slice, section: DeePMD) -> Structures:
    """The structures of some frames in units of the file; a gradient stands for the forces, a virial for the stress."""
    numbers, is_atom = read_atomic_numbers(system, some, chosen)  # (F, A), (F, A)
    cell = read_boxes(system, some, chosen)
    names = [name or "" for name in read_names(system, some, chosen, section.subset_key, of_system=system.folder.name)]
    subsets = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Structures(
        num_atoms=is_atom.sum(axis=1),
        atomic_numbers=numbers[is_atom],
        positions=read_coordinates(some, chosen, is_atom),
        cell=cell,
        periodic=np.full((len(cell), 3), system.periodic),
        energy=of_frames(some, chosen, section.energy_key),
        forces=of_atoms(some, chosen, section.gradient_key or section.forces_key, is_atom, (3,)),
        stress=read_stresses(system, some, chosen, section.virial_key or section.stress_key),
        total_charge=of_frames(some, chosen, section.total_charge_key),
        spin_multiplicity=of_frames(some, chosen, section.spin_multiplicity_key),
        dipole=of_frames(some, chosen, section.dipole_key, (3,)),
        quadrupole=of_frames(some, chosen, section.quadrupole_key, (3, 3)),
        partial_charges=of_atoms(some, chosen, section.partial_charges_key, is_atom, ()),
        weight=read_weights(some, chosen, section.weight_key),
        subset=np.array([subsets[name] for name in names]),
        index_in_file=some.first_index + np.arange(chosen.start, chosen.stop),
        subset_names=tuple(subsets),
        files=(str(system.folder),),
    )
