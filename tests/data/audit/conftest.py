"""Structures to audit: built from ASE's, bundled ones, and those of the reference data."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

import modelforge
from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz
from modelforge.data.structures import Structures

QUICKSTART = Path(modelforge.__file__).parent / "data/sources/quickstart"

Build = Callable[[Sequence[Atoms]], Structures]
Read = Callable[..., Structures]


def structures_of(frames: Sequence[Atoms]) -> Structures:
    """ASE's structures in columns; what their calculators do not give is missing."""
    return Structures(
        num_atoms=np.array([len(frame) for frame in frames]),
        atomic_numbers=np.concatenate([frame.numbers for frame in frames]).astype(np.uint8),
        positions=np.concatenate([frame.positions for frame in frames]),
        cell=np.stack([frame.cell.array for frame in frames]),
        periodic=np.stack([frame.pbc for frame in frames]),
        files=("made.xyz",),
        **(_labels(frames) if all(frame.calc is not None for frame in frames) else {}),
    )


def _labels(frames: Sequence[Atoms]) -> dict[str, np.ndarray]:
    return {
        "energy": np.array([frame.get_potential_energy() for frame in frames]),
        "forces": np.concatenate([frame.get_forces() for frame in frames]),
        "stress": np.stack([_stress(frame) for frame in frames]),
    }


def _stress(frame: Atoms) -> np.ndarray:
    try:
        return frame.get_stress(voigt=False) if frame.pbc.all() else np.full((3, 3), np.nan)
    except PropertyNotImplementedError:
        return np.full((3, 3), np.nan)


@pytest.fixture(scope="session")
def build() -> Build:
    """Makes `Structures` of ASE's."""
    return structures_of


@pytest.fixture(scope="session")
def ethanolamine() -> Structures:
    """The bundled training set: two molecules, GFN2-xTB, which has no core electrons."""
    return read_extxyz(QUICKSTART / "train.xyz")


@pytest.fixture(scope="session")
def read_shared(shared_data: Path) -> Read:
    """Reads a file of the reference data."""

    def read(name: str, **options: str) -> Structures:
        return read_extxyz(shared_data / name, ExtendedXYZ(path=name, **options))

    return read


@pytest.fixture(scope="session")
def acac(read_shared: Read) -> Structures:
    """Acetylacetone at 300 K, all electrons."""
    return read_shared("acac/train_300K.xyz")


@pytest.fixture(scope="session")
def ethanol(read_shared: Read) -> Structures:
    """Ethanol at 500 K, all electrons; the file is in kcal/mol and does not say so."""
    return read_shared("formats/ethanol_reduced_100.xyz", energy_unit="kcal/mol")
