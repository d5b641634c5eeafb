"""Read extended XYZ with our reader and ase.io.read in turns, and compare what both find; `benchmark_data.py` runs it.

The labels of a file are found by keys, which are its own; what has none is read with the usual keys.
"""

# mypy: allow-untyped-calls
# because ase annotates only some of its functions.

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from stream_modelforge import Told, tell

from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz
from modelforge.data.structures import COLUMNS, Array, Structures

USUAL = {"stress_key": "stress"}
KEYS = {
    "carbon_reduced_100.xyz": {"forces_key": "force", "virial_key": "virial", "group_key": "castep_file_name"},
    "qm9_reduced_100.xyz": {"energy_key": "U0"},
    "small_aspirin_with_charge_spin.xyz": {"total_charge_key": "charge", "spin_multiplicity_key": "spin"},
    "spice_small_with_charges.xyz": {
        "total_charge_key": "charge",
        "spin_multiplicity_key": "spin",
        "partial_charges_key": "mulliken_charges",
        "subset_key": "data_id",
    },
}
LABELS = ("energy", "forces", "stress", "total_charge", "spin_multiplicity", "partial_charges")
VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
SECONDS = 1.0  # at least so long ASE reads a file again and again, and at least so often:
FEWEST, MOST = 3, 25


def compared(path: Path, name: str) -> dict[str, str | int | float]:
    """Both read a file, first to compare, then for the time; the medians of it."""
    section = ExtendedXYZ(path=(str(path),), **KEYS.get(path.name, USUAL))
    structures, frames = read_extxyz(path, section), frames_of(path)
    differences = differences_of(structures, frames, section)
    ours: list[float] = []
    theirs: list[float] = []
    while len(theirs) < FEWEST or (sum(theirs) < SECONDS and len(theirs) < MOST):
        ours.append(seconds_of(lambda: read_extxyz(path, section)))
        theirs.append(seconds_of(lambda: frames_of(path)))
    there = [label for label in LABELS if structures.has(label).any()]
    return {
        "file": name,
        "structures": len(structures),
        "ours": statistics.median(ours),
        "ase": statistics.median(theirs),
        "labels": ", ".join(there) or "none",
        "differences": ", ".join(differences),
    }


def frames_of(path: Path) -> list[Atoms]:
    """All structures of a file as ASE reads them."""
    frames = ase.io.read(path, ":")
    assert isinstance(frames, list)
    return frames


def seconds_of(work: Callable[[], object]) -> float:
    """How long it keeps a core busy, which other processes disturb less than wall time; it has one thread."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def differences_of(structures: Structures, frames: list[Atoms], section: ExtendedXYZ) -> list[str]:
    """Names of all that is not the same, bit for bit; for ASE's virials the same up to rounding, as we divide by the volume."""
    if len(structures) != len(frames):
        return ["number of structures"]
    expected: dict[str, Array] = {
        "num_atoms": np.array([len(atoms) for atoms in frames]),
        "atomic_numbers": np.concatenate([atoms.numbers for atoms in frames]),
        "positions": np.concatenate([atoms.positions for atoms in frames]),
        "cell": np.array([atoms.cell.array for atoms in frames]),
        "periodic": np.array([atoms.pbc for atoms in frames]),
        **{label: np.concatenate([label_of(atoms, label, section) for atoms in frames]) for label in LABELS},
    }
    differ = [name for name, values in expected.items() if not same(getattr(structures, name), values, name, section)]
    subsets = [structures.subset_names[number] for number in structures.subset]
    return differ + ["subset"] * (subsets != [str(atoms.info.get(section.subset_key, "")) for atoms in frames])


def same(ours: Array, theirs: Array, name: str, section: ExtendedXYZ) -> bool:
    """Equal, and missing in the same places."""
    if name == "stress" and section.virial_key:
        return np.allclose(ours, theirs, rtol=1e-12, atol=0.0, equal_nan=True)
    return np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")


def label_of(atoms: Atoms, label: str, section: ExtendedXYZ) -> NDArray[np.float64]:
    """A label as ASE gives it, wherever this version puts it, in our form; NaN where there is none."""
    column = COLUMNS[label]
    shape = (len(atoms) if column.per_atom else 1, *column.shape)
    key = section.virial_key if label == "stress" and section.virial_key else getattr(section, f"{label}_key")
    found = found_by_ase(atoms, key) if key else None
    if found is None:
        return np.full(shape, np.nan)
    values = np.asarray(found, dtype=np.float64)
    if label == "stress":
        values = values[VOIGT] if values.shape == (6,) else values.reshape(3, 3)
        values = -values / atoms.get_volume() if section.virial_key else values
    return values.reshape(shape)


def found_by_ase(atoms: Atoms, key: str) -> object:
    """What ASE has under a key, None where it has nothing."""
    results = atoms.calc.results if atoms.calc else {}
    return next((home[key] for home in (results, atoms.info, atoms.arrays) if key in home), None)


def main() -> None:
    """Compare all files below a folder."""
    parser = argparse.ArgumentParser(description="Read extended XYZ with modelforge and with ASE.")
    parser.add_argument("--data", type=Path, required=True, help="folder with files named *.xyz")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    options = parser.parse_args()
    begin = time.perf_counter()
    found = [compared(path, str(path.relative_to(options.data))) for path in sorted(options.data.rglob("*.xyz"))]
    options.json.write_text(json.dumps(found), encoding="utf-8")
    tell(Told({"read": time.perf_counter() - begin}, {"files": len(found)}))


if __name__ == "__main__":
    main()
