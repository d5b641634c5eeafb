"""A run that is cut again and again, by signals and kill -9 at random moments, equals one that nothing interrupted."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut_places import PLACES
from cutting import BY_KEYBOARD, EXPERIMENTS, FINISHED, STOPPED_EARLY, Cut, Cutter, Tally, cut_runs
from fork_server import ForkServer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import differences, write_experiment

from modelforge.training.checkpoint import Checkpoint, save_checkpoint

NUM_CUTS = 50
PATIENCE = 300.0  # seconds for a process to come to a moment


def test_50_cuts_at_random_moments_leave_no_trace(tmp_path: Path):
    tally = cut_runs(tmp_path, num_cuts=NUM_CUTS, seed=0)
    sys.stdout.write(f"\n{tally.in_words()}\n")
    assert not tally.wrong, tally.in_words()
    assert len(tally.cuts) == NUM_CUTS, tally.in_words()
    assert set(tally.places) == set(PLACES), f"never cut {set(PLACES) - set(tally.places)}"
    assert tally.num_inside >= NUM_CUTS / 2
    assert tally.num_runs >= len(EXPERIMENTS)
    assert tally.num_left == 0, "files that the uninterrupted runs do not leave"


def wait_until_a_validation_is_written(run: Path, process: subprocess.Popen[str]) -> None:
    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    path, before, end = run / "metrics.csv", None, time.monotonic() + PATIENCE
    while before is None or size() <= before:
        before = size() if before is None else min(before, size())
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the command with a run folder."""
    toml, processes = write_experiment(tmp_path), []
    settings = ("--set", "training.batch_size=5", "--set", "training.max_epochs=60")

    def start(run: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "modelforge.cli", "train", "--config", str(toml), *settings, "--run-folder", run]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_command_itself_stops_and_goes_on(start: Callable[[str], subprocess.Popen[str]], tmp_path: Path):
    """Without anything in its way: a new interpreter for each start, signals from outside."""
    whole = start("whole")
    for number, code in ((signal.SIGTERM, STOPPED_EARLY), (signal.SIGINT, STOPPED_EARLY), (signal.SIGKILL, -signal.SIGKILL)):
        process = start("cut")
        wait_until_a_validation_is_written(tmp_path / "cut", process)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        assert said.count("\n") == (code == STOPPED_EARLY)
        assert code != STOPPED_EARLY or f"stopped ({signal.Signals(number).name} " in said
    for process in (whole, start("cut")):
        assert process.communicate(timeout=PATIENCE)[1] == ""
        assert process.returncode == FINISHED
    assert not list(differences(tmp_path / "cut", tmp_path / "whole"))


def test_a_kill_just_after_the_linking_of_a_checkpoint_leaves_no_third_name(tmp_path: Path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    save_checkpoint(last, Checkpoint(schema=1))
    os.link(last, previous)
    save_checkpoint(last, Checkpoint(schema=2), previous=previous)
    assert {path.name: torch.load(path)["schema"] for path in tmp_path.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 1}


# What a signal does at a place


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


IN_A_VALIDATION, AFTER_A_ROW, IN_A_SUM = (
    "before a batch of a validation",
    "after a row of metrics.csv",
    "after the loss of a batch",
)
ACCUMULATED, LAST_VALIDATION = "gradients of several batches", 7


@pytest.mark.parametrize(
    ("cut", "code"),
    [
        (Cut((signal.SIGUSR1,), "split.npz is in its place"), STOPPED_EARLY),
        (Cut((signal.SIGINT,), "split.npz is in its place"), STOPPED_EARLY),
        (Cut((signal.SIGTERM,), IN_A_VALIDATION), STOPPED_EARLY),
        (Cut((signal.SIGTERM,), AFTER_A_ROW, 2), STOPPED_EARLY),
        (Cut((signal.SIGTERM,), IN_A_SUM, 2), STOPPED_EARLY),
        (Cut((signal.SIGINT, signal.SIGINT), IN_A_SUM, 2), BY_KEYBOARD),
        (Cut((signal.SIGTERM,), AFTER_A_ROW, LAST_VALIDATION), STOPPED_EARLY),  # though nothing is left but the test
        (Cut((signal.SIGINT,), "before a set is tested"), STOPPED_EARLY),
        (Cut((signal.SIGTERM,), "before a set is tested"), STOPPED_EARLY),
    ],
    ids=lambda value: value.in_words() if isinstance(value, Cut) else str(value),
)
def test_the_exit_code_says_how_a_signal_ended_the_command(server: ForkServer, tmp_path: Path, cut: Cut, code: int):
    tally = Tally()
    cutter = Cutter(server, tmp_path, EXPERIMENTS[ACCUMULATED], random.Random(0), tally)
    assert cutter.start(tmp_path / "run", cut) == code
    assert not tally.wrong
    assert "Traceback" not in (tmp_path / "run.txt").read_text()


# Whether the comparison sees a difference


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    cutter = Cutter(server, folder, EXPERIMENTS["second stage"], random.Random(0), Tally())
    assert cutter.start(folder / "whole", Cut(())) == FINISHED
    return folder / "whole"


def in_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text[::-1].replace(old[::-1], new[::-1], 1)[::-1])

    return change


def in_checkpoint(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        found = torch.load(folder / "checkpoints" / name, weights_only=True)
        change(found)
        torch.save(found, folder / "checkpoints" / name)

    return changed


def one_bit(tensors: dict[str, torch.Tensor]) -> None:
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(torch.int32).view(-1)[0] ^= 1


def in_file_of_weights(folder: Path) -> None:
    tensors = load_file(folder / "potential_first_stage.safetensors")
    with safe_open(folder / "potential_first_stage.safetensors", framework="pt") as file:
        told = file.metadata()
    one_bit(tensors)
    save_file(tensors, folder / "potential_first_stage.safetensors", metadata=told)


def in_split(folder: Path) -> None:
    with np.load(folder / "split.npz") as saved:
        arrays = dict(saved)
    np.savez(folder / "split.npz", **{**arrays, "train": arrays["train"][::-1]})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (in_text("metrics.csv", "1", "2"), "metrics.csv"),
        (in_text("results.json", "0", "1"), "results.json"),
        (in_text("predictions/hot.extxyz", "1", "2"), "predictions: hot.extxyz"),
        (in_text("experiment.toml", "30", "31"), "experiment.toml"),
        (in_checkpoint("last.ckpt", lambda found: one_bit(found["task"]["weights"])), "last.ckpt: task: weights"),
        (in_checkpoint("last.ckpt", lambda found: one_bit(found["task"]["averaged_weights"])), "last.ckpt: task: averaged"),
        (in_checkpoint("last.ckpt", lambda found: one_bit(found["task"]["optimizer"]["state"][0])), "last.ckpt: task: optim"),
        (in_checkpoint("last.ckpt", lambda found: found["progress"].update(best_loss=1.0)), "last.ckpt: progress: best_loss"),
        (in_checkpoint("best.ckpt", lambda found: found["best"][0].update(steps=1)), "best.ckpt: best: 0: steps"),
        (in_file_of_weights, "potential: potential_first_stage.safetensors: 0"),
        (in_split, "split.npz: train"),
    ],
)
def test_the_comparison_sees_the_smallest_difference(whole: Path, tmp_path: Path, change, place: str):
    shutil.copytree(whole, tmp_path / "run")
    assert not list(differences(tmp_path / "run", whole))
    change(tmp_path / "run")
    found = list(differences(tmp_path / "run", whole))
    assert any(difference.startswith(place) for difference in found), found
    assert {difference.partition(":")[0] for difference in found} == {place.partition(":")[0]}
