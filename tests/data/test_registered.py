"""Registered data sets: found where they were fetched to, read with the keys and units that are registered."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from file_server import npz_file
from toy_experiment import TOML

from modelforge.atoms.units import HARTREE, KJ_PER_MOL
from modelforge.data.fetching.registry import DATA_SETS
from modelforge.data.prepare import prepare
from modelforge.data.sources.gather import read
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.npz import Npz
from modelforge.data.sources.registered import Registered
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.experiment import load

KCAL = 4.184 * KJ_PER_MOL
BEFORE, AFTER = TOML.split("[dataset]")[0], "[training]" + TOML.split("[training]")[1]
NUM = 6
RANDOM = np.random.default_rng(0)
WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
POSITIONS = WATER + 0.02 * RANDOM.normal(size=(NUM, 3, 3))
ENERGIES = -76.44 * HARTREE / KJ_PER_MOL + RANDOM.normal(size=NUM)  # kJ/mol
FORCES = RANDOM.normal(size=(NUM, 3, 3))


def put_hdf5(folder: Path, name: str, version: str | None = None) -> Path:
    """Six water molecules in the file of a data set, as `modelforge data fetch` leaves it."""
    data_set = DATA_SETS[name]
    (file,) = data_set.files(version=version)
    path = folder / name / data_set.version(version) / file.kept
    path.parent.mkdir(parents=True)
    arrays = {
        "positions": (POSITIONS / 10, "nanometer"),
        data_set.energy_key: (ENERGIES[:, None], "kilojoule_per_mole"),
        **({data_set.forces_key: (FORCES, "kilojoule_per_mole / nanometer")} if data_set.forces_key else {}),
        **({data_set.total_charge_key: (np.full((NUM, 1), -1), "elementary_charge")} if data_set.total_charge_key else {}),
    }
    with h5py.File(path, "w") as made:
        group = made.create_group("water")
        group["n_configs"] = NUM
        group["atomic_numbers"] = np.array([[8], [1], [1]])
        group["atomic_numbers"].attrs["format"] = "atomic_numbers"
        for key, (values, unit) in arrays.items():
            group[key] = values
            group[key].attrs.update({"u": unit, "format": "per_atom" if values.ndim == 3 else "per_system"})
    return path


def put_npz(folder: Path, molecule: str) -> Path:
    """Six molecules in a file of rMD17."""
    path = folder / "rmd17" / "npz" / f"rmd17_{molecule}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.array([8, 1, 1])
    path.write_bytes(npz_file(nuclear_charges=numbers, coords=POSITIONS, energies=ENERGIES, forces=FORCES))
    return path


def structures_of(source: Registered) -> Structures:
    return read(source.training_files()).structures


def load_dataset(folder: Path, *lines: str) -> Registered:
    path = folder / "x.toml"
    path.write_text("\n".join([BEFORE + "[dataset]", *lines, AFTER]))
    return load(path).experiment.dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that data sets are fetched to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "modelforge" / "datasets"


def message_of(folder: Path, *lines: str) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(folder, *lines).training_files()
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "spice2"}, "spice2"),
        ({"name": "qm9", "version": "nc_1000_v1.1"}, "qm9 --version nc_1000_v1.1"),
        ({"name": "rmd17", "molecule": "ethanol"}, "rmd17 --molecule ethanol"),
        ({"name": "rmd17", "molecule": "ethanol", "folder": "/my data"}, "rmd17 --molecule ethanol --folder '/my data'"),
    ],
)
def test_what_is_not_fetched_yet_comes_with_the_command_that_fetches_it(
    cache: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        Registered(**options).training_files()
    name = options["name"]
    assert str(caught.value) == (
        f"dataset.name: the data set {name!r} is not on this machine yet; get it with: modelforge data fetch {words}"
    )


@pytest.mark.parametrize("name", ["spice1", "spice2", "phalkethoh", "qm9"])
def test_an_hdf5_file_is_read_with_the_registered_keys_and_the_units_that_it_states(cache: Path, name: str) -> None:
    path = put_hdf5(cache, name)
    structures = structures_of(Registered(name=name))
    assert structures.files == (str(path),)
    assert structures.atomic_numbers.tolist() == [8, 1, 1] * NUM
    np.testing.assert_allclose(structures.positions.reshape(NUM, 3, 3), POSITIONS, rtol=1e-12)
    np.testing.assert_allclose(structures.energy, ENERGIES * KJ_PER_MOL, rtol=1e-12)
    if DATA_SETS[name].forces_key:
        np.testing.assert_allclose(structures.forces.reshape(NUM, 3, 3), FORCES * KJ_PER_MOL / 10, rtol=1e-12)
        assert (structures.total_charge == -1).all()
    else:
        assert np.isnan(structures.forces).all()
    assert (structures.group == 0).all(), "conformations of one molecule stay together"


def test_an_npz_file_is_read_with_the_registered_units(cache: Path) -> None:
    put_npz(cache, "ethanol")
    structures = structures_of(Registered(name="rmd17", molecule="ethanol"))
    np.testing.assert_array_equal(structures.positions.reshape(NUM, 3, 3), POSITIONS)
    np.testing.assert_allclose(structures.energy, ENERGIES * KCAL, rtol=1e-12)
    np.testing.assert_allclose(structures.forces.reshape(NUM, 3, 3), FORCES * KCAL, rtol=1e-12)


def test_a_small_version_lies_in_a_folder_of_its_own(cache: Path) -> None:
    path = put_hdf5(cache, "qm9", version="latest_test")
    (files,) = Registered(name="qm9", version="latest_test").training_files()
    assert files.paths == (path,)
    with pytest.raises(UserError, match="not on this machine yet"):
        Registered(name="qm9").training_files()


def test_another_folder_and_another_energy_may_be_named(tmp_path: Path) -> None:
    path = put_hdf5(tmp_path / "elsewhere", "spice2")
    with h5py.File(path, "a") as file:
        file["water/other"] = ENERGIES[:, None] - 1
        file["water/other"].attrs.update({"u": "kilojoule_per_mole", "format": "per_system"})
    found = structures_of(Registered(name="spice2", folder=str(tmp_path / "elsewhere"), energy_key="other"))
    np.testing.assert_allclose(found.energy, (ENERGIES - 1) * KJ_PER_MOL, rtol=1e-12)


def test_other_molecules_are_test_sets(cache: Path) -> None:
    for molecule in ("ethanol", "toluene"):
        put_npz(cache, molecule)
    source = Registered(name="rmd17", molecule="ethanol", test_molecules={"larger": "toluene"})
    (files,) = source.test_files()["larger"]
    assert [path.name for path in files.paths] == ["rmd17_toluene.npz"]


def test_every_registered_data_set_has_a_reader() -> None:
    for name, data_set in DATA_SETS.items():
        source = Registered(name=name, molecule=data_set.molecules[0] if data_set.molecules else None)
        assert isinstance(source.reader, HDF5 if data_set.source_format == "hdf5" else Npz)
        assert source.reader.energy_key == data_set.energy_key


def test_the_published_self_energies_serve_as_reference(cache: Path, tmp_path: Path) -> None:
    put_hdf5(cache, "spice2")
    lines = ('name = "spice2"', "self_energies = { source = 'dataset' }", "split.counts = [4, 2, 0]")
    data = prepare(load_dataset(tmp_path, *lines), weights={"energy": 1.0, "forces": 1.0})
    by_element = data.reference.self_energies.by_element
    assert by_element[1] == pytest.approx(-1579.292447611522 * KJ_PER_MOL)
    assert by_element[8] == pytest.approx(-197640.6741826767 * KJ_PER_MOL)


def test_a_data_set_without_published_self_energies_says_so(tmp_path: Path) -> None:
    lines = ('name = "rmd17"', 'molecule = "ethanol"', 'self_energies = { source = "dataset" }')
    assert message_of(tmp_path, *lines).endswith(
        'x.toml:10: dataset.self_energies.source: must not be "dataset", as "rmd17" brings no table of self-energies; '
        'use "regression", "values" or "isolated_atoms"'
    )


MOLECULES = "aspirin, azobenzene, benzene, ethanol, malonaldehyde, naphthalene, paracetamol, salicylic, toluene, uracil"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('name = "rmd17"',), f"x.toml: dataset.molecule: missing; rmd17 has one file for each of {MOLECULES}"),
        (
            ('name = "rmd17"', 'molecule = "ethanoll"'),
            f"x.toml:9: dataset.molecule: rmd17: molecule: there is no 'ethanoll'; did you mean 'ethanol'? known: {MOLECULES}",
        ),
        (
            ('name = "rmd17"', 'molecule = "ethanol"', 'version = "npq"'),
            "x.toml:10: dataset.version: rmd17: version: there is no 'npq'; did you mean 'npz'? known: npz, archive",
        ),
        (
            ('name = "qm9"', 'molecule = "ethanol"'),
            "x.toml:9: dataset.molecule: qm9: molecule: must not be given, there is one file (got 'ethanol'); remove it",
        ),
        (
            ('name = "rmd17"', 'molecule = "ethanol"', 'test_molecules.big = "tolune"'),
            "x.toml:10: dataset.test_molecules.big: rmd17: molecule: there is no 'tolune'; did you mean 'toluene'? "
            f"known: {MOLECULES}",
        ),
        (
            ('name = "rmd17"', 'molecule = "ethanol"', 'test_molecules.validation = "toluene"'),
            "x.toml:10: dataset.test_molecules.validation: is the name of a set of dataset.split; choose another",
        ),
        (
            ('name = "qm9"', 'test_molecules.big = "toluene"'),
            "x.toml:9: dataset.test_molecules: has no effect with qm9, which is one file; remove it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_registered_is_refused_at_its_key(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    assert message_of(tmp_path, *lines).removeprefix(f"{tmp_path}/") == message
