"""Whole runs, small ones: what they leave, that they repeat, and that an interruption leaves no trace."""

import io
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from made_structures import crystal
from rich.console import Console
from safetensors.torch import load_file
from small_runs import differences, rows, write_experiment
from tolerances import CALCULATOR, DRIFT, FINITE_DIFFERENCE, RECOMPUTED_METRIC, SHIFTED_METRIC

from modelforge.assembly import run_batches
from modelforge.atoms.graph import Batch
from modelforge.calculator import ModelforgeCalculator
from modelforge.configuration.writing import toml_value
from modelforge.data.prepare import prepare
from modelforge.data.sources.gather import read
from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.experiment import load
from modelforge.finish import Results
from modelforge.model_file import load_potential
from modelforge.potentials import PotentialSection
from modelforge.potentials.soap_krr import SOAPKernelSection
from modelforge.train import train
from modelforge.training.checkpoint import load_checkpoint
from modelforge.training.compilation import StepCompiler
from modelforge.training.eager_step import EagerStep, StepResult
from modelforge.training.listener import Listener, Validation
from modelforge.training.loss import weights_of
from modelforge.training.not_finite import NotFinite
from modelforge.training.stop_signal import Interrupted
from modelforge.training.task import TrainingTask
from modelforge.training.validation import LEDGER_STRUCTURES

NUM_TRAIN, NUM_VALIDATION, BATCH_SIZE, EPOCHS = 32, 8, 5, 6
STEPS_PER_EPOCH = 7  # 32 structures in fives, the last batch has two
SECTIONS = {get_args(part.model_fields["name"].annotation)[0]: part for part in get_args(get_args(PotentialSection)[0])}
POTENTIALS = [name for name, part in SECTIONS.items() if not issubclass(part, SOAPKernelSection)]  # which is solved for
SMALL = {  # those keys that a potential has
    "cutoff": 3.5,
    "num_features": 8,
    "num_layers": 1,
    "num_radial": 8,
    "hidden_widths": [[16], [16]],
    "num_outputs": 16,
    "widths": {},
    "other_widths": [16, 16],
    "l_max": 1,
}
SLOW = {"physnet": 35, "soap": 40}  # epochs: the first begins with zeros, the other sees many features
TOML = f"""\
[potential]
name = "schnet"
cutoff = 3.5
num_features = 8
num_layers = 1
num_radial = 8
[dataset]
name = "extxyz"
path = "train.xyz"
[dataset.test_paths]
hot = "hot.xyz"
[dataset.split]
counts = [{NUM_TRAIN}, {NUM_VALIDATION}, 0]
[training]
max_epochs = {EPOCHS}
batch_size = {BATCH_SIZE}
[training.optimizer]
learning_rate = 1e-2
[training.lr_scheduler]
name = "reduce_lr_on_plateau"
warmup_steps = 3
patience = 1
threshold = 0.02
[training.ema]
decay = 0.9
[runtime]
accelerator = "cpu"
num_threads = 1
compile = false
progress_bar = false
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with the experiment, 40 structures to train on and 10 to test on."""
    folder = tmp_path_factory.mktemp("data")
    return write_experiment(folder, TOML, num_structures=NUM_TRAIN + NUM_VALIDATION, num_test=10).parent


def run(data: Path, folder: Path, *overrides: str, with_rehearsal: bool = True) -> Results:
    console = Console(file=io.StringIO(), width=200)
    loaded = load(data / "x.toml", [f"runtime.run_folder={folder}", *overrides])
    return train(loaded, console, with_rehearsal=with_rehearsal)


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(data, folder)
    return folder


def results(folder: Path) -> Results:
    return json.loads((folder / "results.json").read_text())


def checkpoint(folder: Path, name: str) -> dict:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_same_run(one: Path, other: Path, *, but: Sequence[str] = ()) -> None:
    """Everything but times, bit for bit."""
    assert not list(differences(one, other, but=but))


# What a run leaves


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_loss_falls(data: Path, tmp_path: Path, name: str):
    keys = {key: value for key, value in SMALL.items() if key in SECTIONS[name].model_fields}
    potential = "".join(f"{key} = {toml_value(value)}\n" for key, value in {"name": name, **keys}.items())
    (data / f"{name}.toml").write_text("[potential]\n" + potential + TOML[TOML.index("[dataset]") :])
    longer = ("training.optimizer.learning_rate=0.02", "training.lr_scheduler.patience=20")
    overrides = [f"runtime.run_folder={tmp_path / 'run'}", f"training.max_epochs={SLOW.get(name, 25)}", *longer]
    train(load(data / f"{name}.toml", overrides), Console(file=io.StringIO(), width=200))
    table = rows(tmp_path / "run")
    for column in ("train/loss", "val/loss"):
        assert float(table[-1][column]) < 0.4 * float(table[1][column])
    assert float(table[-1]["val/forces_rmse_mev_per_angstrom"]) < 0.6 * float(table[0]["val/forces_rmse_mev_per_angstrom"])


def test_a_validation_is_a_row_and_the_plateau_lowers_the_rate(finished: Path):
    table = rows(finished)
    assert [int(row["step"]) for row in table] == [STEPS_PER_EPOCH * epoch for epoch in range(EPOCHS + 1)]
    rates = [float(row["learning_rate"]) for row in table]
    assert rates[0] == 0.01
    assert set(rates) & {0.005, 0.0025, 0.00125}, "the tests of interruptions need a plateau"


def test_the_results_say_what_was_done(finished: Path):
    found = results(finished)
    assert found["status"] == "finished"
    assert (found["steps"], found["epochs"]) == (STEPS_PER_EPOCH * EPOCHS, EPOCHS)
    assert set(found["metrics"]) == {"validation", "hot"}
    assert found["metrics"]["hot"]["num_structures"] == found["metrics"]["hot"]["num_energy_labels"] == 10
    assert found["metrics"]["hot"]["stress_rmse_mev_per_angstrom3"] is None
    weights = load_file(finished / "potential.safetensors")
    num_tensors_of_no_weight = weights["scale"].numel() + sum(w.numel() for name, w in weights.items() if "radial" in name)
    assert found["num_parameters"] == sum(w.numel() for w in weights.values()) - num_tensors_of_no_weight


def test_the_best_validation_is_what_is_tested(finished: Path):
    table = rows(finished)
    best = min(table, key=lambda row: float(row["val/loss"]))
    found = results(finished)["metrics"]["validation"]
    for name in ("forces_rmse_mev_per_angstrom", "energy_mae_mev_per_atom"):
        assert found[name] == pytest.approx(float(best[f"val/{name}"]), rel=1e-5)
    assert f"best epoch {float(best['epoch']):g}, EMA" == results(finished)["weights"]


def test_checkpoints_are_read_without_executing_anything(finished: Path):
    for name in ("last.ckpt", "best.ckpt"):
        assert checkpoint(finished, name)["task"]["steps"] > 0
    assert not list(finished.rglob("*.tmp"))


def test_a_loaded_potential_gives_the_metrics_of_the_results(data: Path, finished: Path):
    trained = load_potential(finished)
    structures = read(load(data / "x.toml").experiment.dataset.test_files()["hot"]).structures
    for batch_size in (64, 3):
        found = evaluate(trained, structures, batch_size=batch_size).metrics
        assert nearly_equal(found, results(finished)["metrics"]["hot"], 1e-5 if batch_size == 3 else 1e-9)


def nearly_equal(one: object, other: object, relative: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(nearly_equal(one[key], other[key], relative) for key in one)
    return one == other if one is None or other is None else one == pytest.approx(other, rel=relative)


@pytest.mark.parametrize("name", ["validation", "hot"])
def test_the_written_predictions_give_the_metrics_of_the_results(finished: Path, name: str):
    frames = ase.io.read(finished / "predictions" / f"{name}.extxyz", ":")
    energy = 1e3 * np.array([atoms.info["predicted_energy"] - atoms.get_potential_energy() for atoms in frames])
    per_atom = energy / [len(atoms) for atoms in frames]
    forces = 1e3 * np.concatenate([atoms.arrays["predicted_forces"] - atoms.get_forces() for atoms in frames])
    symbols = np.concatenate([atoms.get_chemical_symbols() for atoms in frames])
    found = results(finished)["metrics"][name]
    expected = {
        "energy_mae_mev": np.abs(energy).mean(),
        "energy_rmse_mev": np.sqrt((energy**2).mean()),
        "energy_mae_mev_per_atom": np.abs(per_atom).mean(),
        "energy_rmse_mev_per_atom": np.sqrt((per_atom**2).mean()),
        "forces_mae_mev_per_angstrom": np.abs(forces).mean(),
        "forces_rmse_mev_per_angstrom": np.sqrt((forces**2).mean()),
        "num_structures": len(frames),
        "num_force_components": forces.size,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=RECOMPUTED_METRIC)
    for symbol in set(symbols):
        mae = np.abs(forces[symbols == symbol]).mean()
        assert found["by_element"][symbol]["forces_mae_mev_per_angstrom"] == pytest.approx(mae, rel=RECOMPUTED_METRIC)


def test_given_self_energies_and_their_shifts_stay_with_the_potential(data: Path, tmp_path: Path):
    """Evaluation, file and calculator add back what the training took off: also the mean interaction."""
    values = "{ H = -10.71, C = -48.85, N = -70.96, O = -102.56 }"  # free atoms in GFN2-xTB, eV
    given = ('dataset.self_energies.source="values"', f"dataset.self_energies.values={values}")
    run(data, tmp_path / "run", "training.max_epochs=2", *given)
    assert results(tmp_path / "run")["self_energies_ev"] == {"1": -10.71, "6": -48.85, "7": -70.96, "8": -102.56}
    best = min(rows(tmp_path / "run"), key=lambda row: float(row["val/loss"]))
    found = results(tmp_path / "run")["metrics"]["validation"]
    assert found["energy_mae_mev_per_atom"] == pytest.approx(float(best["val/energy_mae_mev_per_atom"]), rel=1e-4)
    assert found["energy_mae_mev_per_atom"] < 500
    atoms = ase.io.read(tmp_path / "run" / "predictions" / "hot.extxyz", 0)
    expected = atoms.info["predicted_energy"]
    atoms.calc = ModelforgeCalculator(tmp_path / "run")
    assert atoms.get_potential_energy() == pytest.approx(expected, rel=0, abs=CALCULATOR)
    assert min(load_potential(tmp_path / "run").shifts.values()) < -1


# The same again


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(data: Path, finished: Path, tmp_path: Path):
    run(data, tmp_path / "again")
    assert_same_run(finished, tmp_path / "again")
    run(data, tmp_path / "other", "runtime.seed=1", "training.max_epochs=1")
    one, other = (load_file(folder / "potential.safetensors") for folder in (finished, tmp_path / "other"))
    assert not torch.equal(one["potential.embedding.weight"], other["potential.embedding.weight"])


def test_a_second_call_says_finished_and_trains_nothing(data: Path, finished: Path, monkeypatch):
    monkeypatch.setattr("modelforge.train.fit", lambda _run: pytest.fail("it trains"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    console = Console(file=io.StringIO(), width=200)
    again = train(load(data / "x.toml", [f"runtime.run_folder={finished}"]), console)
    assert "This run is finished" in console.file.getvalue()
    assert again == results(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_project_may_be_moved(data: Path, finished: Path, tmp_path: Path):
    """Paths count by their names; that the data are the same is told by their hash."""
    for name in ("x.toml", "train.xyz", "hot.xyz"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    shutil.copytree(finished, tmp_path / "run")
    assert run(tmp_path, tmp_path / "run") == results(finished)
    longer = run(tmp_path, tmp_path / "run", f"training.max_epochs={EPOCHS + 1}")
    assert longer["epochs"] == EPOCHS + 1


def test_a_folder_refuses_another_experiment(data: Path, finished: Path):
    with pytest.raises(UserError, match=r"training\.batch_size: was 5, is 4"):
        run(data, finished, "training.batch_size=4")


# Interruptions


class SignalAt:
    """A listener that sends this process a signal in some steps, as a batch system would."""

    def __init__(self, *steps: int, number: int = signal.SIGUSR1) -> None:
        self.steps, self.number = set(steps), number

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        pass

    def stepped(self, *, step: int) -> None:
        if step in self.steps:
            self.steps.discard(step)
            os.kill(os.getpid(), self.number)

    def validated(self, validation: Validation) -> None:
        pass

    def said(self, message: str) -> None:
        pass


def run_with(listener: Listener, monkeypatch: pytest.MonkeyPatch, data: Path, folder: Path, *overrides: str) -> int:
    """Call `train` until the run is finished; gives the number of interruptions."""
    monkeypatch.setattr("modelforge.train._listeners", lambda _run: ([listener], None))
    for num_interruptions in range(10):
        try:
            run(data, folder, *overrides)
        except Interrupted:
            continue
        return num_interruptions
    pytest.fail("the run never came to its end")


MIDDLE, LAST_OF_EPOCH, LAST = STEPS_PER_EPOCH + 3, 2 * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH


@pytest.mark.parametrize(
    "steps",
    [(MIDDLE,), (1,), (LAST_OF_EPOCH,), (LAST_OF_EPOCH + 1,), (LAST - 1,), (2, MIDDLE, MIDDLE + 1)],
    ids=str,
)
def test_an_interrupted_run_equals_one_that_was_not(data, finished, tmp_path, monkeypatch, steps: Sequence[int]):
    assert run_with(SignalAt(*steps), monkeypatch, data, tmp_path / "run") == len(steps)
    assert_same_run(finished, tmp_path / "run")


class SignalInTheWaiting(SignalAt):
    """A listener that sends the signal while the run waits for the compiler."""

    def said(self, message: str) -> None:
        if message.startswith("waiting for the compiled step"):
            os.kill(os.getpid(), self.number)


def test_a_signal_ends_the_waiting_for_the_compiler(data, finished, tmp_path, monkeypatch):
    asked: list[int] = []

    def is_awaited(_: StepCompiler, number: int) -> bool:
        asked.append(number)
        return number == MIDDLE and asked.count(MIDDLE) < 100  # for ever, unless the signal is seen

    monkeypatch.setattr(StepCompiler, "is_awaited", is_awaited)
    assert run_with(SignalInTheWaiting(), monkeypatch, data, tmp_path / "run") == 1
    assert asked.count(MIDDLE) < 5
    assert_same_run(finished, tmp_path / "run")


def test_a_signal_in_the_last_step_does_not_lose_the_end_of_the_run(data, finished, tmp_path, monkeypatch):
    run_with(SignalAt(LAST), monkeypatch, data, tmp_path / "run")
    assert_same_run(finished, tmp_path / "run")


class SignalInValidation:
    """A callback that sends this process a signal within some validations, by their number."""

    def __init__(self, *numbers: int, number: int = signal.SIGTERM) -> None:
        self.numbers, self.number, self.seen = set(numbers), number, 0

    def before(self) -> None:
        if self.seen in self.numbers:
            os.kill(os.getpid(), self.number)
        self.seen += 1


@pytest.mark.parametrize("numbers", [(0,), (1,), (2, 3), (EPOCHS,), (0, 1, 4)], ids=str)
def test_an_interruption_within_a_validation_leaves_no_trace(data, finished, tmp_path, monkeypatch, numbers: Sequence[int]):
    """A validation has two batches here; the run stops between them, and the next start begins with that validation."""
    overrides = ("training.evaluation_batch_size=5",)
    whole = tmp_path / "whole"
    run(data, whole, *overrides)
    signals, real = SignalInValidation(*numbers), TrainingTask.validation_step

    def validation_step(self: TrainingTask, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            signals.before()
        real(self, batch, batch_idx)

    monkeypatch.setattr(TrainingTask, "validation_step", validation_step)
    stops = []
    while not (tmp_path / "run" / "results.json").exists():
        try:
            run(data, tmp_path / "run", *overrides)
        except Interrupted as stop:
            stops.append(str(stop))
    assert len(stops) == len(numbers)
    assert all("SIGTERM in the validation after step" in stop for stop in stops)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("steps", [(1,), (MIDDLE, MIDDLE + 1), (LAST_OF_EPOCH - 1,)], ids=str)
def test_an_interruption_while_gradients_are_summed_up_leaves_no_trace(data, tmp_path, monkeypatch, steps):
    overrides = ("training.accumulate_batches=3", "training.max_epochs=3")
    run(data, tmp_path / "whole", *overrides)
    assert run_with(SignalAt(*steps), monkeypatch, data, tmp_path / "run", *overrides) >= 1
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_an_interruption_between_rare_validations_leaves_no_trace(data, tmp_path, monkeypatch):
    """Validations each 11 batches do not fall together with the ends of epochs."""
    overrides = ("training.validate_every_steps=11", "training.max_epochs=3")
    run(data, tmp_path / "whole", *overrides)
    assert [int(row["step"]) for row in rows(tmp_path / "whole")] == [0, 11, 21]
    assert run_with(SignalAt(9, 15), monkeypatch, data, tmp_path / "run", *overrides) == 2
    assert_same_run(tmp_path / "whole", tmp_path / "run")


SECOND_STAGE = (
    "training.second_stage.start_epoch=2.5",
    "training.second_stage.learning_rate=0.003",
    "training.second_stage.energy_weight=50",
    "training.loss.forces_schedule.name='linear'",
    "training.loss.forces_schedule.end_epoch=2",
)


def test_a_second_stage_has_its_own_rate_weights_average_and_best(data, tmp_path, monkeypatch):
    """And an interruption anywhere in it leaves no trace."""
    whole = tmp_path / "whole"
    run(data, whole, *SECOND_STAGE)
    table = rows(whole)
    weights = [(float(row["loss/energy_weight"]), float(row["loss/forces_weight"])) for row in table]
    assert weights == [(1, 0), (1, 50), (1, 100), (1, 100), (50, 100), (50, 100), (50, 100)]
    assert [float(row["learning_rate"]) for row in table[4:]] == [0.003] * 3
    assert "second stage from epoch 3 on (second_stage.start_epoch (2.5) reached)" in (whole / "log.txt").read_text()
    later = min(table[4:], key=lambda row: float(row["val/loss"]))
    assert results(whole)["weights"] == f"best epoch {float(later['epoch']):g} (second stage), SWA"
    earlier = load_potential(whole / "potential_first_stage.safetensors")
    assert earlier.weights == f"best epoch {float(min(table[:4], key=lambda row: float(row['val/loss']))['epoch']):g}, EMA"
    before_the_switch = 3 * STEPS_PER_EPOCH - 1
    for steps in ((before_the_switch,), (before_the_switch + 1,), (before_the_switch + 3, LAST - 1)):
        folder = tmp_path / str(steps)
        assert run_with(SignalAt(*steps), monkeypatch, data, folder, *SECOND_STAGE) == len(steps)
        assert_same_run(whole, folder)


def test_the_plain_mean_of_the_second_stage_is_that_of_the_weights_after_its_steps(data, tmp_path, monkeypatch):
    seen: list[torch.Tensor] = []
    real = TrainingTask.optimizer_step

    def optimizer_step(self: TrainingTask, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)
        if self.is_second_stage:
            seen.append(torch.cat([weight.detach().flatten().clone() for weight in self.model.parameters()]))

    monkeypatch.setattr(TrainingTask, "optimizer_step", optimizer_step)
    run(data, tmp_path / "run", *SECOND_STAGE, "training.max_epochs=4")
    assert len(seen) == STEPS_PER_EPOCH
    found = checkpoint(tmp_path / "run", "last.ckpt")["task"]["averaged_weights"]
    averaged = torch.cat([weight.flatten() for weight in found.values()])
    torch.testing.assert_close(averaged, torch.stack(seen).double().mean(0).float(), rtol=1e-5, atol=1e-6)


def test_early_stopping_of_the_first_stage_leads_to_the_second(data: Path, tmp_path: Path):
    early = ("training.early_stopping.patience=1", "training.early_stopping.threshold=0.9")
    run(data, tmp_path / "run", *SECOND_STAGE, *early, "training.second_stage.start_epoch=5")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "second stage from epoch 2 on (early stopping: no improvement of the validation loss in 1 validations)" in log
    found = results(tmp_path / "run")
    assert found["reason"] == "early stopping: no improvement of the validation loss in 1 validations"
    assert [row["step"] for row in rows(tmp_path / "run")] == [
        "0",
        "7",
        "14",
        "21",
        "28",
    ]  # none counts before the ramp of 2 epochs ends


def test_a_weight_that_ramps_up_from_zero_trains(data: Path, tmp_path: Path):
    """A gradient of zero in the first step must not set the limit of all later ones."""
    ramp = ("training.loss.energy_schedule.name='linear'", "training.loss.energy_schedule.end_epoch=2")
    fixed = ("training.loss.forces_weight=0.0", "training.loss.energy_weight=10.0", "training.max_epochs=12")
    run(data, tmp_path / "ramp", *ramp, *fixed)
    table = rows(tmp_path / "ramp")
    assert [float(row["loss/energy_weight"]) for row in table[:4]] == [0, 5, 10, 10]
    assert float(table[-1]["val/energy_rmse_mev"]) < 0.9 * float(table[0]["val/energy_rmse_mev"])


def test_the_ledger_adds_up_to_the_loss(finished: Path):
    for row in rows(finished):
        terms = [float(row[f"loss/{term}_weighted"]) for term in ("energy", "forces")]
        assert sum(terms) == pytest.approx(float(row["val/loss"]), rel=1e-6)
        shares = [float(row[f"loss/{term}_gradient_share"]) for term in ("energy", "forces")]
        assert sum(shares) == pytest.approx(1, rel=1e-6)
    log = (finished / "log.txt").read_text()
    assert "loss = w_energy mean(square(dE / sqrt(N))) over structures" in log
    assert "loss terms at step 0 (validation): energy " in log


def test_the_length_of_a_run_whose_rates_follow_from_it_is_fixed(data: Path, tmp_path: Path):
    cosine = "training.lr_scheduler={name='cosine'}"
    run(data, tmp_path / "run", cosine, "training.max_epochs=1")
    with pytest.raises(UserError, match=r"training\.max_epochs: was 1, is 2"):
        run(data, tmp_path / "run", cosine, "training.max_epochs=2")


def test_a_finished_run_that_gets_more_epochs_equals_one_that_had_them(data, finished, tmp_path):
    run(data, tmp_path / "run", "training.max_epochs=2")
    run(data, tmp_path / "run", f"training.max_epochs={EPOCHS}")
    assert_same_run(finished, tmp_path / "run", but=("experiment.toml",))


def test_the_time_limit_ends_a_run_with_a_validation_and_a_test(data: Path, tmp_path: Path):
    run(data, tmp_path / "run", "training.max_time='00:00:00'")
    found = results(tmp_path / "run")
    assert found["reason"] == "max_time (00:00:00) reached"
    assert found["steps"] == 0
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [0]
    assert found["metrics"]["hot"]["num_structures"] == 10


def test_early_stopping_ends_a_run_after_its_patience(data: Path, tmp_path: Path):
    run(data, tmp_path / "run", "training.early_stopping.patience=2", "training.early_stopping.threshold=0.9")
    found = results(tmp_path / "run")
    assert "early stopping" in found["reason"]
    assert len(rows(tmp_path / "run")) == 3  # the first improves on nothing, two do not improve enough


def test_a_run_that_is_cut_between_its_end_and_its_test_is_only_tested(data: Path, tmp_path: Path):
    settings = ["training.early_stopping.patience=2", "training.early_stopping.threshold=0.9"]
    run(data, tmp_path / "run", *settings)
    before, weights = results(tmp_path / "run"), (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "run" / "results.json").unlink()
    run(data, tmp_path / "run", *settings)
    after = results(tmp_path / "run")
    measured = {"peak_memory_mb", "training_seconds"}
    assert {key: after[key] for key in after.keys() - measured} == {key: before[key] for key in before.keys() - measured}
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == weights


def test_signal_handlers_are_those_from_before(data, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    run_with(SignalAt(2, number=signal.SIGTERM), monkeypatch, data, tmp_path / "run", "training.max_epochs=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


# Large labels


@pytest.mark.parametrize("symbol", ["H", "O"])
def test_a_shift_of_all_labels_of_an_element_changes_no_metric(data, finished, tmp_path, symbol: str):
    """1e4 eV for each atom of the element: single precision would lose all digits that matter."""
    for name in ("train.xyz", "hot.xyz"):
        frames = ase.io.read(data / name, ":")
        lines = []
        for atoms in frames:
            energy = atoms.get_potential_energy() + 1e4 * atoms.get_chemical_symbols().count(symbol)
            lines.append(f'{len(atoms)}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={float(energy)!r} pbc="F F F"')
            lines += [
                f"{s} {' '.join(repr(float(x)) for x in (*r, *f))}"
                for s, r, f in zip(atoms.get_chemical_symbols(), atoms.positions, atoms.get_forces(), strict=True)
            ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "x.toml").write_text(TOML)
    run(tmp_path, tmp_path / "run")
    for name in ("validation", "hot"):
        for key, value in results(finished)["metrics"][name].items():
            if key.startswith(("energy", "forces")):
                assert results(tmp_path / "run")["metrics"][name][key] == pytest.approx(value, rel=0, abs=SHIFTED_METRIC)


# The calculator


@pytest.fixture(scope="module")
def molecule(data: Path) -> Atoms:
    return ase.io.read(data / "hot.xyz", 0)


def test_the_calculator_gives_the_written_predictions(data: Path, finished: Path):
    calculator = ModelforgeCalculator(finished)
    for atoms in ase.io.read(finished / "predictions" / "hot.extxyz", ":"):
        energy, forces = atoms.info["predicted_energy"], atoms.arrays["predicted_forces"]
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=0, abs=CALCULATOR)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=CALCULATOR)


def test_forces_and_stress_of_the_calculator_are_slopes_of_its_energy(finished: Path):
    """In float64, with ASE's own finite differences."""
    atoms = crystal(4, (1, 6, 7, 8), seed=3)
    atoms.calc = ModelforgeCalculator(finished, dtype="float64")
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert np.abs(forces).max() > 0.01
    assert np.abs(stress).max() > 1e-4
    slopes = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(forces, slopes, rtol=0, atol=FINITE_DIFFERENCE * np.abs(forces).max())
    strained = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(stress, strained, rtol=0, atol=10 * FINITE_DIFFERENCE * np.abs(stress).max())


def test_molecular_dynamics_runs_and_conserves_energy(finished: Path, molecule: Atoms):
    atoms = molecule.copy()
    atoms.calc = ModelforgeCalculator(finished)
    spread = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    thermostat = {"temperature_K": 300, "friction": 0.01 / units.fs, "fixcm": False}
    Langevin(atoms, 0.5 * units.fs, **thermostat, rng=np.random.default_rng(1)).run(10)
    dynamics, energies, kinetic = VelocityVerlet(atoms, 0.5 * units.fs), [], []
    for _ in range(40):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        kinetic.append(atoms.get_kinetic_energy())
    assert np.ptp(energies) < DRIFT * len(atoms)
    assert np.ptp(kinetic) > 10 * np.ptp(energies)


def test_the_calculator_refuses_elements_that_it_does_not_know(finished: Path):
    atoms = Atoms("Cl2", positions=[[0, 0, 0], [0, 0, 2]], calculator=ModelforgeCalculator(finished))
    with pytest.raises(UserError, match="not trained on"):
        atoms.get_potential_energy()


def test_a_run_goes_on_from_the_checkpoint_before_where_the_last_is_damaged(data, finished, tmp_path, monkeypatch):
    """Two interruptions leave two checkpoints; the later one is truncated."""
    folder, listener = tmp_path / "run", SignalAt(2, MIDDLE)
    monkeypatch.setattr("modelforge.train._listeners", lambda _run: ([listener], None))
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(data, folder)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-200])
    run(data, folder)
    assert "the run goes on from" in (folder / "log.txt").read_text()
    assert_same_run(finished, folder)


# Numbers that are not finite


def test_the_first_step_that_is_not_finite_is_named_with_its_structures(data, tmp_path, monkeypatch):
    """The forces term of one step is made NaN: the run ends, names the term and the structures, and keeps good weights."""
    real, fault = EagerStep.__call__, STEPS_PER_EPOCH + 2
    calls: list[int] = []

    def faulty(self: EagerStep, batch: Batch, weights: torch.Tensor) -> StepResult:
        result = real(self, batch, weights)
        if batch.graph.num_structures == LEDGER_STRUCTURES:
            return result
        calls.append(len(calls))
        nan = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])
        return replace(result, loss=result.loss + nan.sum(), sums=result.sums + nan) if calls[-1] == fault else result

    monkeypatch.setattr(EagerStep, "__call__", faulty)
    with pytest.raises(NotFinite, match=rf"^the forces term of the loss is not finite at step {fault}\. ") as caught:
        run(data, tmp_path / "run", with_rehearsal=False)
    assert len(ase.io.read(tmp_path / "run" / "not_finite.extxyz", ":")) == BATCH_SIZE
    experiment = load(data / "x.toml").experiment
    prepared = prepare(experiment.dataset, weights=weights_of(experiment.training.loss))
    expected = run_batches(experiment, prepared).structures_of_step(fault).tolist()
    assert all(f"train.xyz:{index}" in str(caught.value) for index in expected)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["task"]
    assert saved["steps"] <= fault
    assert all(torch.isfinite(weight).all() for weight in saved["weights"].values())
