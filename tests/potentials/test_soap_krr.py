"""Kernel ridge regression: the solution against a dense one and scikit-learn's, and a whole run in closed form."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from made_structures import batch_of, cluster, labelled
from rich.console import Console
from sklearn.kernel_ridge import KernelRidge
from small_runs import write_experiment

from modelforge.atoms.graph import Batch
from modelforge.calculator import ModelforgeCalculator
from modelforge.check import check
from modelforge.errors import UserError
from modelforge.experiment import load
from modelforge.model_file import load_potential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.soap_krr import Candidates, Equations, SOAPKernel, SOAPKernelSection, farthest_points
from modelforge.train import train

ELEMENTS = (1, 6, 8)
SCALE = 1.7
CUTOFF = 3.0
TOML = """\
[potential]
name = "soap_krr"
cutoff = 3.5
num_radial = 3
l_max = 2
num_references = 12
[dataset]
name = "extxyz"
path = "train.xyz"
cache_folder = "cache"
[dataset.test_paths]
hot = "hot.xyz"
[dataset.split]
counts = [24, 8, 0]
[runtime]
accelerator = "cpu"
num_threads = 1
progress_bar = false
"""


def section(**options: float) -> SOAPKernelSection:
    usual = {"cutoff": CUTOFF, "num_radial": 2, "l_max": 2, "zeta": 2, "num_references": 60}
    return SOAPKernelSection(name="soap_krr", **{**usual, **options})


def labelled_batch(num: int, *, seed: int = 0) -> Batch:
    return batch_of([labelled(cluster(4, ELEMENTS, seed=seed + k), seed=k) for k in range(num)], cutoff=CUTOFF)


def solved(batch: Batch, *, with_energies: bool = True, with_forces: bool, **options: float) -> EnergyModel:
    model = EnergyModel(section(**options).build(ELEMENTS), scale=SCALE).double().eval()
    assert isinstance(model.potential, SOAPKernel)
    model.potential.solve([batch], scale=SCALE, with_energies=with_energies, with_forces=with_forces)
    return model


def kernel_of_structures(potential: SOAPKernel, one: Batch, other: Batch) -> np.ndarray:
    """Sums of (p_i . p_j)^zeta over atoms i of one structure and j of another that are of the same element."""
    rows, columns = (potential.described(each.graph) for each in (one, other))
    alike = one.graph.atomic_numbers[:, None] == other.graph.atomic_numbers
    kernel = (rows @ columns.T) ** 2 * alike
    sums = [torch.eye(each.graph.num_structures, dtype=torch.float64)[each.graph.structure_index] for each in (one, other)]
    return (sums[0].T @ kernel @ sums[1]).numpy()


def test_energies_are_those_of_the_kernel_ridge_regression_of_scikit_learn() -> None:
    """With every environment as a reference the sparse solution is the full one."""
    training, others = labelled_batch(8), labelled_batch(3, seed=50)
    model = solved(training, with_forces=False, energy_regularization=0.05)
    assert isinstance(model.potential, SOAPKernel)
    # Kernels are in units of the scale squared, errors in eV for each of the four atoms of a structure.
    ridge = KernelRidge(kernel="precomputed", alpha=0.05**2 * 4 / SCALE**2)
    ridge.fit(kernel_of_structures(model.potential, training, training), training.labels.energy.numpy())
    expected = ridge.predict(kernel_of_structures(model.potential, others, training))
    assert np.abs(expected).max() > 0.01
    assert model(others.graph).energy.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_weights_minimise_the_errors_of_energies_and_forces_with_the_penalty() -> None:
    """The sum of the module's docstring has no slope by any weight, measured with the model's own predictions."""
    batch, errors = labelled_batch(5), {"energy_regularization": 0.1, "forces_regularization": 0.3}
    model = solved(batch, with_forces=True, num_references=6, **errors)
    potential = model.potential
    assert isinstance(potential, SOAPKernel)
    references = potential.references + potential.centres[:, None]
    kernels = torch.einsum("zrf,zsf->zrs", references, references) ** 2

    def penalized(weights: torch.Tensor) -> torch.Tensor:
        values = {"weights": weights, "offsets": weights.sum(dim=1)}
        prediction = torch.func.functional_call(model.train(), {f"potential.{k}": v for k, v in values.items()}, batch.graph)
        energy = ((prediction.energy - batch.labels.energy) / (0.1 * 2.0)).square().sum()
        forces = ((prediction.forces - batch.labels.forces) / 0.3).square().sum()
        return energy + forces + torch.einsum("zr,zrs,zs->", weights, kernels, weights)

    best = potential.weights.detach().clone().requires_grad_()
    nothing = torch.zeros_like(best).requires_grad_()
    slopes = [torch.autograd.grad(penalized(weights), weights)[0] for weights in (best, nothing)]
    assert slopes[0].abs().max() < 2e-5 * slopes[1].abs().max()  # references that are alike are taken for one


def test_a_structure_of_weight_two_counts_as_two_of_them() -> None:
    one = labelled_batch(4)
    heavy = replace(one, weight=torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    potential = section().build(ELEMENTS).double()
    for kind in ("energy_rows", "force_rows"):
        plain, weighted = (np.column_stack(getattr(potential, kind)(batch, scale=SCALE)) for batch in (one, heavy))
        again = plain[::4]  # of the first of four structures of one size
        assert weighted.T @ weighted == pytest.approx(plain.T @ plain + again.T @ again)


def test_labels_that_are_missing_count_nowhere() -> None:
    batch = labelled_batch(5)
    some = labelled_batch(5)
    batch.labels.energy[1] = torch.nan
    batch.labels.forces[2] = torch.nan
    potential = section().build(ELEMENTS).double()
    for rows in ("energy_rows", "force_rows"):
        full, part = (getattr(potential, rows)(each, scale=SCALE) for each in (some, batch))
        missing = 1 if rows == "energy_rows" else 3
        assert len(part[0]) == len(part[1]) == len(full[0]) - missing
        assert np.isfinite(part[1]).all()


def test_equations_in_pieces_are_solved_like_all_together() -> None:
    rng = np.random.default_rng(0)
    rows, targets, whitening = rng.normal(size=(90, 6)), rng.normal(size=90), rng.normal(size=(6, 4))
    equations = Equations(whitening)
    for start in range(0, 90, 7):
        equations.add(rows[start : start + 7], targets[start : start + 7])
    assert len(equations._pieces) < 6, "they are never summed up, so this test would not see it"
    white = rows @ whitening
    expected = whitening @ np.linalg.solve(white.T @ white + np.eye(4), white.T @ targets)
    assert equations.solution() == pytest.approx(expected, rel=1e-10)
    assert equations.num_rows == 90


def test_references_are_far_apart_and_doubles_are_left_out() -> None:
    angles = torch.tensor([0.0, 0.0, 0.1, 1.5, 0.7, 1.5])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    assert farthest_points(rows, 3) == [0, 3, 4]
    assert farthest_points(rows, 6) == [0, 3, 4, 2]


def test_candidates_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelforge.potentials.soap_krr.MOST_CANDIDATES", 10)
    candidates, rows = Candidates(), torch.arange(64.0)[:, None]
    for piece in rows.split(5):
        candidates.add(piece)
    assert candidates.rows[:, 0].tolist() == list(range(0, 64, 8))


def test_float32_keeps_the_energies_of_large_weights() -> None:
    """Weights of both signs cancel; their kernels are close to 1."""
    batch = labelled_batch(12)
    model = solved(batch, with_forces=True, energy_regularization=1e-4, forces_regularization=1e-4)
    assert isinstance(model.potential, SOAPKernel)
    exact = model(batch.graph).energy
    vectors = batch.graph.edge_vectors.float()
    single = model.float()(replace(batch.graph, edge_vectors=vectors)).energy
    size = SCALE * float(model.potential.weights.detach().abs().sum())
    assert size > 100.0
    assert (single - exact).abs().max() < 1e-6 * size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("krr")
    train(load(write_experiment(folder, TOML)), Console(quiet=True))
    return folder / "runs" / "x"


def test_a_run_leaves_what_every_run_leaves(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["reason"] == "solved in closed form"
    assert results["weights"] == "closed form"
    assert results["steps"] == results["epochs"] == 0
    assert "length" not in results
    assert results["metrics"].keys() == {"validation", "hot"}
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    validation = results["metrics"]["validation"]["forces_rmse_mev_per_angstrom"]
    assert float(rows[0]["val/forces_rmse_mev_per_angstrom"]) == pytest.approx(validation, rel=1e-4)
    assert validation < 900, "the forces themselves are 1200"
    assert {path.name for path in (run / "predictions").iterdir()} == {"validation.extxyz", "hot.extxyz"}
    assert "solved in closed form" in (run / "log.txt").read_text()


def test_the_log_says_nothing_of_steps_that_are_not_trained(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "\nvalidation RMSE F " in log
    for words in ("loss", "lr ", "plateau", "gradient", "epoch", "left"):
        assert words not in log, words


def test_on_a_terminal_no_bar_is_shown(tmp_path: Path) -> None:
    shown = io.StringIO()
    loaded = load(write_experiment(tmp_path, TOML), ["runtime.progress_bar=true"])
    assert train(loaded, Console(file=shown, force_terminal=True, width=100))["status"] == "finished"
    assert "validation RMSE F " in shown.getvalue()
    assert "epoch" not in shown.getvalue()


def test_a_finished_run_is_not_solved_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOAPKernel, "solve", None)
    before = (run / "results.json").read_text()
    results = train(load(run.parents[1] / "x.toml"), Console(quiet=True))
    assert results == json.loads(before)


def test_the_saved_potential_predicts_like_any_other(run: Path) -> None:
    assert isinstance(load_potential(run).model.potential, SOAPKernel)
    atoms = read(run / "predictions" / "hot.extxyz", index=0)
    fresh = Atoms(atoms.numbers, atoms.positions, calculator=ModelforgeCalculator(run))
    assert fresh.get_potential_energy() == pytest.approx(atoms.info["predicted_energy"], abs=1e-3)
    assert np.abs(fresh.get_forces() - atoms.arrays["predicted_forces"]).max() < 1e-2


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("training.max_epochs=3", "training.max_epochs"),
        ("training.optimizer.learning_rate=1e-2", "training.optimizer"),
        ("training.loss.forces_weight=7.0", "training.loss.forces_weight"),
        ("training.loss.stress_weight=1.0", "training.loss.stress_weight"),
        ('potential.forces="direct"', "potential.forces"),
        ('runtime.precision="bf16-mixed"', "runtime.precision"),
    ],
)
def test_keys_that_mean_nothing_without_training_are_refused(tmp_path: Path, settings: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}: .*solved in closed form"):
        load(write_experiment(tmp_path, TOML), [settings])


def test_forces_can_be_left_out_and_the_resolved_experiment_reads_again(run: Path) -> None:
    loaded = load(run / "experiment.toml", ["training.loss.forces_weight=0.0"])
    assert not loaded.experiment.training.loss.needs_derivatives


def test_a_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelforge.potentials.soap_krr.find_spec", {}.get)
    with pytest.raises(UserError, match=r"pip install modelforge\[krr\]"):
        section().build(ELEMENTS).solve([labelled_batch(1)], scale=1.0, with_energies=True, with_forces=False)


def test_check_says_that_scikit_learn_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(write_experiment(tmp_path, TOML))
    monkeypatch.setattr("modelforge.potentials.soap_krr.find_spec", {}.get)
    with pytest.raises(UserError, match=r"potential\.name: .*pip install modelforge\[krr\]"):
        list(check(loaded))
