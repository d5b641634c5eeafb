"""npz: the structures and labels of rMD17, sGDML and other files, read by rows, and faults named by file and array."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelforge.data.sources.gather import read
from modelforge.data.sources.npz import Npz, read_parts
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import COLUMNS, concatenate
from modelforge.errors import UserError

KCAL_PER_MOL, KJ_PER_MOL, BOHR = 0.04336410424180094, 0.010364269656262174, 0.529177210903  # eV, angstrom
UNITS = {"energy_unit": "kcal/mol", "length_unit": "angstrom"}


def rmd17(num: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(num)
    return {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": rng.normal(size=(num, 3, 3)),
        "energies": rng.normal(size=num) - 97_080.0,
        "forces": rng.normal(size=(num, 3, 3)),
        "old_indices": np.arange(num),
        "old_energies": np.zeros(num),
        "old_forces": np.zeros((num, 3, 3)),
    }


def sgdml(num: int = 10) -> dict[str, Any]:
    old = rmd17(num)
    return {
        "z": old["nuclear_charges"],
        "R": old["coords"].astype(np.float32),
        "E": old["energies"][:, None],
        "F": old["forces"],
        "name": np.array("ethanol"),
        "theory": np.array(b"PBE"),
        "e_unit": np.array(b"kcal/mol"),
        "r_unit": np.array("Ang"),
        "type": np.array("d"),
    }


def save(folder: Path, arrays: dict[str, Any], *, packed: bool = False) -> Path:
    path = folder / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def read_path(path: Path, **options: Any) -> Reading:
    return read([Npz(name="npz", path=str(path), **options).files([path])])


@pytest.mark.parametrize("packed", [True, False])
def test_rmd17_is_read_with_the_units_of_the_experiment(tmp_path: Path, packed: bool) -> None:
    arrays = rmd17()
    structures, report = read_path(save(tmp_path, arrays, packed=packed), **UNITS)
    assert structures.num_atoms.tolist() == [3] * 10
    assert structures.atomic_numbers.tolist() == [8, 1, 1] * 10
    np.testing.assert_array_equal(structures.positions, arrays["coords"].reshape(-1, 3))
    np.testing.assert_allclose(structures.energy, arrays["energies"] * KCAL_PER_MOL, rtol=1e-14)
    np.testing.assert_allclose(structures.forces, arrays["forces"].reshape(-1, 3) * KCAL_PER_MOL, rtol=1e-13)
    assert structures.group.tolist() == list(range(10))
    assert not structures.periodic.any()
    assert {origin.key: origin.unit for origin in report.origins} == {"energies": "kcal/mol", "forces": "kcal/mol/angstrom"}
    assert report.keys.items() >= {"energies": 10, "old_indices": 10, "old_energies": 10}.items()
    assert report.columns == {"forces": 10, "old_forces": 10}


def test_units_that_nobody_states_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path, rmd17())
    with pytest.raises(UserError, match=r"dataset\.energy_unit: missing; .*x\.npz does not state it"):
        read_path(path)
    with pytest.raises(UserError, match=r"dataset\.length_unit: missing; .*x\.npz does not state it"):
        read_path(path, energy_unit="kcal/mol")
    without_energy = {key: values for key, values in rmd17().items() if key != "energies"}
    with pytest.raises(UserError, match=r"dataset\.energy_unit: missing"):
        read_path(save(tmp_path, without_energy), length_unit="angstrom")  # that of the forces would follow from it


def test_sgdml_states_its_units(tmp_path: Path) -> None:
    arrays = sgdml()
    structures, report = read_path(save(tmp_path, arrays))
    np.testing.assert_allclose(structures.energy, arrays["E"][:, 0] * KCAL_PER_MOL, rtol=1e-14)
    np.testing.assert_allclose(structures.forces, arrays["F"].reshape(-1, 3) * KCAL_PER_MOL, rtol=1e-13)
    np.testing.assert_array_equal(structures.positions, arrays["R"].reshape(-1, 3).astype(float))
    energy = report.origin("energy_key")
    assert energy is not None
    assert (energy.key, energy.unit, energy.num_carriers) == ("E", "kcal/mol (stated in the file)", 10)
    assert report.keys["theory"] == 10
    with pytest.raises(UserError, match=r"dataset\.energy_unit: must be the unit that the file states"):
        read_path(tmp_path / "x.npz", energy_unit="eV")


def test_the_unit_of_forces_follows_from_stated_units(tmp_path: Path) -> None:
    arrays = {**sgdml(), "e_unit": np.array("kJ/mol"), "r_unit": np.array("bohr")}
    structures, _ = read_path(save(tmp_path, arrays))
    np.testing.assert_allclose(structures.forces, arrays["F"].reshape(-1, 3) * KJ_PER_MOL / BOHR, rtol=1e-10)
    np.testing.assert_allclose(structures.positions, arrays["R"].reshape(-1, 3).astype(float) * BOHR, rtol=1e-14)


def test_atomic_units_by_their_short_name_are_understood(tmp_path: Path) -> None:
    arrays = {**sgdml(), "e_unit": np.array("au"), "r_unit": np.array("a.u.")}
    structures, _ = read_path(save(tmp_path, arrays))
    np.testing.assert_allclose(structures.forces, arrays["F"].reshape(-1, 3) * 27.211386245988 / BOHR, rtol=1e-13)


def test_other_files_are_read_by_named_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = np.eye(3) * 5 + rng.normal(size=(4, 3, 3)) * 0.1
    stress = np.array([[1.0, 2, 3, 4, 5, 6]] * 4)
    arrays = {
        "numbers": np.array([6, 8], np.int16),
        "xyz": rng.normal(size=(4, 2, 3)),
        "U": np.array([1, 2, 3, 4]),
        "grad": rng.normal(size=(4, 2, 3)),
        "box": cells.reshape(4, 9),
        "pbc": np.array([True, True, False]),
        "sigma": stress,
        "q": np.array(-1),
        "charges": np.full((4, 2, 1), 0.5),
        "kind": np.array(["a", "a", "b", "b"]),
        "chain": np.array([7, 7, 8, 9]),
    }
    structures, report = read_path(
        save(tmp_path, arrays),
        atomic_numbers_key="numbers",
        positions_key="xyz",
        energy_key="U",
        gradient_key="grad",
        cell_key="box",
        periodic_key="pbc",
        stress_key="sigma",
        total_charge_key="q",
        partial_charges_key="charges",
        subset_key="kind",
        group_key="chain",
        energy_unit="eV",
        length_unit="bohr",
    )
    np.testing.assert_allclose(structures.cell, cells * BOHR, rtol=1e-14)
    assert structures.periodic.tolist() == [[True, True, False]] * 4
    assert structures.energy.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(structures.forces, -arrays["grad"].reshape(-1, 3) / BOHR, rtol=1e-13)
    np.testing.assert_allclose(structures.stress[0], np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]]) / BOHR**3, rtol=1e-13)
    assert structures.total_charge.tolist() == [-1] * 4
    assert structures.partial_charges.tolist() == [0.5] * 8
    assert structures.subset_names == ("a", "b")
    assert structures.group.tolist() == [0, 0, 2, 3]
    assert report.columns == {"grad": 4, "charges": 4}


def test_a_cell_alone_means_periodic_and_a_virial_becomes_a_stress(tmp_path: Path) -> None:
    arrays = {**rmd17(2), "cell": np.eye(3) * 4.0, "W": np.stack([np.eye(3), 2 * np.eye(3)])}
    structures, _ = read_path(save(tmp_path, arrays), cell_key="cell", virial_key="W", **UNITS)
    assert structures.periodic.all()
    np.testing.assert_allclose(structures.stress[1], -2 * np.eye(3) * KCAL_PER_MOL / 64, rtol=1e-13)


@pytest.mark.parametrize("fill", [0, -1])
def test_atoms_that_only_fill_up_are_left_out(tmp_path: Path, fill: int) -> None:
    numbers = np.array([[8, 1, 1], [1, 1, fill], [2, fill, fill]])
    arrays = {**rmd17(3), "nuclear_charges": numbers}
    arrays["coords"][numbers == fill] = np.nan
    path = save(tmp_path, arrays)
    structures, _ = read_path(path, **UNITS)
    assert structures.num_atoms.tolist() == [3, 2, 1]
    assert structures.atomic_numbers.tolist() == [8, 1, 1, 1, 1, 2]
    np.testing.assert_array_equal(structures.positions, arrays["coords"][numbers != fill])
    np.testing.assert_allclose(structures.forces, arrays["forces"][numbers != fill] * KCAL_PER_MOL, rtol=1e-13)
    parts = list(read_parts(path, Npz(name="npz", path=str(path), **UNITS), max_atoms=3))
    assert [part.structures.num_atoms.tolist() for part in parts] == [[3], [2, 1]]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_atoms", [1, 3, 7, 30])
def test_parts_of_any_size_give_the_same_structures(tmp_path: Path, max_atoms: int, packed: bool) -> None:
    path = save(tmp_path, {**rmd17(), "kind": np.array(list("aabbbccccc"))}, packed=packed)
    section = Npz(name="npz", path=str(path), subset_key="kind", **UNITS)
    whole = next(read_parts(path, section)).structures
    parts = [part.structures for part in read_parts(path, section, max_atoms=max_atoms)]
    assert max(map(len, parts)) == max(1, max_atoms // 3)
    for column in COLUMNS:
        if column != "group":
            np.testing.assert_array_equal(getattr(concatenate(parts), column), getattr(whole, column))


def test_arrays_in_columns_other_byte_orders_and_old_headers_are_read(tmp_path: Path) -> None:
    arrays = rmd17()
    arrays["coords"] = np.asfortranarray(arrays["coords"])
    arrays["forces"] = arrays["forces"].astype(">f4")
    path = save(tmp_path, arrays)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10L,), }"
    old = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n" + arrays["energies"].tobytes()
    replace_member(path, "energies", old)
    structures, _ = read_path(path, **UNITS)
    np.testing.assert_array_equal(structures.positions, arrays["coords"].reshape(-1, 3))
    np.testing.assert_allclose(structures.forces, arrays["forces"].reshape(-1, 3).astype(float) * KCAL_PER_MOL, rtol=1e-13)
    np.testing.assert_allclose(structures.energy, arrays["energies"] * KCAL_PER_MOL, rtol=1e-14)


def replace_member(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of an array."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, data if member == f"{name}.npy" else old)


def bytes_of(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def with_value(key: str, place: tuple[int, ...], value: float) -> dict[str, Any]:
    values = rmd17()[key].copy()
    values[place] = value
    return {key: values}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "structures differ": ({"energies": np.zeros(9)}, r"energies: must have the shape \(C,\) or \(C, 1\) .*C = 10.*got \(9,\)"),
    "atoms differ": ({"forces": np.zeros((10, 2, 3))}, r"forces: must have the shape \(C, n, 3\) .*n = 3 atoms"),
    "numbers differ": ({"nuclear_charges": np.ones(4, int)}, r"nuclear_charges: must have the shape \(C, n\).* or \(n,\)"),
    "positions flat": ({"coords": np.zeros((10, 9))}, r"coords: must have the shape \(structures, atoms, 3\)"),
    "no structures": ({"coords": np.zeros((0, 3, 3))}, r"coords: must hold at least one structure"),
    "positions NaN": (with_value("coords", (2, 1, 0), np.nan), r"coords: structure 2: must be finite .*got nan"),
    "positions infinite": (with_value("coords", (9, 2, 2), np.inf), r"coords: structure 9: .*got inf"),
    "forces huge": (with_value("forces", (5, 0, 0), 1e300), r"forces: structure 5: must be finite, or NaN .*got 1e\+300"),
    "element 0": ({"nuclear_charges": np.array([8, 1, 0])}, r"nuclear_charges: structure 0: .*from 1 to 118 \(got 0\)"),
    "element 200": ({"nuclear_charges": np.array([8, 200, 1])}, r"nuclear_charges: structure 0: .*got 200"),
    "only fill": (
        {"nuclear_charges": np.array([[1, 1, 1]] * 9 + [[0, 0, 0]])},
        r"nuclear_charges: structure 9: must have at least",
    ),
    "numbers of another type": (
        {"nuclear_charges": np.ones(3)},
        r"nuclear_charges: must hold whole numbers \(got the type '<f8'",
    ),
    "texts": ({"energies": np.array(["x"] * 10)}, r"energies: must hold numbers \(got the type '<U1'"),
    "complex": ({"forces": np.zeros((10, 3, 3), complex)}, r"forces: must hold numbers \(got the type '<c16'"),
    "fields": (
        {"energies": np.zeros(10, dtype=[("a", float)])},
        r"energies: must hold numbers \(got the type 'several fields'",
    ),
    "objects": (
        {"energies": np.array([None] * 10)},
        r"energies: must hold numbers .*pickled Python objects, which are not read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_and_array(tmp_path: Path, fault: str) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(UserError, match=rf"x\.npz: {message}"):
        read_path(save(tmp_path, {**rmd17(), **changes}), **UNITS)


def test_objects_that_nobody_asks_for_do_no_harm(tmp_path: Path) -> None:
    structures, report = read_path(save(tmp_path, {**rmd17(), "notes": np.array([{}] * 10)}), **UNITS)
    assert len(structures) == report.keys["notes"] == 10


def test_damaged_arrays_are_faults(tmp_path: Path) -> None:
    full = bytes_of(rmd17()["energies"])
    for data, message in (
        (full[:-8], r"energies: must have 80 bytes for its shape \(10,\) \(got 72\)"),
        (full + b"x", r"energies: must have 80 bytes for its shape \(10,\) \(got 81\)"),
        (b"energies", r"energies: must be an array as numpy saves it"),
        (full.replace(b"'descr'", b"'DESCR'"), r"energies: must have a header as numpy writes it"),
        (full.replace(b"<f8", b"<f7"), r"energies: must hold numbers \(got the type '<f7'"),
        (full.replace(b"(10,)", b"(9" * 20), r"energies: must have a header as numpy writes it"),
    ):
        path = save(tmp_path, rmd17())
        replace_member(path, "energies", data)
        with pytest.raises(UserError, match=rf"x\.npz: {message}"):
            read_path(path, **UNITS)


def test_a_wrong_checksum_is_a_fault(tmp_path: Path) -> None:
    path = save(tmp_path, rmd17())
    data = path.read_bytes()
    place = data.index(rmd17()["coords"].tobytes()[:16])
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(UserError, match=r"x\.npz: coords: cannot be read \(Bad CRC-32"):
        read_path(path, **UNITS)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match=r"x\.npz: there is no such file"):
        read_path(path)
    for data, message in (
        (b"", r"must be an npz file, which is a zip archive \(got one that begins with b''"),
        (b"3\nenergy=1", "must be an npz file, which is a zip archive"),
        (bytes_of(np.zeros(3)), r".*a single array as \.npy cannot hold a data set"),
        (b"PK\x03\x04" + bytes(100), r"cannot be read \(File is not a zip file\); the file is damaged or not complete"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"x\.npz: {message}"):
            read_path(path)
    save(tmp_path, rmd17())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"x\.npz: cannot be read"):
        read_path(path)
    with pytest.raises(UserError, match=r"must be an npz file \(got a folder\)"):
        read_path(tmp_path)


def test_unknown_names_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path, {"numbers": np.ones(3, int), "xyz": np.zeros((2, 3, 3))})
    with pytest.raises(UserError, match=r"nuclear_charges and coords or z and R.*\(got numbers, xyz\); name them in dataset"):
        read_path(path)
    with pytest.raises(UserError, match=r"must hold the arrays Z, as the experiment says \(got numbers, xyz\)"):
        read_path(path, atomic_numbers_key="Z", positions_key="xyz")
    with pytest.raises(UserError, match=r"x\.npz: must hold the array box \(dataset\.cell_key\)"):
        read_path(path, atomic_numbers_key="numbers", positions_key="xyz", cell_key="box", **UNITS)


def test_periodic_structures_need_a_cell(tmp_path: Path) -> None:
    flat = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    path = save(tmp_path, {**rmd17(), "box": flat, "pbc": np.ones((10, 3), int)})
    with pytest.raises(UserError, match=r"x\.npz: box: structure 0: a periodic structure must have a cell"):
        read_path(path, cell_key="box", **UNITS)
    with pytest.raises(UserError, match=r"x\.npz: pbc: structure 0: a periodic structure must have a cell"):
        read_path(path, periodic_key="pbc", **UNITS)
