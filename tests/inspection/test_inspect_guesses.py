"""What is guessed when files lack keys or units, and what is left to the user."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from toy_experiment import water, waters

from modelforge.errors import UserError
from modelforge.inspection import reading
from modelforge.inspection.inspecting import inspect_files
from modelforge.inspection.label_names import looks_like


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(folder: Path, text: str, name: str = "water.xyz") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def ethanols(shared_data: Path) -> dict[str, np.ndarray]:
    """Ethanol in kcal/mol as files of sGDML hold it."""
    frames = ase.io.read(shared_data / "formats/ethanol_reduced_100.xyz", ":")
    return {
        "z": frames[0].numbers,
        "R": np.array([frame.positions for frame in frames]),
        "E": np.array([frame.get_potential_energy() for frame in frames]),
        "F": np.array([frame.get_forces() for frame in frames]),
    }


@pytest.mark.parametrize(
    ("key", "per_atom", "option"),
    [
        ("REF_energy", False, "energy_key"),
        ("dft_total_energy", False, "energy_key"),
        ("wb97x_dz.energy", False, "energy_key"),
        ("TotalEnergy", False, "energy_key"),
        ("REF_forces", True, "forces_key"),
        ("dft_total_gradient", True, "gradient_key"),
        ("REF_virials", False, "virial_key"),
        ("charge", False, "total_charge_key"),
        ("charge", True, "partial_charges_key"),
        ("config_weight", False, "weight_key"),
        ("mulliken_charges", True, "partial_charges_key"),
        ("energy", True, ""),
        ("homo_energy", False, ""),
        ("cut_off_energy", False, ""),
        ("H", False, ""),
    ],
)
def test_keys_look_like_labels_by_their_names(key: str, per_atom: bool, option: str) -> None:
    assert looks_like(key, per_atom=per_atom) == option


def test_keys_of_another_code_are_found(tmp_path: Path) -> None:
    text = waters().replace("energy=", "REF_energy=").replace("forces:R:3", "REF_forces:R:3")
    found = inspect_files([written(tmp_path, text)])
    assert found.how_read == (
        "energy is read from 'REF_energy', the only key that looks like it",
        "forces is read from 'REF_forces', the only key that looks like it",
    )
    assert [label.num_structures for label in found.labels] == [8, 8]
    assert 'energy_key = "REF_energy"  # guessed by its name' in found.toml


def test_charges_of_structures_and_of_atoms_with_one_name_are_both_found(tmp_path: Path) -> None:
    text = waters(header="charge=-1", properties="Properties=species:S:1:pos:R:3:charge:R:1:spare:R:2")
    path = written(tmp_path, text)
    found = inspect_files([path])
    both = {"total_charge": "header keys", "partial_charges": "per-atom columns"}
    assert {label.label: label.home for label in found.labels if label.key == "charge"} == both
    assert all(label.num_structures == 8 for label in found.labels if label.key == "charge")
    for option in ("total_charge_key", "partial_charges_key"):
        assert f'{option} = "charge"  # guessed by its name' in found.toml
    chosen = inspect_files([path], ["total_charge_key=charge"])
    assert {label.label for label in chosen.labels if label.key == "charge"} == set(both)


def test_a_key_that_is_read_in_the_header_leaves_the_column_of_its_name(tmp_path: Path) -> None:
    text = waters(header="spin=1", properties="Properties=species:S:1:pos:R:3:spin:R:1:spare:R:2")
    found = inspect_files([written(tmp_path, text)], ["spin_multiplicity_key=spin"])
    assert [(key.key, key.home) for key in found.other_keys] == [("spin", "per-atom columns"), ("spare", "per-atom columns")]


def test_between_two_energies_the_user_decides(tmp_path: Path) -> None:
    path = written(tmp_path, waters(header="dft_energy=-2079.1").replace(" energy=", " REF_energy="))
    found = inspect_files([path])
    assert found.energies is None
    assert "energy is not read: 'REF_energy' or 'dft_energy' may be it; choose with --set energy_key=..." in found.how_read
    assert [line for line in found.toml if line.startswith("#   ")] == [
        '#   energy_key = "REF_energy"',
        '#   energy_key = "dft_energy"',
    ]
    assert inspect_files([path], ["energy_key=dft_energy"]).energies is not None


def test_a_key_that_is_named_like_a_label_but_is_none_stops_nothing(tmp_path: Path) -> None:
    found = inspect_files([written(tmp_path, waters(header='dipole="a b" charge=0'))])
    assert "total_charge is read from 'charge', the only key that looks like it" in found.how_read
    assert any(note.startswith("'dipole' looks like dipole_key by its name, but cannot be read so:") for note in found.how_read)


def test_groups_are_guessed_and_advised_where_they_can_be_split(tmp_path: Path) -> None:
    text = "".join(water(number, header=f"mol_id=m{number // 2}") for number in range(80))
    found = inspect_files([written(tmp_path, text)])
    assert (found.num_groups, found.num_structures) == (40, 80)
    assert 'strategy = "group"' in found.toml


def test_a_missing_unit_is_provisional_until_the_numbers_tell(tmp_path: Path, shared_data: Path) -> None:
    np.savez(tmp_path / "ethanol.npz", **ethanols(shared_data))
    found = inspect_files([str(tmp_path / "ethanol.npz")])
    assert found.how_read[-1].startswith('a guess from the numbers: energy_unit = "kcal/mol" fits (slope')
    assert {label.unit_from for label in found.labels} == {"guess"}
    assert 'energy_unit = "kcal/mol"  # guessed: it fits the numbers' in found.toml
    assert 'length_unit = "angstrom"  # provisional: no file states it' in found.toml


def test_a_unit_of_which_the_numbers_tell_nothing_stays_provisional(tmp_path: Path) -> None:
    np.savez(tmp_path / "gold.npz", z=np.array([79, 79]), R=np.array([[[0.0, 0, 0], [2.5, 0, 0]]] * 3), E=np.arange(3.0))
    found = inspect_files([str(tmp_path / "gold.npz")])
    assert found.how_read[-2] == (
        "eV and angstrom are provisional: no file states the unit (the data cannot tell); set what is right"
    )
    assert 'energy_unit = "eV"  # provisional: no file states it' in found.toml


def test_gradients_in_place_of_forces_are_turned_round(tmp_path: Path, shared_data: Path) -> None:
    arrays = ethanols(shared_data)
    np.savez(tmp_path / "gradients.npz", **{**arrays, "F": -arrays["F"]})
    found = inspect_files([str(tmp_path / "gradients.npz")], ["energy_unit='kcal/mol'", "length_unit='angstrom'"])
    assert {label.option: label.key for label in found.labels} == {"energy_key": "E", "gradient_key": "F"}
    assert not found.audit.findings


def test_large_files_are_looked_into_before_they_are_read(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "ethanol.npz", **ethanols(shared_data))
    small = inspect_files([str(tmp_path / "ethanol.npz")])
    monkeypatch.setattr(reading, "STORE_FROM", 0)
    assert inspect_files([str(tmp_path / "ethanol.npz")]) == small


def test_files_that_cannot_be_read_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no known format"):
        inspect_files([written(tmp_path, "", "x.csv")])
    with pytest.raises(UserError, match=r"empty\.xyz"):
        inspect_files([written(tmp_path, "", "empty.xyz")])
