"""What is written as extended XYZ reads back to the same bits, by our reader and by ASE."""

from dataclasses import fields, replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from modelforge.data.sources.extxyz import ExtendedXYZ, read_extxyz
from modelforge.data.sources.extxyz import writer as extxyz_writer
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.data.sources.gather import read
from modelforge.data.structures import Structures

READER = ExtendedXYZ(path="x.xyz", stress_key="stress")
PREDICTIONS = ExtendedXYZ(
    path="x.xyz", energy_key="predicted_energy", forces_key="predicted_forces", stress_key="predicted_stress"
)


def random_structures(seed: int = 0) -> Structures:
    """Three structures: a crystal with all labels, a molecule without forces, a molecule with some of them."""
    random = np.random.default_rng(seed)
    num_atoms = np.array([3, 1, 2])
    forces = random.normal(size=(6, 3))
    forces[3] = forces[5] = np.nan
    stress = np.full((3, 3, 3), np.nan)
    stress[0] = np.cov(random.normal(size=(3, 5)))
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=np.array([1, 8, 92, 2, 6, 7]),
        positions=random.normal(size=(6, 3)) * 10.0 ** random.integers(-9, 9, size=(6, 3)),
        cell=np.stack([5 * np.eye(3) + random.random((3, 3)), np.zeros((3, 3)), 50 * np.eye(3)]),
        periodic=np.array([[True, False, True], [False] * 3, [False] * 3]),
        energy=np.array([-97079.92222178938, np.nan, random.normal()]),
        forces=forces,
        stress=(stress + stress.swapaxes(1, 2)) / 2,
        group=np.arange(3),
        subset=np.array([0, 1, 2]),
        file=np.zeros(3, int),
        index_in_file=np.arange(3),
        subset_names=("bulk", "", r'odd "name" with \ and = {'),
        files=("x.xyz",),
    )


def assert_equal(first: Structures, second: Structures, *, but: tuple[str, ...] = ()) -> None:
    for field in fields(Structures):
        if field.name not in ("files", *but):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def test_structures_read_back_to_the_same_bits(tmp_path: Path) -> None:
    structures = random_structures()
    write_extxyz(tmp_path / "x.xyz", structures)
    assert_equal(read_extxyz(tmp_path / "x.xyz", READER), structures)


def test_predictions_read_back_to_the_same_bits(tmp_path: Path) -> None:
    structures, predicted = random_structures(), random_structures(seed=1)
    write_extxyz(
        tmp_path / "x.xyz",
        structures,
        predicted_energy=predicted.energy,
        predicted_forces=predicted.forces,
        predicted_stress=predicted.stress,
    )
    expected = replace(structures, energy=predicted.energy, forces=predicted.forces, stress=predicted.stress)
    assert_equal(read_extxyz(tmp_path / "x.xyz", READER), structures)
    assert_equal(read_extxyz(tmp_path / "x.xyz", PREDICTIONS), expected)


def test_missing_labels_are_left_out(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "x.xyz", random_structures(), predicted_energy=np.array([1.0, 2.0, np.nan]))
    report = read([READER.files([tmp_path / "x.xyz"])]).report
    assert report.keys == {"config_type": 2, "energy": 2, "stress": 1, "predicted_energy": 2}
    assert report.columns == {"forces": 2}


def test_ase_reads_the_same_bits(tmp_path: Path) -> None:
    structures = random_structures()
    write_extxyz(tmp_path / "x.xyz", structures, predicted_energy=structures.energy, predicted_forces=2 * structures.forces)
    frames = ase.io.read(tmp_path / "x.xyz", ":")
    assert len(frames) == 3
    for index, atoms in enumerate(frames):
        own = slice(*structures.offsets[index : index + 2])
        np.testing.assert_array_equal(atoms.numbers, structures.atomic_numbers[own])
        np.testing.assert_array_equal(atoms.positions, structures.positions[own])
        np.testing.assert_array_equal(atoms.cell.array, structures.cell[index])
        np.testing.assert_array_equal(atoms.pbc, structures.periodic[index])
    crystal, bare, molecule = frames
    assert crystal.get_potential_energy() == structures.energy[0] == crystal.info["predicted_energy"]
    np.testing.assert_array_equal(crystal.get_forces(), structures.forces[:3])
    np.testing.assert_array_equal(crystal.arrays["predicted_forces"], 2 * structures.forces[:3])
    np.testing.assert_array_equal(crystal.get_stress(voigt=False), structures.stress[0])
    assert bare.calc is None
    assert molecule.info["config_type"] == structures.subset_names[2]


def test_the_size_of_the_pieces_changes_nothing(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = read_extxyz(shared_data / "periodic/alexandria-random-1k.xyz", READER)
    write_extxyz(tmp_path / "whole.xyz", structures, predicted_forces=structures.forces)
    monkeypatch.setattr(extxyz_writer, "ATOMS_AT_A_TIME", 70)
    write_extxyz(tmp_path / "pieces.xyz", structures, predicted_forces=structures.forces)
    assert (tmp_path / "whole.xyz").read_bytes() == (tmp_path / "pieces.xyz").read_bytes()
    assert_equal(read_extxyz(tmp_path / "whole.xyz", READER), structures)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    write_extxyz(path, random_structures())
    before = path.read_bytes()
    structures = random_structures()
    with pytest.raises(IndexError):
        write_extxyz(path, replace(structures, atomic_numbers=structures.atomic_numbers + 100))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
