"""Fine-tuning: a run that starts from a saved potential starts with its weights, and what is frozen stays, bit for bit."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from rich.console import Console
from safetensors.torch import load_file
from small_runs import NUM_TRAIN, NUM_VALIDATION, TOML, checkpoint, differences, rows, write_experiment, write_structures
from tolerances import EXACT_SUM
from traced_programs import traced_step

from modelforge.assembly import prepared
from modelforge.check import check
from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.experiment import load
from modelforge.finish import Results
from modelforge.model_file import load_potential, save_potential
from modelforge.train import train
from modelforge.training.compilation import StepCompiler
from modelforge.training.eager_step import EagerStep

ELEMENTS = (1, 6, 7, 8)
MOLECULES = np.array([[7, 2, 1, 1], [5, 2, 1, 2]])  # atoms of each element in the two molecules of the data
TINY_RATE = "training.optimizer.learning_rate=1e-30"


def run(path: Path, folder: Path, *overrides: str) -> tuple[Results, str]:
    """Train without rehearsal; gives the results and what the log says."""
    loaded = load(path, [f"runtime.run_folder={folder}", *overrides])
    results = train(loaded, Console(file=io.StringIO(), width=200), with_rehearsal=False)
    return results, (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, with its TOML and data."""
    folder = tmp_path_factory.mktemp("trained")
    run(write_experiment(folder), folder / "run", "training.max_epochs=2")
    return folder


@pytest.fixture
def tuning(trained: Path, tmp_path: Path) -> Path:
    """The TOML of an experiment that starts from that run, on other structures."""
    path = write_experiment(tmp_path)
    write_structures(tmp_path / "train.xyz", "test_600K", NUM_TRAIN + NUM_VALIDATION)
    toml = TOML.replace("max_epochs = 6", f'max_epochs = 1\nstart_from = "{trained / "run"}"')
    path.write_text(toml)
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "potential.safetensors")


def test_the_first_errors_are_those_of_the_potential(trained: Path, tuning: Path) -> None:
    """Of forces as they are, of energies after the best constants of the elements in the training set have been taken off."""
    results, _ = run(tuning, tuning.parent / "run", TINY_RATE)
    before = load_potential(trained / "run")
    for name, weight in weights(trained / "run").items():
        assert torch.equal(weights(tuning.parent / "run")[name], weight)
    data = prepared(load(tuning).experiment, split_file=tuning.parent / "run" / "split.npz")
    training, validation = (data.structures.take(part) for part in (data.split.train, data.split.validation))
    counts = np.array([[np.sum(part.atomic_numbers == z) for z in ELEMENTS] for part in training.pieces(1)], dtype=float)
    left = training.energy - evaluate(before, training).energy
    change = np.linalg.lstsq(counts, left, rcond=None)[0]
    found = evaluate(before, validation)
    forces = np.abs(found.forces - validation.forces).mean()
    assert results["metrics"]["validation"]["forces_mae_mev_per_angstrom"] == pytest.approx(1000 * forces, rel=1e-5)
    counts = np.array([[np.sum(part.atomic_numbers == z) for z in ELEMENTS] for part in validation.pieces(1)], dtype=float)
    energies = np.abs(found.energy + counts @ change - validation.energy).mean()
    assert results["metrics"]["validation"]["energy_mae_mev"] == pytest.approx(1000 * energies, rel=1e-3)
    row = rows(tuning.parent / "run")[0]
    assert float(row["val/forces_mae_mev_per_angstrom"]) == pytest.approx(1000 * forces, rel=1e-5)


def test_labels_of_another_method_cost_nothing_at_the_start(trained: Path, tuning: Path) -> None:
    """A constant for each carbon on all labels changes the self-energy of carbon, and no error."""
    plain, _ = run(tuning, tuning.parent / "plain", TINY_RATE)
    shifted = tuning.parent / "train.xyz"
    lines = shifted.read_text().replace("energy=", "ENERGY=").splitlines(keepends=True)
    moved = []
    for line in lines:
        before, key, rest = line.partition("ENERGY=")
        value, _, more = rest.partition(" ")
        moved.append(f"{before}energy={float(value) - 200.0!r} {more}" if key else line)  # both molecules have two carbon atoms
    shifted.write_text("".join(moved))
    other, log = run(tuning, tuning.parent / "other", TINY_RATE, "dataset.audit=report")
    expected = plain["metrics"]["validation"]["energy_mae_mev"]
    assert other["metrics"]["validation"]["energy_mae_mev"] == pytest.approx(expected, abs=0.1)
    assert "self-energies are those that the run starts from, changed by" in log


def test_elements_that_the_data_do_not_have_stay_known(trained: Path, tuning: Path) -> None:
    wider = load_potential(trained / "run")
    potential = wider.potential.build((*wider.elements, 17))
    state = dict(wider.model.potential.state_dict())
    state["embedding.weight"] = torch.cat([state["embedding.weight"], torch.full((1, 8), 0.25)])
    potential.load_state_dict(state)
    model = type(wider.model)(potential, scale=float(wider.model.scale))
    energies = wider.self_energies
    undetermined = np.pad(energies.undetermined, ((0, 0), (0, 1)))
    known = type(energies)({**energies.by_element, 17: -460.0}, energies.fitted, undetermined)
    path = tuning.parent / "wider.safetensors"
    save_potential(path, type(wider)(**{**vars(wider), "model": model, "self_energies": known}))
    results, log = run(tuning, tuning.parent / "run", f"training.start_from={path}")
    found = load_potential(tuning.parent / "run")
    assert found.elements == (*ELEMENTS, 17)
    assert found.constants()[17] == -460.0
    assert torch.equal(found.model.potential.state_dict()["embedding.weight"][4], torch.full((8,), 0.25))
    assert results["self_energies_ev"][17] == -460.0
    assert "goes on to know Cl, of which the data have nothing" in log
    assert found.constants()[6] != wider.constants()[6]


def test_self_energies_that_are_given_are_kept_and_shifts_take_up_the_rest(tuning: Path) -> None:
    run(tuning, tuning.parent / "plain", TINY_RATE)
    values = load_potential(tuning.parent / "plain").self_energies.by_element
    given = {chemical_symbols[z]: value + 1.0 for z, value in values.items()}
    table = "{" + ", ".join(f"{symbol} = {value!r}" for symbol, value in given.items()) + "}"
    settings = ("dataset.self_energies.source=values", f"dataset.self_energies.values={table}", TINY_RATE)
    run(tuning, tuning.parent / "given", *settings)
    plain, found = (load_potential(tuning.parent / name) for name in ("plain", "given"))
    assert found.self_energies.by_element == {z: value + 1.0 for z, value in values.items()}
    expected, got = (MOLECULES @ potential.constants()[list(ELEMENTS)] for potential in (plain, found))
    np.testing.assert_allclose(got, expected, rtol=EXACT_SUM)


def test_a_run_goes_on_without_the_file_that_it_started_from(trained: Path, tuning: Path) -> None:
    path = tuning.parent / "gone.safetensors"
    shutil.copy(trained / "run" / "potential.safetensors", path)
    settings = (f"training.start_from={path}", 'training.freeze=["interactions.0.features_in"]')
    whole = tuning.parent / "whole"
    run(tuning, whole, *settings, "training.max_epochs=2")
    cut = tuning.parent / "cut"
    run(tuning, cut, *settings, "training.max_epochs=1")
    path.unlink()
    run(tuning, cut, *settings, "training.max_epochs=2")
    assert list(differences(whole, cut)) == []


FREEZE = 'training.freeze=["embedding", "interactions.0.filter*", "readout.2.bias"]'


def test_frozen_weights_stay_bit_for_bit_and_all_others_move(trained: Path, tuning: Path) -> None:
    folder = tuning.parent / "run"
    decay = "training.optimizer.weight_decay=0.1"
    _, log = run(tuning, folder, FREEZE, decay, "training.ema.decay=0.5", "training.max_epochs=2")
    before, after = weights(trained / "run"), weights(folder)
    frozen = {
        name
        for name in before
        if name.startswith(("potential.embedding.", "potential.interactions.0.filter")) or name == "potential.readout.2.bias"
    }
    assert len(frozen) == 6
    moving = {name for name, _ in load_potential(folder).model.named_parameters()} - frozen
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    for name in moving:
        assert not torch.equal(before[name], after[name]), name
    saved = checkpoint(folder, "last.ckpt")["task"]
    assert len(saved["optimizer"]["state"]) == len(moving)
    assert saved["averaged_weights"].keys() == moving
    num_trained = sum(after[name].numel() for name in moving)
    assert f"{num_trained:,} of them trained" in log


def test_the_rehearsal_and_check_know_what_is_frozen(tuning: Path) -> None:
    loaded = load(tuning, [f"runtime.run_folder={tuning.parent / 'run'}", FREEZE])
    told = "\n".join(check(loaded))
    assert "start: weights and scale of" in told
    assert "of them trained" in told
    train(loaded, Console(file=io.StringIO(), width=200))


def test_a_compiled_step_has_the_gradients_of_what_is_trained(tuning: Path) -> None:
    """Traced, with the graph run as it is: the compiler itself is no matter here."""
    from modelforge.assembly import build_model, run_batches
    from modelforge.run_folder import RunFolder
    from modelforge.starting_point import prepared_for, starting_point

    experiment = load(tuning, [FREEZE]).experiment
    start = starting_point(experiment, RunFolder(tuning.parent / "run"))
    data = prepared_for(start, experiment, prepared(experiment))
    assert data.scale == float(start.trained.model.scale)
    model = build_model(experiment, data, start.trained).train()
    batch = next(iter(run_batches(experiment, data).training(0, 1)))
    loss, scales = experiment.training.widest_loss, torch.ones(2)
    compiled = traced_step(model, loss, batch, scales)
    found = torch.autograd.grad(compiled(batch, scales).loss, compiled.parameters)
    assert compiled.failure is None
    expected = torch.autograd.grad(EagerStep(model, loss)(batch, scales).loss, compiled.parameters)
    assert len(found) == len([weight for weight in model.parameters() if weight.requires_grad])
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert StepCompiler(model, loss, mode=False, total_steps=1).current.model is model


MISTAKES = {
    "no such file": (['training.start_from="nowhere"'], ["training.start_from: ", "nowhere: no such run folder or file"]),
    "another size": (
        ["potential.num_features=16", "potential.num_radial=9"],
        [
            "potential.num_features: must be 8, as in the potential of training.start_from (got 16)",
            "potential.num_radial: must be 8, as in the potential of training.start_from (got 9)",
        ],
    ),
    "another potential": (
        ['potential={name="painn", cutoff=3.5}'],
        ['potential.name: must be "schnet", as in the potential of training.start_from (got "painn")'],
    ),
    "nothing matches": (
        ['training.freeze=["embeding"]'],
        ["training.freeze: 'embeding' must be the name of a module", "(did you mean 'embedding' or"],
    ),
    "everything is frozen": (['training.freeze=["*"]'], ["training.freeze: must leave some weights to be trained"]),
}


@pytest.mark.parametrize(("overrides", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_place(tuning: Path, overrides: Sequence[str], words: Sequence[str]) -> None:
    with pytest.raises(UserError) as caught:
        run(tuning, tuning.parent / "run", *overrides)
    for expected in words:
        assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == sum(word.startswith(("training.", "potential.")) for word in words)


def test_freezing_random_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze: has no use without start_from"):
        load(write_experiment(tmp_path), ['training.freeze=["embedding"]'])


def test_elements_that_the_potential_does_not_know_are_named(tuning: Path) -> None:
    data = tuning.parent / "train.xyz"
    data.write_text(data.read_text().replace("\nN ", "\nS "))
    with pytest.raises(UserError, match=r"training.start_from: .* \(it knows H, C, N, O; the data also have S\)"):
        run(tuning, tuning.parent / "run", "dataset.audit=report", "dataset.test_paths={}")


def test_results_say_what_the_run_folder_has(tuning: Path) -> None:
    run(tuning, tuning.parent / "run")
    found = json.loads((tuning.parent / "run" / "results.json").read_text())
    assert found["num_parameters"] == sum(weight.numel() for weight in load_potential(tuning.parent / "run").model.parameters())
    assert (tuning.parent / "run" / "start.safetensors").is_file()
