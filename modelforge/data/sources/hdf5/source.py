"""HDF5 files of known layouts: the releases of SPICE and ANI, and the original modelforge's own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import h5py

from modelforge.data.sources.blocks.parts import PART_ATOMS, Block, Plan, parts_of, wanted_names
from modelforge.data.sources.file_source import FileSource, Key
from modelforge.data.sources.hdf5.file import group_names, open_group, open_hdf5, shown
from modelforge.data.sources.hdf5.group import GroupReader
from modelforge.data.sources.hdf5.layouts import Layout, layout_of, own_key
from modelforge.data.sources.part import Part
from modelforge.data.sources.source import SourceFiles
from modelforge.errors import UserError


class HDF5(FileSource):
    """Structures and labels from HDF5 files that have a group for each molecule, formula or number of atoms.

    Known layouts: `spice` (groups with conformations), `ani` (species or atomic_numbers, and coordinates), `modelforge`
    (positions; the original modelforge's files). All files of one source have the same layout.
    """

    homes: ClassVar[tuple[str, str]] = ("datasets per structure", "datasets per atom")

    name: Literal["hdf5"]
    layout: Literal["auto", "spice", "ani", "modelforge"] = "auto"
    """How the file is organised; "auto" tells by the names in the first group."""
    energy_key: Key | None = None
    """Dataset of the total energy; by default the layout's: dft_total_energy (spice), energies or wb97x_dz.energy (ani),
    energies or energy (modelforge)."""
    forces_key: Key | None = None
    """Dataset of the forces; by default forces or wb97x_dz.forces (ani), forces (modelforge)."""
    gradient_key: Key | None = None
    """Dataset of the gradient of the energy, in place of `forces_key`; by default dft_total_gradient (spice)."""
    subset_key: Key | None = None
    """Dataset that names the subset, by which errors are reported; by default subset (spice)."""
    group_key: Key | None = None
    """Dataset that names the group; by default a molecule (spice, modelforge) or formula (ANI-1x) is one, and in other ani
    files each structure its own. A group stays in one set with split.strategy "group"."""

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, to be read with these keys and units; the layout and its keys are those of the first file."""
        unique = tuple(dict.fromkeys(paths))
        return SourceFiles(explicit(self, unique[0]) if unique else self, unique)

    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""
        return read_parts(path, self)


def explicit(section: HDF5, path: Path) -> HDF5:
    """The same section with the layout, and the keys that it stands for, as a file has them."""
    with open_hdf5(path) as file:
        return _explicit(section, *_layout_and_names(section, file, path))


def read_parts(path: Path, section: HDF5, *, max_atoms: int = PART_ATOMS) -> Iterator[Part]:
    """The structures of a file, part by part of about so many atoms."""
    with open_hdf5(path) as file:
        layout, names = _layout_and_names(section, file, path)
        resolved = _explicit(section, layout, names)
        arrays = {"atomic_numbers": layout.numbers, "positions": layout.positions, **wanted_names(resolved)}
        plan = Plan(path, resolved, arrays, layout.usual)
        num = 0
        for part in parts_of(_blocks(file, GroupReader(plan, layout, max_atoms)), plan, max_atoms=max_atoms):
            num += len(part.structures)
            yield part
    if not num:
        raise UserError(f"{path}: must hold at least one structure (got groups without conformations)")


def _blocks(file: h5py.File, reader: GroupReader) -> Iterator[Block]:
    """The conformations of all groups; datasets that stand beside the groups hold no structures."""
    path = reader.plan.path
    for name in group_names(file, path):
        group = open_group(file, name, path)
        if group is not None:
            yield from reader.blocks(group)


def _layout_and_names(section: HDF5, file: h5py.File, path: Path) -> tuple[Layout, tuple[str, ...]]:
    """The layout by the first group, and the names in that."""
    names = group_names(file, path)
    for name in names:
        group = open_group(file, name, path)
        if group is not None:
            return layout_of(group, section.layout), tuple(map(shown, group.names))
    raise UserError(f"{path}: must hold groups of structures (got only datasets: {', '.join(map(shown, names[:20]))})")


def _explicit(section: HDF5, layout: Layout, names: tuple[str, ...]) -> HDF5:
    options = ["energy_key", "subset_key"]
    if not section.forces_key and not section.gradient_key:
        options += ["forces_key", "gradient_key"]
    own = {option: getattr(section, option) or own_key(layout, option, names) for option in options}
    return section.model_copy(update={**own, "layout": layout.name})
