"""Runs of several real processes (gloo): they compute what one process computes, and stop and go on together."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.io
import numpy as np
import pytest
from safetensors.torch import load_file

from modelforge.run_folder import RunFolder

# An epoch has 24 structures in fives, two of which make up a step: the last batch has 4, the last step of an epoch one batch.
# With three processes one has no validation structure.
TOML = """\
[potential]
name = "painn"
cutoff = 3.5
num_features = 8
num_layers = 1
num_radial = 8
[dataset]
name = "quickstart"
[dataset.split]
counts = [24, 2, 7]
[training]
max_epochs = 4
batch_size = 5
accumulate_batches = 2
evaluation_batch_size = 4
[training.lr_scheduler]
name = "reduce_lr_on_plateau"
warmup_steps = 3
patience = 1
[training.ema]
decay = 0.9
[runtime]
accelerator = "cpu"
num_threads = 1
compile = false
progress_bar = false
"""
TIMES = {"seconds", "structures_per_second"}
ROUNDING = 1e-4  # relative, after 12 optimizer steps in float32
ALONE = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE"))}


def command(toml: Path, folder: Path, *overrides: str) -> list[str]:
    settings = [word for override in overrides for word in ("--set", override)]
    return [sys.executable, "-m", "modelforge", "train", "--config", str(toml), "--run-folder", str(folder), *settings]


def run(toml: Path, folder: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(toml, folder, *overrides), capture_output=True, text=True, timeout=240, env=ALONE, check=False
    )


@pytest.fixture(scope="session")
def toml(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "x.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="session")
def folders(toml: Path) -> dict[int, Path]:
    """Finished runs by the number of their processes."""
    found = {}
    for num in (1, 2, 3):
        found[num] = toml.parent / f"run{num}"
        done = run(toml, found[num], f"runtime.devices={num}")
        assert done.returncode == 0, done.stderr
    return found


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value and key not in TIMES} for row in csv.DictReader(file)]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["metrics"]


def flat(values: dict, prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found


def test_a_run_folder_is_made_by_many_at_the_same_time(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: folder.create(), range(1000)))
    assert [path.name for path in folder.path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("num", [2, 3])
def test_several_processes_give_the_numbers_of_one(folders, num: int):
    one, several = rows(folders[1]), rows(folders[num])
    assert len(one) == len(several) == 5
    for mine, theirs in zip(one, several, strict=True):
        assert mine == pytest.approx(theirs, rel=ROUNDING)
    mine, theirs = flat(metrics(folders[1])), flat(metrics(folders[num]))
    assert mine == pytest.approx(theirs, rel=ROUNDING)
    assert theirs["test.num_structures"] == 7
    weights = [load_file(folders[k] / "potential.safetensors") for k in (1, num)]
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][name], weight, rtol=0, atol=ROUNDING * float(weight.abs().max()), err_msg=name)


def test_soap_takes_the_same_axes_on_all_processes(toml: Path):
    found = []
    for num in (1, 2):
        folder = toml.parent / f"soap{num}"
        optimizer = "training.optimizer={name='soap', basis_interval=2}"
        done = run(toml, folder, f"runtime.devices={num}", optimizer, "runtime.precision='64-true'")
        assert done.returncode == 0, done.stderr
        found.append(rows(folder)[-1])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("num", [2, 3])
def test_no_structure_is_missing_or_twice_in_the_predictions(folders, num: int):
    one, several = (ase.io.read(folders[k] / "predictions" / "test.extxyz", ":") for k in (1, num))
    assert len(one) == len(several) == 7
    for mine, theirs in zip(one, several, strict=True):
        np.testing.assert_array_equal(mine.positions, theirs.positions)
        assert mine.info["predicted_energy"] == pytest.approx(theirs.info["predicted_energy"], rel=1e-6)
        np.testing.assert_allclose(mine.arrays["predicted_forces"], theirs.arrays["predicted_forces"], rtol=0, atol=1e-4)
    assert not list((folders[num] / "predictions").glob(".*"))


def test_all_processes_have_one_split(folders):
    splits = [np.load(folders[num] / "split.npz") for num in (1, 2, 3)]
    for found in splits[1:]:
        for key in splits[0].files:
            np.testing.assert_array_equal(splits[0][key], found[key])


def test_only_the_first_process_speaks(folders):
    log = (folders[3] / "log.txt").read_text()
    for line in ("self-energies (eV)", "rehearsal", "finished:"):
        assert log.count(line) == 1, line


RARE = "training.validate_every_steps=33"  # so that a stop comes in the middle of a stretch, with sums of all processes


@pytest.fixture(scope="session")
def seldom_validated(toml: Path) -> Path:
    """A run of one process with rare validations."""
    folder = toml.parent / "seldom"
    done = run(toml, folder, RARE, "training.max_epochs=4000", "training.max_steps=400")
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_stop_on_a_signal_and_one_goes_on(toml: Path, seldom_validated: Path, tmp_path: Path):
    """How many processes there are does not matter to what a run computes, nor does a step where it was cut."""
    folder = tmp_path / "run"
    long = ("training.max_epochs=4000", RARE)
    words = command(toml, folder, "runtime.devices=2", *long)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ALONE)
    until = time.time() + 120
    while not (folder / "metrics.csv").exists() or len(rows(folder)) < 3:
        assert process.poll() is None
        assert time.time() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "Traceback" not in output
    assert output.count("stopped (SIGTERM at step") == output.count("stopped (") == 1  # one process speaks for all
    assert "stopped (SIGTERM at step" in (folder / "log.txt").read_text()
    num_before = len(rows(folder))
    done = run(toml, folder, RARE, "training.max_epochs=4000", f"training.max_steps={17 * (num_before + 1)}")
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in (folder / "log.txt").read_text()
    assert len(rows(folder)) > num_before
    for mine, theirs in zip(rows(folder), rows(seldom_validated), strict=False):
        assert mine == pytest.approx(theirs, rel=100 * ROUNDING)


def test_a_batch_with_fewer_structures_than_processes_and_one_validation_structure_train(toml: Path, tmp_path: Path):
    small = ("training.batch_size=2", "training.max_epochs=2", "dataset.split.counts=[7,1,1]", "training.accumulate_batches=1")
    small += ("training.loss.energy_weight=0.0",)  # and forces alone, which leave the last bias without a gradient
    found = []
    for num in (1, 3):
        done = run(toml, tmp_path / str(num), f"runtime.devices={num}", *small)
        assert done.returncode == 0, done.stderr
        found.append(rows(tmp_path / str(num)))
    for mine, theirs in zip(*found, strict=True):
        assert mine == pytest.approx(theirs, rel=ROUNDING)
