"""Read extended XYZ, the text format of most data sets, into `Structures`.

Labels are found by their key in the header or among the columns, wherever a version of ASE would put them later. Units
are converted here, once. A label that a structure lacks is NaN; what was found where is told by a `ReadReport`.

Legend: S structures (one for each of F frames), N atoms of all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from modelforge.atoms.units import (
    EnergyUnit,
    ForceUnit,
    LengthUnit,
    StressUnit,
    energy_in_ev,
    force_in_ev_per_angstrom,
    length_in_angstrom,
    stress_in_ev_per_cubic_angstrom,
)
from modelforge.data.sources.extxyz_atoms import (
    frames_by_properties,
    parse_layout,
    read_atoms,
)
from modelforge.data.sources.extxyz_cells import read_cells
from modelforge.data.sources.extxyz_frames import TEXT_SIZE, Frames, read_frames
from modelforge.data.sources.extxyz_labels import read_energies, read_groups, read_stresses, read_subsets
from modelforge.data.sources.paths import expand_paths
from modelforge.data.sources.read_report import LabelOrigin, Reading, ReadReport
from modelforge.data.sources.source import DataSource
from modelforge.data.structures import Structures, concatenate
from modelforge.section import PathText, SectionError

GEOMETRY_KEYS = ("Properties", "Lattice", "pbc")
GEOMETRY_COLUMNS = ("species", "symbols", "Z", "numbers", "pos", "positions")

Key = Annotated[str, Field(min_length=1)]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # also a file name in the run folder


def one_or_several(paths: object) -> object:
    """A single path stands for a list of one."""
    return (paths,) if isinstance(paths, str) else paths


class ExtendedXYZ(DataSource):
    """Structures and labels from files in extended XYZ."""

    name: Literal["extxyz"] = "extxyz"
    path: Annotated[tuple[PathText, ...], BeforeValidator(one_or_several), Field(min_length=1)]
    """One or several files or globs, relative to the experiment file."""
    test_paths: dict[SetName, Annotated[tuple[PathText, ...], BeforeValidator(one_or_several), Field(min_length=1)]] = {}
    """Named test sets: each name with one or several files or globs."""
    energy_key: Key = "energy"
    """Key in the header of a structure's energy; it is the total energy, not per atom."""
    forces_key: Key = "forces"
    """Name of the three columns with the forces, which are minus the gradient of the energy."""
    stress_key: Key | None = None
    """Key in the header of the stress: 9 numbers (3x3) or 6 (xx yy zz yz xz xy), positive under tension."""
    group_key: Key | None = None
    """Key in the header that names the group of a structure; a group stays in one set when the data are split."""
    subset_key: Key = "config_type"
    """Key in the header that names the subset of a structure, by which errors are reported."""
    energy_unit: EnergyUnit = "eV"
    """Unit of the energy."""
    length_unit: LengthUnit = "angstrom"
    """Unit of positions and cells."""
    forces_unit: ForceUnit | None = None
    """Unit of the forces; by default the energy unit over the length unit."""
    stress_unit: StressUnit | None = None
    """Unit of the stress; by default the energy unit over the cubed length unit."""

    @field_validator("stress_key")
    @classmethod
    def stress_is_no_virial(cls, key: str | None) -> str | None:
        """A virial has another unit and, mostly, another sign: read as a stress it would be wrong in silence."""
        if key and "virial" in key.lower():
            raise ValueError(f"must name a stress, which is -virial / volume in most codes (got {key!r})")
        return key

    @field_validator("test_paths")
    @classmethod
    def names_are_free(cls, paths: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The sets that the split makes have these names in all that a run leaves."""
        if taken := [name for name in ("train", "validation") if name in paths]:
            raise SectionError(*((name, "is the name of a set of dataset.split; choose another") for name in taken))
        return paths

    def read(self) -> Reading:
        """The structures of `path`, and of the files that the split takes sets from."""
        patterns = {
            "dataset.path": self.path,
            "dataset.split.validation_files": self.split.validation_files,
            "dataset.split.test_files": self.split.test_files,
        }
        files = [path for key, some in patterns.items() for path in expand_paths(some, Path(), key=key)]
        return read_extxyz(list(dict.fromkeys(files)), self)

    def read_tests(self) -> dict[str, Reading]:
        """The structures of `test_paths`."""
        return {
            name: self.read_files(expand_paths(paths, Path(), key=f"dataset.test_paths.{name}"))
            for name, paths in self.test_paths.items()
        }

    def read_files(self, paths: Sequence[Path]) -> Reading:
        """Structures of other files, read with these keys and units."""
        return read_extxyz(paths, self)


def read_extxyz(paths: Sequence[str | Path], section: ExtendedXYZ, *, text_size: int = TEXT_SIZE) -> Reading:
    """Read all structures of `paths` with the keys and units of a section, whose own `path` is not looked at.

    Equal group names mean one group, in whichever file; a structure without a group name is a group of its own.
    A file that cannot be read to its end is a `UserError` with the place.
    """
    assert paths, "expand_paths gives at least one"
    groups: dict[str | int, int] = {}
    header_keys: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    parts: list[Structures] = []
    for frames in chain.from_iterable(read_frames(Path(path), text_size=text_size) for path in paths):
        by_properties = frames_by_properties(frames)
        parts.append(structures_of(frames, section, by_properties, groups=groups))
        header_keys.update(chain.from_iterable(frames.headers))
        for properties, members in by_properties.items():
            columns.update(dict.fromkeys(parse_layout(properties).columns, len(members)))
    structures = concatenate(parts)
    if section.group_key is None:
        structures = replace(structures, group=np.arange(len(structures)))
    return Reading(structures, make_report(structures, section, header_keys=header_keys, columns=columns))


def structures_of(
    frames: Frames, section: ExtendedXYZ, by_properties: dict[str, list[int]], *, groups: dict[str | int, int]
) -> Structures:
    """The structures of some frames; `groups` numbers the groups of all frames and grows."""
    length = length_in_angstrom(section.length_unit)
    atoms = read_atoms(frames, by_properties, forces_key=section.forces_key)
    cell, periodic = read_cells(frames)
    subset, subset_names = read_subsets(frames, section.subset_key)
    return Structures(
        num_atoms=np.array(frames.num_atoms),
        atomic_numbers=atoms.atomic_numbers,
        positions=atoms.positions * length,
        cell=cell * length,
        periodic=periodic,
        energy=read_energies(frames, section.energy_key) * energy_in_ev(section.energy_unit),
        forces=atoms.forces * forces_factor(section),
        stress=read_stresses(frames, section.stress_key) * stress_factor(section),
        group=np.zeros(len(frames), int) if not section.group_key else read_groups(frames, section.group_key, groups),
        subset=subset,
        file=np.zeros(len(frames), int),
        index_in_file=frames.first_index + np.arange(len(frames)),
        subset_names=subset_names,
        files=(str(frames.path),),
    )


def forces_factor(section: ExtendedXYZ) -> float:
    """How many eV/angstrom the unit of the forces is."""
    if section.forces_unit:
        return force_in_ev_per_angstrom(section.forces_unit)
    return energy_in_ev(section.energy_unit) / length_in_angstrom(section.length_unit)


def stress_factor(section: ExtendedXYZ) -> float:
    """How many eV/angstrom^3 the unit of the stress is."""
    if section.stress_unit:
        return stress_in_ev_per_cubic_angstrom(section.stress_unit)
    return energy_in_ev(section.energy_unit) / length_in_angstrom(section.length_unit) ** 3


def make_report(
    structures: Structures, section: ExtendedXYZ, *, header_keys: Mapping[str, int], columns: Mapping[str, int]
) -> ReadReport:
    """Count, for each key that the section names, the structures that have it and the ones whose value is NaN."""
    energy_unit, length_unit = section.energy_unit, section.length_unit
    origins = [
        header_origin("energy_key", section.energy_key, energy_unit, header_keys, int(structures.has_energy.sum())),
        forces_origin(section, columns, structures),
    ]
    if section.stress_key:
        unit = section.stress_unit or f"{energy_unit}/{length_unit}^3"
        origins.append(header_origin("stress_key", section.stress_key, unit, header_keys, int(structures.has_stress.sum())))
    if section.group_key:
        num_named = header_keys.get(section.group_key, 0)
        origins.append(header_origin("group_key", section.group_key, "", header_keys, num_named))
    return ReadReport(
        structures.files,
        len(structures),
        tuple(origins),
        header_keys={key: count for key, count in header_keys.items() if key not in GEOMETRY_KEYS},
        columns={name: count for name, count in columns.items() if name not in GEOMETRY_COLUMNS},
    )


def header_origin(option: str, key: str, unit: str, header_keys: Mapping[str, int], num_complete: int) -> LabelOrigin:
    """The origin of a label from the header, of which `num_complete` structures have a value."""
    num_carriers = header_keys.get(key, 0)
    return LabelOrigin(option, key, "header keys", unit, num_carriers, num_carriers - num_complete)


def forces_origin(section: ExtendedXYZ, columns: Mapping[str, int], structures: Structures) -> LabelOrigin:
    """The origin of the forces; a structure is incomplete if any of its atoms lacks one."""
    unit = section.forces_unit or f"{section.energy_unit}/{section.length_unit}"
    complete = np.logical_and.reduceat(structures.has_force, structures.offsets[:-1])  # (S,)
    num_carriers = columns.get(section.forces_key, 0)
    num_incomplete = num_carriers - int(complete.sum())
    return LabelOrigin("forces_key", section.forces_key, "per-atom columns", unit, num_carriers, num_incomplete)
