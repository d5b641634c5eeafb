"""Whole runs whose batches are limited by edges or atoms: every structure once an epoch, and resumed like any other."""

import csv
import io
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toy_experiment import TOML, water

from modelforge.assembly import run_batches
from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.prepare import prepare
from modelforge.data.sources import bundled
from modelforge.errors import UserError
from modelforge.experiment import load
from modelforge.finish import Results
from modelforge.report import batch_summary
from modelforge.train import train
from modelforge.training import task
from modelforge.training.listener import Validation
from modelforge.training.stop_signal import Interrupted

NUM_TRAIN, NUM_VALIDATION, EPOCHS, MAX_EDGES = 24, 6, 3, 400
WATERS, LARGE = (1, 1, 2, 1, 3, 1, 1, 2), (4, 4)  # molecules in each structure
EDGES = 6  # of a molecule of water


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiment and 30 structures."""
    folder = tmp_path_factory.mktemp("data")
    lines = (bundled.FOLDER / "train.xyz").read_text().splitlines(keepends=True)
    end = 0
    for _ in range(NUM_TRAIN + NUM_VALIDATION):
        end += int(lines[end]) + 2
    (folder / "water.xyz").write_text("".join(lines[:end]))
    text = TOML.replace("[6, 2, 0]", f"[{NUM_TRAIN}, {NUM_VALIDATION}, 0]").replace("max_epochs = 1", f"max_epochs = {EPOCHS}")
    text = text.replace("batch_size = 4\n", "").replace('accelerator = "cpu"', 'accelerator = "cpu"\ncompile = false')
    (folder / "x.toml").write_text(text)
    return folder


def run(data: Path, folder: Path, *overrides: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    train(load(data / "x.toml", [f"runtime.run_folder={folder}", *overrides]), console)
    return console.file.getvalue()


def results(folder: Path) -> Results:
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [
            {key: row[key] for key in row if key not in ("seconds", "structures_per_second")} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("budget", [f"training.max_edges={MAX_EDGES}", "training.max_atoms=40"])
def test_a_training_within_a_budget_gives_each_structure_once_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    seen: list[torch.Tensor] = []
    edges: list[tuple[int, int]] = []
    real = task.TrainingTask.training_step

    def watched(self: task.TrainingTask, batch, index):
        seen.append(batch.indices)
        edges.append((batch.graph.num_edges, batch.graph.num_atoms))
        return real(self, batch, index)

    monkeypatch.setattr(task.TrainingTask, "training_step", watched)
    run(data, tmp_path / "run", budget)
    found = results(tmp_path / "run")
    assert (found["epochs"], found["steps"]) == (EPOCHS, len(seen))
    steps_per_epoch = len(seen) // EPOCHS
    epochs = [seen[first : first + steps_per_epoch] for first in range(0, len(seen), steps_per_epoch)]
    members = [Counter(torch.cat(epoch).tolist()) for epoch in epochs]
    assert all(len(epoch) == NUM_TRAIN and set(epoch.values()) == {1} for epoch in members)
    assert members[0] == members[1] == members[2]
    assert [batch.tolist() for batch in epochs[0]] != [batch.tolist() for batch in epochs[1]], "packed anew"
    limit = int(budget.partition("=")[2])
    assert max(pair["atoms" in budget] for pair in edges) <= limit


class SignalAt:
    """A listener that sends this process a signal in some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = set(steps)

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        pass

    def stepped(self, *, step: int) -> None:
        if step in self.steps:
            self.steps.discard(step)
            os.kill(os.getpid(), signal.SIGUSR1)

    def validated(self, validation: Validation) -> None:
        pass

    def said(self, message: str) -> None:
        pass


def test_an_interrupted_run_within_a_budget_equals_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = f"training.max_edges={MAX_EDGES}"
    run(data, tmp_path / "whole", budget)
    steps_per_epoch = results(tmp_path / "whole")["steps"] // EPOCHS
    assert steps_per_epoch > 2
    listener = SignalAt(2, steps_per_epoch, steps_per_epoch + 1)
    monkeypatch.setattr("modelforge.train._listeners", lambda _run: ([listener], None))
    for _ in range(3):
        with pytest.raises(Interrupted):
            run(data, tmp_path / "parts", budget)
    run(data, tmp_path / "parts", budget)
    one, other = tmp_path / "whole", tmp_path / "parts"
    assert rows(one) == rows(other)
    assert results(one)["metrics"] == results(other)["metrics"]
    weights = [load_file(folder / "potential.safetensors") for folder in (one, other)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def row_of_waters(num: int, number: int) -> str:
    """Molecules of water so far from each other that none sees the next."""
    lines = water(number, energy=f"energy={-2079.0 * num}").splitlines()
    atoms = [
        " ".join([symbol, str(float(x) + 20.0 * place), *rest])
        for place in range(num)
        for symbol, x, *rest in (line.split() for line in lines[2:])
    ]
    return "\n".join([str(3 * num), lines[1], *atoms]) + "\n"


def batches_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[RunBatches, str]:
    """The batches of ten structures with 6 to 24 edges, and what is said about them."""
    monkeypatch.chdir(folder)
    sizes = (*WATERS, *LARGE)
    Path("water.xyz").write_text("".join(row_of_waters(num, number) for number, num in enumerate(sizes)))
    Path("x.toml").write_text(
        TOML.replace("counts = [6, 2, 0]", 'strategy = "blocks"\ncounts = [8, 2, 0]').replace("batch_size = 4\n", "")
    )
    experiment = load(Path("x.toml"), overrides).experiment
    batches = run_batches(experiment, prepare(experiment.dataset, weights={"energy": 1.0, "forces": 1.0}))
    return batches, batch_summary(experiment, batches)


def test_the_summary_names_budget_and_efficiency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve molecules are packed into 4 batches of at most 3."""
    batches, line = batches_of(tmp_path, monkeypatch, f"training.max_edges={3 * EDGES}")
    assert line == "training: 1 epochs of 4 steps, batches of at most 18 edges, 100 % of it used"
    assert batches.oversized() == []


def test_the_summary_names_both_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = batches_of(tmp_path, monkeypatch, "training.max_edges=3000", "training.max_atoms=12")
    assert line == "training: 1 epochs of 3 steps, batches of at most 3,000 edges and 12 atoms, 100 % of it used"


def test_structures_beyond_the_budget_are_named_and_are_batches_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, line = batches_of(tmp_path, monkeypatch, f"training.max_edges={2 * EDGES}")
    place = f"{tmp_path}/water.xyz:4"
    assert batches.oversized() == [place]
    assert line.endswith(f"; 1 structures are over it and are batches of their own: {place}")
    batch = [batch.indices.tolist() for batch in batches.training(0, batches.steps_per_epoch) if 4 in batch.indices]
    assert batch == [[4]]


def test_without_a_budget_the_batch_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = batches_of(tmp_path, monkeypatch, "training.batch_size=3")
    assert line == "training: 1 epochs of 3 steps, batch size 3"


@pytest.mark.parametrize("budget", ["max_edges", "max_atoms"])
def test_a_batch_size_beside_a_budget_is_refused(data: Path, budget: str) -> None:
    with pytest.raises(UserError) as caught:
        load(data / "x.toml", [f"training.{budget}=100", "training.batch_size=4"])
    assert str(caught.value) == (
        f"--set training.batch_size=4: training.batch_size: must not be given together with {budget}; remove one of them"
    )
