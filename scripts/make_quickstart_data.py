"""Make the quickstart data set again from nothing: GFN2-xTB energies and forces along Langevin dynamics.

Every file has trajectories of its own (own random numbers, own equilibration), so the test files share no history with
the training file. Frames alternate between the trajectories of a file and follow the time within each of them. Labels
are computed at the positions as written, by a fresh calculator a frame, so that they do not depend on earlier frames.

Needs `pip install tblite`. One thread is the fastest for molecules this small, and gives the same numbers each time:
`OMP_NUM_THREADS=1 python scripts/make_quickstart_data.py`
"""

# mypy: allow-untyped-calls
# because ase annotates only some of its methods.

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from numpy.typing import NDArray
from tblite.ase import TBLite

TIME_STEP = 0.5  # fs
FRICTION = 0.01  # 1/fs
EQUILIBRATION_STEPS = 4000  # 2 ps, from rest: twenty times the relaxation time of the thermostat
STEPS_BETWEEN_FRAMES = 400  # 200 fs
POSITION_DECIMALS = 6
FORCE_DECIMALS = 7
LONGEST_BOND = 1.35  # times its length in the start geometry; thermal vibration at 600 K stays below 1.2
LABEL_ACCURACY = 0.01  # of tblite, relative to its default of 1: self-consistency to about 1e-8 hartree

# GFN2-xTB minima of one conformer each, in angstrom.
GEOMETRIES = {
    "ethanolamine": """
        C  0.922 -0.232 -0.296
        C -0.083  0.921 -0.308
        O -1.401  0.444 -0.345
        N  0.633 -1.071  0.861
        H -1.431 -0.317  0.252
        H  0.071  1.545  0.588
        H  0.058  1.545 -1.193
        H  1.945  0.174 -0.310
        H  0.777 -0.842 -1.192
        H  1.201 -1.910  0.848
        H  0.840 -0.568  1.718
    """,
    "glycine": """
        C -0.460  0.197  0.086
        O -0.149  1.223  0.631
        O -1.731 -0.152 -0.140
        C  0.524 -0.844 -0.421
        N  1.911 -0.506 -0.196
        H -2.337  0.529  0.193
        H  0.298 -1.794  0.071
        H  0.353 -0.979 -1.494
        H  2.129  0.377 -0.647
        H  2.077 -0.375  0.797
    """,
}


@dataclass(frozen=True)
class DataFile:
    """A file of the set: one trajectory for each molecule at each temperature."""

    name: str
    seed: int
    temperatures: tuple[int, ...]
    """Kelvin."""
    frames_per_trajectory: int


FILES = (
    DataFile("train.xyz", seed=1, temperatures=(300, 600), frames_per_trajectory=120),
    DataFile("test_300K.xyz", seed=2, temperatures=(300,), frames_per_trajectory=50),
    DataFile("test_600K.xyz", seed=3, temperatures=(600,), frames_per_trajectory=50),
)


def start_geometry(molecule: str) -> Atoms:
    rows = [line.split() for line in GEOMETRIES[molecule].strip().splitlines()]
    return Atoms([row[0] for row in rows], positions=[[float(x) for x in row[1:]] for row in rows])


def distances(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(positions[:, None] - positions[None], axis=-1))  # (N, N)


def longest_bond_stretch(start: Atoms, positions: NDArray[np.float64]) -> float:
    """Largest ratio of a bond's length to that in `start`; bonds are below 1.3 times the covalent radii."""
    radii = covalent_radii[start.numbers]
    start_distances = distances(start.positions)
    bonded = np.triu(start_distances < 1.3 * (radii[:, None] + radii[None]), k=1)
    return float((distances(positions)[bonded] / start_distances[bonded]).max())


def trajectory(molecule: str, *, temperature: int, seed: int, num_frames: int) -> Iterator[Atoms]:
    """Frames of one trajectory, centred at the centre of mass; raises if the molecule has dissociated."""
    start = start_geometry(molecule)
    atoms = start.copy()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    rng = np.random.default_rng([seed, temperature, *molecule.encode()])
    dynamics = Langevin(
        atoms, TIME_STEP * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    for _ in range(num_frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        positions = np.round(atoms.positions - atoms.get_center_of_mass(), POSITION_DECIMALS)
        stretch = longest_bond_stretch(start, positions)
        if stretch > LONGEST_BOND:
            raise RuntimeError(f"{molecule} at {temperature} K has dissociated: a bond is {stretch:.2f} times its length")
        yield Atoms(start.numbers, positions=positions)


def labelled_frame(atoms: Atoms, *, molecule: str, temperature: int) -> str:
    """One frame of extended XYZ with energy (eV) and forces (eV/angstrom)."""
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=LABEL_ACCURACY, verbosity=0)
    header = (
        "Properties=species:S:1:pos:R:3:forces:R:3 "
        f"energy={float(atoms.get_potential_energy())!r} "
        f'config_type={temperature}K molecule={molecule} pbc="F F F"'
    )
    rows = [
        f"{symbol:<2}"
        + "".join(f"{x:{POSITION_DECIMALS + 5}.{POSITION_DECIMALS}f}" for x in position)
        + "".join(f"{x:{FORCE_DECIMALS + 5}.{FORCE_DECIMALS}f}" for x in force)
        for symbol, position, force in zip(atoms.symbols, atoms.positions, atoms.get_forces(), strict=True)
    ]
    return "\n".join([str(len(rows)), header, *rows, ""])


def frames_of(file: DataFile) -> Iterator[str]:
    """All frames of a file, one of each trajectory in turn."""
    kinds = [(molecule, temperature) for temperature in file.temperatures for molecule in GEOMETRIES]
    trajectories = [
        trajectory(molecule, temperature=temperature, seed=file.seed, num_frames=file.frames_per_trajectory)
        for molecule, temperature in kinds
    ]
    for frames in zip(*trajectories, strict=True):
        for atoms, (molecule, temperature) in zip(frames, kinds, strict=True):
            yield labelled_frame(atoms, molecule=molecule, temperature=temperature)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the quickstart data set with GFN2-xTB.")
    default = Path(__file__).resolve().parents[1] / "modelforge" / "data" / "sources" / "quickstart"
    parser.add_argument("--out", type=Path, default=default, help="folder of the files (default: the package's own)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        unfinished = out / f"{file.name}.tmp"
        unfinished.write_text("".join(frames_of(file)))
        os.replace(unfinished, out / file.name)
        print(f"{out / file.name}: {(out / file.name).stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
