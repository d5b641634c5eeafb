"""The layouts of HDF5 files that are known, and how they are told apart: by the names in the first group.

- SPICE release: a group for each molecule, conformations in bohr, units as attributes.
- ANI release: ANI-2x has a group for each number of atoms (each structure is a group of its own when the data are split),
  ANI-1x one for each chemical formula (structures of one formula stay together); hartree and angstrom, not stated.
- modelforge (schema 2 of the original): a group for each molecule, or for each number of atoms with the molecules listed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelforge.data.sources.hdf5.file import Hdf5Group, shown
from modelforge.errors import UserError

LayoutName = Literal["spice", "ani", "modelforge"]


@dataclass(frozen=True)
class Layout:
    """Names and units of one layout."""

    name: LayoutName
    numbers: str
    positions: str
    keys: Mapping[str, tuple[str, ...]]  # names that each option stands for where it is not given: the first that is there
    unit_attribute: str = "units"
    usual: Mapping[str, str] = field(default_factory=dict)
    groups_are_kin: bool = True  # structures of one HDF5 group stay in one set when the data are split
    structural: tuple[str, ...] = ()  # names that hold neither labels nor geometry


LAYOUTS = (
    Layout(
        name="spice",
        numbers="atomic_numbers",
        positions="conformations",
        keys={
            "energy_key": ("dft_total_energy",),
            "gradient_key": ("dft_total_gradient",),
            "subset_key": ("subset",),
        },
        usual={"energy": "hartree", "length": "bohr"},
    ),
    Layout(
        name="ani",
        numbers="species",
        positions="coordinates",
        keys={"energy_key": ("energies",), "forces_key": ("forces",)},
        usual={"energy": "hartree", "length": "angstrom"},
        groups_are_kin=False,
    ),
    Layout(
        name="ani",
        numbers="atomic_numbers",
        positions="coordinates",
        keys={"energy_key": ("wb97x_dz.energy", "energies"), "forces_key": ("wb97x_dz.forces", "forces")},
        usual={"energy": "hartree", "length": "angstrom"},
    ),
    Layout(
        name="modelforge",
        numbers="atomic_numbers",
        positions="positions",
        keys={"energy_key": ("energies", "energy"), "forces_key": ("forces",)},
        unit_attribute="u",
        structural=("n_configs", "grouped_n_configs", "grouped_names", "grouped_indices"),
    ),
)


def layout_of(group: Hdf5Group, name: Literal["auto"] | LayoutName) -> Layout:
    """The layout that a group has, one of this name where it is given; no known one is a `UserError`."""
    fitting = [layout for layout in LAYOUTS if group.holds(layout.numbers) and group.holds(layout.positions)]
    known = [layout for layout in LAYOUTS if name in ("auto", layout.name)]
    for layout in fitting:
        if layout in known:
            return layout
    pairs = ", ".join(f"{layout.numbers} and {layout.positions} ({layout.name})" for layout in known)
    there = ", ".join(map(shown, group.names)) or "nothing"
    if fitting:
        remedy = f"; it has the layout {fitting[0].name!r}: set dataset.layout to that or leave it out"
    elif name == "auto":
        remedy = "; files of other layouts must be converted first"
    else:
        remedy = f"; dataset.layout is {name!r}"
    raise UserError(f"{group.place}: must hold {pairs}; in it: {there}{remedy}")


def own_key(layout: Layout, option: str, names: Collection[str]) -> str | None:
    """The name that an option stands for in a layout where the experiment gives none."""
    candidates = layout.keys.get(option, ())
    return next((name for name in candidates if name in names), candidates[0] if candidates else None)
