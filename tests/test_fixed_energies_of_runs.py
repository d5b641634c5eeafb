"""A run whose potential has fixed energies: what it is trained on, what it predicts, and what its errors are of."""

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from made_structures import structures_of
from rich.console import Console
from small_runs import TOML, write_experiment

from modelforge.assembly import run_batches
from modelforge.atoms.self_energies import element_counts
from modelforge.calculator import ModelforgeCalculator
from modelforge.check import check
from modelforge.data.prepare import PreparedData, prepare
from modelforge.data.structures import Structures, sum_of_constants
from modelforge.errors import UserError
from modelforge.evaluate import evaluate, evaluate_files
from modelforge.experiment import Experiment, load
from modelforge.model_file import TrainedPotential, load_potential
from modelforge.physics.dispersion import NoDispersion
from modelforge.physics.fixed_energy import FixedTerms
from modelforge.physics.repulsion import ZBL, NoRepulsion
from modelforge.train import train

WEIGHTS = {"energy": 1.0, "forces": 1.0}
TERMS = """\
[potential.repulsion]
name = "zbl"
[potential.dispersion]
name = "d3bj"
method = "pbe"
"""
WITH_TERMS = TOML.replace("[dataset]", f"{TERMS}[dataset]", 1).replace("max_epochs = 6", "max_epochs = 1")
CLOSE = 1e-9  # eV and eV/angstrom, in float64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in float64 with repulsion and dispersion."""
    folder = tmp_path_factory.mktemp("fixed")
    toml = write_experiment(folder, WITH_TERMS)
    overrides = ['runtime.precision="64-true"', f'runtime.run_folder="{folder / "run"}"']
    train(load(toml, overrides), Console(quiet=True))
    return folder


def experiment_of(folder: Path) -> Experiment:
    return load(folder / "x.toml", ['runtime.precision="64-true"']).experiment


def prepared(folder: Path, *, with_terms: bool = True) -> PreparedData:
    experiment = experiment_of(folder)
    terms = experiment.potential.fixed_terms if with_terms else FixedTerms()
    return prepare(experiment.dataset, weights=WEIGHTS, fixed_terms=terms)


def hot(folder: Path) -> Structures:
    return prepared(folder).tests["hot"].structures


def without_terms(trained: TrainedPotential) -> TrainedPotential:
    """The same network without fixed energies."""
    none = {"repulsion": NoRepulsion(), "dispersion": NoDispersion()}
    return replace(trained, potential=trained.potential.model_copy(update=none))


def test_batches_have_the_labels_less_the_fixed_energies(folder: Path) -> None:
    experiment, data = experiment_of(folder), prepared(folder)
    batches = run_batches(experiment, data)
    batch = batches.table.batch(torch.cat([batches.members, batches.validation_members]))
    used = data.structures.take(np.concatenate([data.split.train, data.split.validation]))
    fixed = experiment.potential.fixed_terms.of(used)
    assert np.abs(fixed.energy).min() > 0.01
    energy = used.energy - fixed.energy - sum_of_constants(used, data.reference.table())
    np.testing.assert_allclose(batch.labels.energy, energy, atol=CLOSE)
    np.testing.assert_allclose(batch.labels.forces, used.forces - fixed.forces, atol=CLOSE)


def test_self_energies_and_scale_are_those_of_what_is_left(folder: Path) -> None:
    with_terms, without = prepared(folder), prepared(folder, with_terms=False)
    training = with_terms.structures.take(with_terms.split.train)
    fixed = experiment_of(folder).potential.fixed_terms.of(training)
    counts = element_counts(training.num_atoms, training.atomic_numbers, with_terms.elements)
    expected = np.linalg.lstsq(counts, training.energy - fixed.energy, rcond=None)[0]
    found = with_terms.reference.self_energies.by_element
    np.testing.assert_allclose(counts @ [found[z] for z in with_terms.elements], counts @ expected, atol=1e-6)
    assert with_terms.scale == pytest.approx(np.sqrt(np.mean((training.forces - fixed.forces) ** 2)), rel=1e-9)
    assert with_terms.scale != without.scale


def test_the_audit_and_the_split_are_those_of_the_labels_as_they_are(folder: Path) -> None:
    with_terms, without = prepared(folder), prepared(folder, with_terms=False)
    assert with_terms.audit.to_json() == without.audit.to_json()
    assert with_terms.structures.energy.tolist() == without.structures.energy.tolist()
    np.testing.assert_array_equal(with_terms.split.train, without.split.train)


def test_predictions_are_those_of_the_network_and_the_fixed_energies(folder: Path) -> None:
    trained, structures = load_potential(folder / "run"), hot(folder)
    fixed = trained.potential.fixed_terms.of(structures)
    whole, part = evaluate(trained, structures), evaluate(without_terms(trained), structures)
    np.testing.assert_allclose(whole.energy, part.energy + fixed.energy, atol=CLOSE)
    np.testing.assert_allclose(whole.forces, part.forces + fixed.forces, atol=CLOSE)
    assert np.abs(fixed.forces).max() > 0.1


def test_the_calculator_gives_what_evaluate_gives(folder: Path) -> None:
    structures = hot(folder)
    expected = evaluate(load_potential(folder / "run"), structures)
    calculator = ModelforgeCalculator(folder / "run")
    for place, atoms in enumerate(ase.io.read(folder / "hot.xyz", ":3")):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected.energy[place], abs=CLOSE)
        begin, end = structures.offsets[place : place + 2]
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[begin:end], atol=CLOSE)


def test_the_stress_of_a_crystal_has_that_of_the_fixed_energies(folder: Path) -> None:
    atoms = ase.io.read(folder / "hot.xyz", "0")
    atoms.set_cell(np.diag([9.0, 9.5, 10.0]))
    atoms.pbc = True
    trained, structures = load_potential(folder / "run"), structures_of([atoms])
    expected = evaluate(without_terms(trained), structures).stress + trained.potential.fixed_terms.of(structures).stress
    np.testing.assert_allclose(evaluate(trained, structures).stress, expected, atol=CLOSE)
    atoms.calc = ModelforgeCalculator(folder / "run")
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected[0], atol=CLOSE)


def test_errors_are_those_of_totals(folder: Path) -> None:
    structures = hot(folder)
    found = evaluate(load_potential(folder / "run"), structures)
    energy_error, force_error = 1e3 * (found.energy - structures.energy), 1e3 * (found.forces - structures.forces)
    per_atom = energy_error / structures.num_atoms
    assert found.metrics["energy_mae_mev_per_atom"] == pytest.approx(np.abs(per_atom).mean(), rel=1e-7)
    assert found.metrics["forces_rmse_mev_per_angstrom"] == pytest.approx(np.sqrt((force_error**2).mean()), rel=1e-9)
    written = evaluate_files(folder / "run", [str(folder / "hot.xyz")])["metrics"]["hot"]
    assert written["energy_mae_mev_per_atom"] == pytest.approx(found.metrics["energy_mae_mev_per_atom"], rel=1e-7)


def test_the_log_and_the_check_say_what_was_taken_off(folder: Path) -> None:
    line = next(line for line in (folder / "run" / "log.txt").read_text().splitlines() if "fixed energies" in line)
    data = prepared(folder)
    mean = experiment_of(folder).potential.fixed_terms.of(data.structures).energy[data.split.train].mean()
    assert f"zbl and d3bj (method pbe), mean {mean:.4g} eV per structure of the training set" in line
    overrides = ['runtime.precision="64-true"', f'runtime.run_folder="{folder / "run"}"']
    assert any(line in said for said in check(load(folder / "x.toml", overrides)))


def test_a_fixed_energy_that_spreads_the_labels_is_a_note(folder: Path) -> None:
    experiment = experiment_of(folder)
    notes = prepare(experiment.dataset, weights=WEIGHTS, fixed_terms=FixedTerms(repulsion=ZBL(cutoff=5.0))).notes
    assert any("without the fixed energies, zbl (cutoff 5), the training energies" in note for note in notes)
    assert not any("fixed energies" in note for note in prepared(folder).notes)


def test_a_mistake_in_the_dispersion_is_told_before_the_data_are_read(folder: Path, tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(WITH_TERMS.replace('"pbe"', '"pbf"').replace("train.xyz", "absent.xyz"))
    loaded = load(toml)
    with pytest.raises(UserError, match=r"potential\.dispersion\.method: .* did you mean .*pbe") as caught:
        list(check(loaded))
    assert loaded.with_places(str(caught.value)).startswith(f"{toml}:11: ")


def test_a_periodic_test_set_is_refused_before_the_training_where_it_could_not_be_predicted(tmp_path: Path) -> None:
    toml = write_experiment(tmp_path, WITH_TERMS.replace('"pbe"', '"pbe"\ns9 = 1.0'))
    atoms = ase.io.read(tmp_path / "hot.xyz", ":2")
    for some in atoms:
        some.set_cell(np.diag([12.0, 12.0, 12.0]))
        some.pbc = True
    ase.io.write(tmp_path / "hot.xyz", atoms)
    with pytest.raises(UserError, match=r"dispersion\.s9: .* but .*hot\.xyz:0 is periodic; remove s9"):
        prepare(load(toml).experiment.dataset, weights=WEIGHTS, fixed_terms=load(toml).experiment.potential.fixed_terms)
