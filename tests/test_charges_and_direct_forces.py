"""Whole runs with dipoles, quadrupoles and partial charges, and with direct forces: they learn, and say what they are."""

import csv
import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from modelforge.assembly import prepared, run_batches
from modelforge.cli import main
from modelforge.errors import UserError
from modelforge.experiment import load

TOML = """\
[potential]
name = "painn"
cutoff = 3.0
num_features = 8
num_layers = 1
num_radial = 8
partial_charges = true
[dataset]
name = "extxyz"
path = "ions.xyz"
dipole_key = "dipole"
quadrupole_key = "quadrupole"
partial_charges_key = "q"
total_charge_key = "total_charge"
[dataset.split]
counts = [24, 6, 6]
[training]
max_epochs = 15
batch_size = 6
[training.loss]
forces_weight = 1.0
dipole_weight = 10.0
quadrupole_weight = 10.0
partial_charges_weight = 100.0
[training.optimizer]
learning_rate = 1e-2
[training.ema]
decay = 0.9
[runtime]
accelerator = "cpu"
num_threads = 1
compile = false
progress_bar = false
"""
STIFFNESS = 25.0  # eV/angstrom^2, of a bond


def ion(number: int) -> Atoms:
    """An oxygen with two to four hydrogens on springs; charges that depend on the lengths of the bonds, about the origin."""
    rng = np.random.default_rng(number)
    num = 3 + number % 3
    sites = np.array([[0, 0, 0.1], [0, 0.8, -0.5], [0, -0.8, -0.5], [0.9, 0.2, 0.6], [-0.9, 0.3, 0.7]])[:num]
    atoms = Atoms([8, 1, 1, 1, 1][:num], positions=sites + 0.05 * rng.normal(size=(num, 3)))
    atoms.positions -= atoms.get_center_of_mass()
    bonds = atoms.positions[1:] - atoms.positions[0]
    stretched = np.linalg.norm(bonds, axis=1) - 1.0
    total = number % 2
    charges = np.concatenate([[0.0], 0.3 + 0.2 * stretched])
    charges[0] = -charges.sum()
    charges += total / num
    pulls = -2 * STIFFNESS * (stretched / (1.0 + stretched))[:, None] * bonds
    atoms.arrays["forces"] = np.concatenate([-pulls.sum(axis=0, keepdims=True), pulls])
    atoms.arrays["q"] = charges
    atoms.info = {
        "energy": -400.0 - 10.0 * num + STIFFNESS * float((stretched**2).sum()),
        "total_charge": total,
        "dipole": charges @ atoms.positions,
        "quadrupole": np.einsum("n,na,nb->ab", charges, atoms.positions, atoms.positions) + np.eye(3),
    }
    return atoms


def run(folder: Path, *changes: tuple[str, str]) -> Path:
    """A finished run of the experiment with some of its text replaced."""
    toml = TOML
    for old, new in changes:
        assert old in toml
        toml = toml.replace(old, new, 1)
    (folder / "x.toml").write_text(toml)
    ase.io.write(folder / "ions.xyz", [ion(number) for number in range(36)], write_results=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["modelforge", "train", "--config", "x.toml", "--run-folder", "run"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0
    return folder / "run"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def charged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("charged"))


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [("partial_charges = true", 'forces = "direct"'), ("dipole_weight = 10.0\n", "energy_weight = 0.0\n")]
    changes += [("quadrupole_weight = 10.0\npartial_charges_weight = 100.0\n", ""), ("max_epochs = 15", "max_epochs = 2")]
    return run(tmp_path_factory.mktemp("direct"), *changes)


@pytest.fixture(scope="session")
def charges_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [("forces_weight = 1.0", "energy_weight = 0.0\nforces_weight = 0.0"), ("max_epochs = 15", "max_epochs = 2")]
    return run(tmp_path_factory.mktemp("charges"), *changes)


def test_charges_and_moments_are_learnt(charged: Path):
    first, last = (rows(charged)[place] for place in (0, -1))
    for column in ("dipole_rmse_me_angstrom", "quadrupole_rmse_me_angstrom2", "partial_charges_rmse_me"):
        assert float(last[f"val/{column}"]) < 0.4 * float(first[f"val/{column}"]), column
        assert last[f"train/{column}"], column
    assert float(last["loss/partial_charges_weighted"]) == pytest.approx(100 * float(last["loss/partial_charges_raw"]))


def test_predictions_of_charges_give_the_errors_of_the_results(charged: Path):
    found = json.loads((charged / "results.json").read_text())
    assert found["forces"] == "derivative"
    errors = found["metrics"]["test"]
    assert "net_force_rms_mev_per_angstrom" not in errors
    frames = ase.io.read(charged / "predictions" / "test.extxyz", ":")
    dipole = np.array([atoms.info["predicted_dipole"] - atoms.get_dipole_moment() for atoms in frames])
    charges = np.concatenate([atoms.arrays["predicted_partial_charges"] - atoms.arrays["partial_charges"] for atoms in frames])
    assert errors["dipole_rmse_me_angstrom"] == pytest.approx(1e3 * np.sqrt(np.mean(dipole**2)), rel=1e-6)
    assert errors["partial_charges_rmse_me"] == pytest.approx(1e3 * np.sqrt(np.mean(charges**2)), rel=1e-6)
    for atoms in frames:
        predicted = atoms.arrays["predicted_partial_charges"]
        assert predicted.sum() == pytest.approx(atoms.info["total_charge"], abs=1e-5)
        second = np.einsum("n,na,nb->ab", predicted, atoms.positions, atoms.positions)
        np.testing.assert_allclose(atoms.info["predicted_quadrupole"].reshape(3, 3), second, rtol=0, atol=1e-4)
    assert "charge RMSE" in (charged / "log.txt").read_text()


def test_a_run_with_direct_forces_says_that_they_are_not_conservative(direct: Path):
    found, log = json.loads((direct / "results.json").read_text()), (direct / "log.txt").read_text()
    assert found["forces"] == "direct"
    assert "forces predicted directly (not conservative)" in log
    assert "forces are direct: not minus the gradient of an energy" in log
    assert "net force" in log
    for name in ("validation", "test"):
        errors = found["metrics"][name]
        frames = ase.io.read(direct / "predictions" / f"{name}.extxyz", ":")
        net = [np.linalg.norm(atoms.arrays["predicted_forces"].sum(axis=0)) for atoms in frames]
        assert errors["net_force_rms_mev_per_angstrom"] == pytest.approx(1e3 * np.sqrt(np.mean(np.square(net))), rel=1e-9)
        assert 0 < errors["net_force_per_atom_rms_mev_per_angstrom"] < errors["net_force_rms_mev_per_angstrom"]
        assert errors["net_torque_rms_mev"] > 0


def test_energies_that_nothing_has_trained_are_not_told(direct: Path):
    errors = json.loads((direct / "results.json").read_text())["metrics"]["test"]
    assert errors["energy_rmse_mev"] is None
    assert errors["num_energy_labels"] == 0
    assert errors["forces_rmse_mev_per_angstrom"] > 0
    assert not [column for column in rows(direct)[0] if "energy" in column]
    assert "no energies: training.loss.energy_weight was 0" in (direct / "log.txt").read_text()
    frames = ase.io.read(direct / "predictions" / "test.extxyz", ":")
    assert not any("predicted_energy" in atoms.info for atoms in frames)


def test_energies_and_forces_beside_charges_alone_are_not_told(charges_alone: Path):
    errors = json.loads((charges_alone / "results.json").read_text())["metrics"]["test"]
    assert (errors["energy_rmse_mev"], errors["forces_rmse_mev_per_angstrom"]) == (None, None)
    assert errors["dipole_rmse_me_angstrom"] > 0
    assert not [column for column in rows(charges_alone)[0] if "energy" in column or "forces" in column]
    assert (
        "note: test: no energies and forces: their weights in training.loss were 0" in (charges_alone / "log.txt").read_text()
    )
    atoms = ase.io.read(charges_alone / "predictions" / "test.extxyz", "0")
    assert "predicted_energy" not in atoms.info
    assert "predicted_forces" not in atoms.arrays


@pytest.mark.parametrize("before", ["direct", "charges_alone"])
def test_a_run_that_starts_from_untrained_energies_fits_its_self_energies(
    before: str, request: pytest.FixtureRequest, tmp_path: Path
):
    changes = {
        "direct": [
            ("partial_charges = true", 'forces = "direct"'),
            (TOML[TOML.index("dipole_w") : TOML.index("[training.o")], ""),
        ],
        "charges_alone": [],
    }[before]
    start = f'max_epochs = 1\nstart_from = "{request.getfixturevalue(before)}"'
    results = json.loads((run(tmp_path, *changes, ("max_epochs = 15", start)) / "results.json").read_text())
    assert -12 < results["self_energies_ev"]["1"] < -8
    assert results["metrics"]["test"]["num_energy_labels"] == 6


ENDLESS = ("partial_charges = true", 'partial_charges = true\n[potential.coulomb]\nname = "damped"')


def with_a_crystal(folder: Path, name: str, *changes: tuple[str, str], element: int = 1) -> Path:
    """An experiment whose charges act at any distance, and 37 structures of which the last one is a crystal of an element."""
    crystal = ion(36)
    crystal.numbers[:] = element
    crystal.set_cell([8.0, 8.0, 8.0])
    crystal.pbc = True
    toml = TOML
    for old, new in (ENDLESS, *changes):
        toml = toml.replace(old, new, 1)
    (folder / "x.toml").write_text(toml)
    ase.io.write(folder / name, [*(ion(number) for number in range(36)), crystal], write_results=False)
    return folder / "x.toml"


def test_a_crystal_that_is_tested_is_refused_before_the_training_where_charges_act_at_any_distance(tmp_path: Path):
    tests = ("[dataset.split]\n", '[dataset.test_paths]\nmore = "more.xyz"\n[dataset.split]\n')
    ase.io.write(tmp_path / "ions.xyz", [ion(number) for number in range(40, 76)], write_results=False)
    experiment = load(with_a_crystal(tmp_path, "more.xyz", tests)).experiment
    with pytest.raises(UserError, match=r"more\.xyz:36: is periodic, but potential\.coulomb has no cutoff"):
        prepared(experiment)


def test_a_crystal_that_is_filtered_out_does_no_harm_to_charges_that_act_at_any_distance(tmp_path: Path):
    kept = ("[dataset.split]\n", '[dataset.filter]\nelements = ["H", "O"]\n[dataset.split]\n')
    experiment = load(with_a_crystal(tmp_path, "ions.xyz", kept, element=2)).experiment
    batches = run_batches(experiment, prepared(experiment))
    num_atoms = batches.table.num_atoms[batches.members]
    assert batches.table.batch(batches.members).graph.far.num_edges == int((num_atoms * (num_atoms - 1)).sum())
