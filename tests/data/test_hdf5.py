"""HDF5: the structures and labels that h5py finds in files of each layout, and faults named by file, group and dataset."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from modelforge.data.sources.gather import read
from modelforge.data.sources.hdf5 import HDF5, read_parts
from modelforge.data.sources.read_report import Reading
from modelforge.data.structures import COLUMNS, concatenate
from modelforge.errors import UserError

HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, angstrom
KJ_PER_MOL, NM = 0.010364269656262174, 10.0
Groups = dict[str, dict[str, Any]]


def read_path(path: Path, **options: Any) -> Reading:
    return read([HDF5(name="hdf5", path=str(path), **options).files([path])])


def write(path: Path, groups: Groups, *, attribute: str = "units", units: dict[str, str] | None = None) -> Path:
    """A file with these datasets; texts are saved with variable length."""
    with h5py.File(path, "w") as file:
        for name, datasets in groups.items():
            group = file.create_group(name)
            for key, values in datasets.items():
                group[key] = values
                if units and key in units:
                    group[key].attrs[attribute] = units[key]
    return path


def water(num: int = 4) -> dict[str, Any]:
    """A group as in the ANI-2x release."""
    rng = np.random.default_rng(num)
    return {
        "species": np.tile([8, 1, 1], (num, 1)),
        "coordinates": rng.normal(size=(num, 3, 3)).astype(np.float32),
        "energies": rng.normal(size=num),
        "forces": rng.normal(size=(num, 3, 3)),
    }


def molecule(num: int = 3, num_atoms: int = 2) -> dict[str, Any]:
    """A group as in the SPICE release."""
    rng = np.random.default_rng(num)
    return {
        "atomic_numbers": np.arange(1, num_atoms + 1, dtype=np.int16),
        "conformations": rng.normal(size=(num, num_atoms, 3)).astype(np.float32),
        "dft_total_energy": rng.normal(size=num),
        "dft_total_gradient": rng.normal(size=(num, num_atoms, 3)).astype(np.float32),
    }


def record(num: int = 3, num_atoms: int = 2) -> dict[str, Any]:
    """A group as in files of the original modelforge."""
    rng = np.random.default_rng(num)
    return {
        "n_configs": num,
        "atomic_numbers": np.arange(1, num_atoms + 1)[:, None],
        "positions": rng.normal(size=(num, num_atoms, 3)),
        "energies": rng.normal(size=(num, 1)),
        "forces": rng.normal(size=(num, num_atoms, 3)),
    }


RECORD_UNITS = {"positions": "nanometer", "energies": "kilojoule_per_mole", "forces": "kilojoule_per_mole / nanometer"}


def test_spice_release_is_read_with_its_units_groups_and_subsets(shared_data: Path) -> None:
    path = shared_data / "formats" / "SPICE-1.1.4_n2.hdf5"
    keys = {"partial_charges_key": "mbis_charges", "dipole_key": "scf_dipole", "quadrupole_key": "scf_quadrupole"}
    structures, report = read_path(path, **keys)
    with h5py.File(path) as file:
        first, second = file["103147721"], file["C#C.[Na+]"]
        both = [first, second]
        assert structures.num_atoms.tolist() == [27] * 50 + [5] * 5
        assert structures.atomic_numbers[:27].tolist() == first["atomic_numbers"][()].tolist()
        assert structures.atomic_numbers[-5:].tolist() == second["atomic_numbers"][()].tolist()

        def joined(key: str, *shape: int) -> np.ndarray:
            return np.concatenate([group[key][()].astype(float).reshape(-1, *shape) for group in both])

        np.testing.assert_allclose(structures.positions, joined("conformations", 3) * BOHR, rtol=1e-14)
        np.testing.assert_allclose(structures.energy, joined("dft_total_energy") * HARTREE, rtol=1e-14)
        np.testing.assert_allclose(structures.forces, -joined("dft_total_gradient", 3) * HARTREE / BOHR, rtol=1e-13)
        np.testing.assert_allclose(structures.dipole, joined("scf_dipole", 3) * BOHR, rtol=1e-14)
        np.testing.assert_allclose(structures.quadrupole, joined("scf_quadrupole", 3, 3) * BOHR**2, rtol=1e-14)
        np.testing.assert_array_equal(structures.partial_charges[:1350], first["mbis_charges"][()].ravel().astype(float))
        assert np.isnan(structures.partial_charges[1350:]).all()
        assert structures.subset_names == tuple(group["subset"][0].decode() for group in both)
    assert structures.subset.tolist() == [0] * 50 + [1] * 5
    assert len(set(structures.group[:50])) == len(set(structures.group[50:])) == 1
    assert structures.group[0] != structures.group[-1]
    assert structures.index_in_file.tolist() == list(range(55))
    assert not structures.periodic.any()
    gradient, charges = report.origin("gradient_key"), report.origin("partial_charges_key")
    assert gradient is not None
    assert (gradient.key, gradient.unit, gradient.num_carriers) == (
        "dft_total_gradient",
        "hartree/bohr (stated in the file)",
        55,
    )
    assert charges is not None
    assert charges.num_carriers == 50
    assert report.keys["smiles"] == 55
    assert report.columns["mbis_charges"] == 50


def test_ani2x_release_is_read_in_hartree_and_angstrom(shared_data: Path) -> None:
    path = shared_data / "formats" / "ani2x_minimal.hdf5"
    structures, report = read_path(path)
    with h5py.File(path) as file:
        group = file["002"]
        assert len(structures) == 5706
        np.testing.assert_array_equal(structures.atomic_numbers, group["species"][()].ravel())
        np.testing.assert_array_equal(structures.positions, group["coordinates"][()].reshape(-1, 3).astype(float))
        np.testing.assert_allclose(structures.energy, group["energies"][()] * HARTREE, rtol=1e-14)
        np.testing.assert_allclose(structures.forces, group["forces"][()].reshape(-1, 3) * HARTREE, rtol=1e-14)
    assert len(set(structures.group.tolist())) == 5706
    assert {origin.option: origin.unit for origin in report.origins} == {
        "energy_key": "hartree",
        "forces_key": "hartree/angstrom",
    }


def test_qm9_of_the_original_modelforge_is_read_once_its_energy_is_named(shared_data: Path) -> None:
    path = shared_data / "formats" / "qm9_dataset_v1.1_ntc_10.hdf5"
    keys = {"partial_charges_key": "partial_charges", "dipole_key": "dipole_moment_per_system"}
    structures, report = read_path(path, energy_key="internal_energy_at_0K", **keys)
    with h5py.File(path) as file:
        groups = [file[name] for name in sorted(file)]
        assert structures.num_atoms.tolist() == [len(group["atomic_numbers"]) for group in groups]
        for column, key, factor in (
            ("atomic_numbers", "atomic_numbers", 1),
            ("positions", "positions", NM),
            ("energy", "internal_energy_at_0K", KJ_PER_MOL),
            ("partial_charges", "partial_charges", 1.0),
            ("dipole", "dipole_moment_per_system", NM),
        ):
            expected = np.concatenate([group[key][()].ravel() * factor for group in groups])
            np.testing.assert_allclose(getattr(structures, column).ravel(), expected, rtol=1e-12)
    assert len(set(structures.group.tolist())) == 10
    energy = report.origin("energy_key")
    assert energy is not None
    assert energy.unit == "kilojoule_per_mole (stated in the file)"


def test_an_energy_that_has_another_name_is_reported_with_the_names_there(shared_data: Path) -> None:
    _, report = read_path(shared_data / "formats" / "qm9_dataset_v1.1_ntc_10.hdf5")
    energy = report.origin("energy_key")
    assert energy is not None
    assert (energy.key, energy.num_carriers) == ("energies", 0)
    assert "internal_energy_at_0K" in report.absence(energy)
    assert "datasets per structure there" in report.absence(energy)


def test_records_of_the_original_modelforge_are_read_with_every_label(shared_data: Path) -> None:
    path = shared_data / "formats" / "test_dataset.hdf5"
    options = {
        "total_charge_key": "total_charge",
        "spin_multiplicity_key": "spin_multiplicities_per_system",
        "dipole_key": "dipole_moment_per_system",
        "quadrupole_key": "quadrupole_moment_per_system",
        "partial_charges_key": "partial_charges",
    }
    structures, report = read_path(path, **options)
    with h5py.File(path) as file:
        for column, key, factor in (
            ("energy", "energies", KJ_PER_MOL),
            ("forces", "forces", KJ_PER_MOL / NM),
            ("total_charge", "total_charge", 1.0),
            ("spin_multiplicity", "spin_multiplicities_per_system", 1.0),
            ("dipole", "dipole_moment_per_system", NM),
            ("quadrupole", "quadrupole_moment_per_system", NM**2),
            ("partial_charges", "partial_charges", 1.0),
        ):
            expected = np.concatenate([file[name][key][()].ravel() * factor for name in ("mol1", "mol2", "mol3")])
            np.testing.assert_allclose(getattr(structures, column).ravel(), expected, rtol=1e-12)
    assert structures.group.tolist() == [0, 0, 2, 2, 4, 4]
    assert report.columns["spin_multiplicities_per_atom"] == 6
    assert "n_configs" not in report.keys


def test_grouped_records_are_taken_apart_into_their_molecules(shared_data: Path) -> None:
    path = shared_data / "formats" / "test_dataset_grouped.hdf5"
    structures, report = read_path(path, subset_key="smiles")
    numbers, energies, names, smiles = [], [], [], []
    with h5py.File(path) as file:
        for group in (file["group_2"], file["group_3"], file["group_5"]):
            for conformation, index in enumerate(group["grouped_indices"][()]):
                numbers.extend(group["atomic_numbers"][index].ravel().tolist())
                energies.append(group["energies"][conformation, 0] * KJ_PER_MOL)
                names.append(group["grouped_names"][index].decode())
                smiles.append(group["smiles"][index].decode())
        positions = np.concatenate(
            [file[name]["positions"][()].reshape(-1, 3) * NM for name in ("group_2", "group_3", "group_5")]
        )
    assert structures.num_atoms.tolist() == [2] * 6 + [3] * 3 + [5]
    assert structures.atomic_numbers.tolist() == numbers
    np.testing.assert_allclose(structures.positions, positions, rtol=1e-14)
    np.testing.assert_allclose(structures.energy, energies, rtol=1e-12)
    assert [names.index(name) for name in names] == structures.group.tolist()
    assert [structures.subset_names[index] for index in structures.subset] == smiles
    assert report.keys["temperature"] == 10


@pytest.mark.parametrize("name", ["SPICE-1.1.4_n2", "ani2x_minimal", "qm9_dataset_v1.1_ntc_10", "test_dataset_grouped"])
@pytest.mark.parametrize("max_atoms", [1, 7, 20])
def test_parts_of_any_size_give_the_same_structures(shared_data: Path, name: str, max_atoms: int) -> None:
    path = shared_data / "formats" / f"{name}.hdf5"
    if name == "ani2x_minimal" and max_atoms == 1:
        max_atoms = 100  # thousands of parts of one structure take their time
    section = HDF5(name="hdf5", path=str(path))
    whole = list(read_parts(path, section, max_atoms=10**9))
    parts = list(read_parts(path, section, max_atoms=max_atoms))
    assert len(parts) > len(whole) == 1
    together, expected = concatenate([part.structures for part in parts]), whole[0].structures
    for column in COLUMNS:
        if column != "group":
            np.testing.assert_array_equal(getattr(together, column), getattr(expected, column))
    for counts in ("keys", "columns"):
        assert {key: sum(getattr(part, counts).get(key, 0) for part in parts) for key in getattr(whole[0], counts)} == getattr(
            whole[0], counts
        )
    assert [group for part in parts for group in part.groups or ()] == list(whole[0].groups or ())


def test_a_large_group_is_read_in_parts_of_bounded_size_that_hold_whole_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in water(1000).items():
            file.create_dataset(f"003/{key}", data=values, chunks=(40, *values.shape[1:]), compression="gzip")
    sizes = [len(part.structures) for part in read_parts(path, HDF5(name="hdf5", path=str(path)), max_atoms=300)]
    assert sizes == [80] * 12 + [40]


def test_ani1x_release_keeps_formulas_together_and_missing_levels_of_theory_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = {}
    for name, numbers, num in (("C1H4", [6, 1, 1, 1, 1], 3), ("H2O1", [8, 1, 1], 2)):
        energies = rng.normal(size=num)
        energies[0] = np.nan
        groups[name] = {
            "atomic_numbers": np.array(numbers, np.uint8),
            "coordinates": rng.normal(size=(num, len(numbers), 3)).astype(np.float32),
            "wb97x_dz.energy": energies,
            "wb97x_dz.forces": rng.normal(size=(num, len(numbers), 3)).astype(np.float32),
            "ccsd(t)_cbs.energy": np.full(num, np.nan),
        }
    structures, report = read_path(write(tmp_path / "x.hdf5", groups))
    assert np.isnan(structures.energy).tolist() == [True, False, False, True, False]
    assert structures.energy[4] == pytest.approx(groups["H2O1"]["wb97x_dz.energy"][1] * HARTREE, rel=1e-14)
    assert structures.group.tolist() == [0, 0, 0, 3, 3]
    energy = report.origin("energy_key")
    assert energy is not None
    assert (energy.key, energy.unit, energy.num_incomplete) == ("wb97x_dz.energy", "hartree", 2)


def test_a_label_that_some_groups_lack_is_missing_there(tmp_path: Path) -> None:
    without = {key: values for key, values in water(2).items() if key != "forces"}
    structures, report = read_path(write(tmp_path / "x.hdf5", {"a": water(3), "b": without}))
    assert structures.has_force.tolist() == [True] * 9 + [False] * 6
    forces = report.origin("forces_key")
    assert forces is not None
    assert forces.num_carriers == 3


def test_groups_that_state_different_units_are_converted_each_by_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"a": molecule(), "b": molecule(), "c": molecule()})
    with h5py.File(path, "r+") as file:
        file["b/dft_total_energy"].attrs["units"] = "kcal/mol"
        file["b/conformations"].attrs["units"] = np.bytes_("angstrom")
    structures, _ = read_path(path)
    expected = molecule()["dft_total_energy"]
    np.testing.assert_allclose(structures.energy[:3], expected * HARTREE, rtol=1e-13)
    np.testing.assert_allclose(structures.energy[3:6], expected * 0.0433641042415, rtol=1e-10)
    np.testing.assert_allclose(structures.energy[6:], expected * HARTREE, rtol=1e-13)
    np.testing.assert_allclose(structures.positions[6:12], molecule()["conformations"].reshape(-1, 3), rtol=1e-14)
    gradient = molecule()["dft_total_gradient"].reshape(-1, 3).astype(float)
    np.testing.assert_allclose(structures.forces[6:12], -gradient * 0.0433641042415, rtol=1e-10)  # kcal/mol/angstrom follows
    np.testing.assert_allclose(structures.forces[:6], -gradient * HARTREE / BOHR, rtol=1e-13)


def test_units_of_the_experiment_hold_where_the_file_states_none_and_must_not_contradict_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"a": water()})
    structures, report = read_path(path, energy_unit="kcal/mol")
    np.testing.assert_allclose(structures.forces, water()["forces"].reshape(-1, 3) * 0.0433641042415, rtol=1e-10)
    forces = report.origin("forces_key")
    assert forces is not None
    assert forces.unit == "kcal/mol/angstrom"
    stated = write(tmp_path / "y.hdf5", {"a": record()}, attribute="u", units=RECORD_UNITS)
    with pytest.raises(UserError, match=r"dataset\.energy_unit: must be the unit that the file states.*y\.hdf5"):
        read_path(stated, energy_unit="eV")


def test_units_that_nobody_states_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"a": record()})
    with pytest.raises(UserError, match=r"dataset\.energy_unit: missing; .*x\.hdf5 does not state it"):
        read_path(path)
    structures, _ = read_path(path, energy_unit="eV", length_unit="nm")
    np.testing.assert_allclose(structures.forces, record()["forces"].reshape(-1, 3) / NM, rtol=1e-14)


def test_labels_of_a_molecule_may_stand_once_or_for_each_conformation(tmp_path: Path) -> None:
    extra = {
        "charge": 1,
        "spin": np.array([[2], [2], [4]]),
        "weight": np.array([0.5, np.nan, 2.0]),
        "q": np.arange(27.0).reshape(3, 9),
        "kin": np.array(["a", "b", "a"], dtype=h5py.string_dtype()),
        "set": np.array([b"train"]),
    }
    path = write(tmp_path / "x.hdf5", {"a": {**water(3), **extra}})
    keys = {"total_charge_key": "charge", "spin_multiplicity_key": "spin", "weight_key": "weight", "quadrupole_key": "q"}
    structures, report = read_path(path, group_key="kin", subset_key="set", quadrupole_unit="e*angstrom^2", **keys)
    assert structures.total_charge.tolist() == [1, 1, 1]
    assert structures.spin_multiplicity.tolist() == [2, 2, 4]
    assert structures.weight.tolist() == [0.5, 1.0, 2.0]
    np.testing.assert_array_equal(structures.quadrupole.ravel(), np.arange(27.0))
    assert structures.group.tolist() == [0, 1, 0]
    assert structures.subset_names == ("train",)
    assert report.keys["q"] == 3


def test_a_gradient_that_is_named_takes_the_place_of_the_layouts_forces(tmp_path: Path) -> None:
    values = water()
    path = write(tmp_path / "x.hdf5", {"a": {**values, "gradient": values["forces"]}})
    section = HDF5(name="hdf5", path=str(path), gradient_key="gradient").files([path]).reader
    assert dict(section.label_keys()) == {"energy_key": "energies", "gradient_key": "gradient"}
    structures, _ = read_path(path, gradient_key="gradient")
    np.testing.assert_allclose(structures.forces, -values["forces"].reshape(-1, 3) * HARTREE, rtol=1e-14)


def test_datasets_beside_the_groups_and_groups_without_conformations_hold_no_structures(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"a": water(0), "b": water(2)})
    with h5py.File(path, "r+") as file:
        file["_created"] = "by somebody"
    assert len(read_path(path).structures) == 2


def changed(**changes: Any) -> dict[str, Any]:
    """A group of water with some datasets changed, or left out where they are None."""
    return {key: values for key, values in {**water(), **changes}.items() if values is not None}


def with_value(key: str, place: tuple[int, ...], value: float) -> dict[str, Any]:
    values = water()[key].copy()
    values[place] = value
    return {key: values}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "conformations differ": (
        {"energies": np.zeros(3)},
        r"energies: must have the shape \(C,\) or \(C, 1\) .*C = 4.*got \(3,\)",
    ),
    "atoms differ": (
        {"forces": np.zeros((4, 2, 3))},
        r"forces: must have the shape \(C, n, 3\) .*n = 3 atoms.*got \(4, 2, 3\)",
    ),
    "numbers differ": ({"species": np.ones((3, 3), int)}, r"species: must have the shape"),
    "positions flat": ({"coordinates": np.zeros((4, 9))}, r"coordinates: must have the shape \(conformations, atoms, 3\)"),
    "positions NaN": (
        with_value("coordinates", (2, 1, 0), np.nan),
        r"coordinates: structure 6 \(conformation 2\): must be finite .*got nan",
    ),
    "positions huge": (with_value("coordinates", (0, 0, 0), 1e35), r"coordinates: structure 4 .*got 1e\+35"),
    "energy infinite": (with_value("energies", (3,), -np.inf), r"energies: structure 7 .*must be finite, or NaN .*got -inf"),
    "element 0": (with_value("species", (1, 2), 0), r"species: structure 5 .*from 1 to 118 \(got 0\)"),
    "element 119": (with_value("species", (1, 2), 119), r"species: structure 5 .*got 119"),
    "padding": (with_value("species", (0, 2), -1), r"species: structure 4 .*got -1"),
    "numbers of another type": ({"species": np.full((4, 3), 1.5)}, r"species: must hold whole numbers \(got float64\)"),
    "texts": ({"energies": np.array([b"x"] * 4)}, r"energies: must hold numbers \(got"),
    "booleans": ({"forces": np.ones((4, 3, 3), bool)}, r"forces: must hold numbers"),
    "nothing in it": ({"energies": h5py.Empty("f8")}, r"energies: must hold values \(got an empty dataset\)"),
    "no positions": ({"coordinates": None}, r"must hold 'coordinates'; in it: energies, forces, species"),
    "no atoms": ({"coordinates": np.zeros((4, 0, 3))}, r"coordinates: must have at least one atom"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_group_and_dataset(tmp_path: Path, fault: str) -> None:
    changes, message = FAULTS[fault]
    path = write(tmp_path / "x.hdf5", {"003": water(), "bad": changed(**changes)})
    with pytest.raises(UserError, match=rf"x\.hdf5: group 'bad': {message}"):
        read_path(path)


def test_a_group_in_place_of_a_dataset_is_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"003": changed(energies=None)})
    with h5py.File(path, "r+") as file:
        file.create_group("003/energies")
    with pytest.raises(UserError, match=r"x\.hdf5: group '003': energies: must be a dataset"):
        read_path(path)


def test_values_that_were_never_written_are_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"003": changed(energies=None, forces=None)})
    with h5py.File(path, "r+") as file:
        file.create_dataset("003/energies", (4,), "f8")
    with pytest.raises(UserError, match=r"group '003': energies: has values that were never written"):
        read_path(path)
    with h5py.File(path, "r+") as file:
        del file["003/energies"]
        file.create_dataset("003/energies", (4,), "f8", chunks=(2,))[:2] = 1.0
    with pytest.raises(UserError, match=r"group '003': energies: has values that were never written"):
        read_path(path)


def test_counts_that_contradict_each_other_in_records_are_faults(tmp_path: Path, shared_data: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"mol": {**record(), "n_configs": 4}}, attribute="u", units=RECORD_UNITS)
    with pytest.raises(UserError, match=r"group 'mol': positions: must have the \[4\] conformations that n_configs states"):
        read_path(path)
    grouped = tmp_path / "y.hdf5"
    grouped.write_bytes((shared_data / "formats" / "test_dataset_grouped.hdf5").read_bytes())
    with h5py.File(grouped, "r+") as file:
        file["group_2/grouped_indices"][0] = 2
    with pytest.raises(UserError, match=r"group 'group_2': grouped_indices: must name each molecule as often"):
        read_path(grouped)
    with h5py.File(grouped, "r+") as file:
        file["group_2/grouped_n_configs"][...] = [2, 3, 2]
    with pytest.raises(UserError, match=r"group 'group_2': grouped_n_configs: must sum up to the 6 conformations"):
        read_path(grouped)


def test_an_unknown_layout_lists_what_is_in_the_first_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"mol": {"Z": np.ones(2), "xyz": np.ones((2, 3))}})
    with pytest.raises(UserError, match=r"x\.hdf5: group 'mol': must hold .*conformations \(spice\).*; in it: Z, xyz;"):
        read_path(path)
    other = write(tmp_path / "y.hdf5", {"003": water()})
    with pytest.raises(UserError, match=r"it has the layout 'ani': set dataset\.layout"):
        read_path(other, layout="spice")


def test_units_that_are_no_units_are_faults(tmp_path: Path) -> None:
    for unit in ("parsec", "hartree", "hartree^999999"):
        path = write(tmp_path / "x.hdf5", {"mol": molecule()}, units={"conformations": unit})
        with pytest.raises(UserError, match=r"x\.hdf5: length: "):
            read_path(path)
    path = write(tmp_path / "x.hdf5", {"mol": molecule()})
    with h5py.File(path, "r+") as file:
        file["mol/conformations"].attrs["units"] = 3
    with pytest.raises(UserError, match=r"group 'mol': conformations: its attribute 'units' must be one text"):
        read_path(path)


def no_file(path: Path) -> None:
    """Leave nothing there."""


NO_HDF5: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (no_file, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "must be an HDF5 file .got a folder"),
    "empty": (lambda path: path.write_bytes(b""), "must be an HDF5 file .got an empty file"),
    "text": (lambda path: path.write_text("3\nenergy=1\n"), "must be an HDF5 file .got one that begins with"),
    "no groups": (lambda path: write(path, {}), "must hold at least one group"),
    "no structures": (lambda path: write(path, {"a": water(0)}), "must hold at least one structure"),
    "nothing in the group": (lambda path: write(path, {"a": {}}), "group 'a': must hold .*in it: nothing"),
}


@pytest.mark.parametrize("kind", NO_HDF5)
def test_what_is_no_hdf5_file_with_structures_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.hdf5"
    make, message = NO_HDF5[kind]
    make(path)
    with pytest.raises(UserError, match=rf"x\.hdf5: {message}"):
        read_path(path)


def test_a_truncated_file_is_refused(tmp_path: Path, shared_data: Path) -> None:
    data = (shared_data / "formats" / "ani2x_minimal.hdf5").read_bytes()
    path = tmp_path / "x.hdf5"
    path.write_bytes(data[:-1000])
    with pytest.raises(UserError, match=r"x\.hdf5: cannot be read .*truncated.*; the file is damaged or not complete"):
        read_path(path)


def test_a_file_that_somebody_has_locked_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"003": water()})
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(read_path(path).structures) == 4


def test_a_file_without_the_asked_key_reads_as_missing_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", {"003": water()})
    structures, report = read_path(path, energy_key="energy")
    energy = report.origin("energy_key")
    assert energy is not None
    assert "did you mean 'energies'" in report.absence(energy)
    assert not structures.has_energy.any()
