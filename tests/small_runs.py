"""Small whole runs: their experiment and data, and what has to be the same, bit for bit, in two of them."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modelforge.data.sources import bundled
from modelforge.model_file import FILE_NAME, FIRST_STAGE_FILE_NAME

TIMES = {"seconds", "structures_per_second"}  # columns of metrics.csv
MEASURED = {"training_seconds", "structures_per_second", "peak_memory_mb"}  # keys of results.json
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 24, 8, 6
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
cache_folder = "cache"
[dataset.test_paths]
hot = "hot.xyz"
[dataset.split]
counts = [{NUM_TRAIN}, {NUM_VALIDATION}, 0]
[training]
max_epochs = 6
evaluation_batch_size = 4
[training.loss]
forces_weight = 3.0
[training.optimizer]
learning_rate = 3e-2
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


def write_experiment(
    folder: Path, toml: str = TOML, *, num_structures: int = NUM_TRAIN + NUM_VALIDATION, num_test: int = NUM_TEST
) -> Path:
    """A folder with the data of an experiment, train.xyz and hot.xyz, and its TOML, x.toml; gives the TOML's path."""
    write_structures(folder / "train.xyz", "train", num_structures)
    write_structures(folder / "hot.xyz", "test_600K", num_test)
    (folder / "x.toml").write_text(toml)
    return folder / "x.toml"


def write_structures(path: Path, source: str, num: int) -> None:
    """The first structures of a bundled file."""
    lines, end = (bundled.FOLDER / f"{source}.xyz").read_text().splitlines(keepends=True), 0
    for _ in range(num):
        end += int(lines[end]) + 2
    path.write_text("".join(lines[:end]))


def differences(one: Path, other: Path, *, but: Sequence[str] = ()) -> Iterator[str]:
    """Where two finished runs differ: everything that they leave but times, memory and log, and the files of `but`."""
    for name, read in READ.items():
        if name not in but:
            yield from _differences(read(one), read(other), name)


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def results(folder: Path) -> dict[str, Any]:
    """results.json without what is measured."""
    found = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in MEASURED}


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """Weights, averages, optimizer, rates, patience, best score: all of a checkpoint but times and the name of the folder."""
    found = torch.load(folder / "checkpoints" / name, weights_only=True)
    del found["progress"]["seconds"], found["experiment"], found["digest"]
    return found


def potentials(folder: Path) -> dict[str, Any]:
    """The tensors and what is told about them, of each stage."""
    found = {}
    for path in (folder / FILE_NAME, folder / FIRST_STAGE_FILE_NAME):
        if path.exists():
            with safe_open(path, framework="pt") as file:
                told = {key: value for key, value in file.metadata().items() if key != "experiment"}
            found[path.name] = (load_file(path), told)
    return found


def split(folder: Path) -> dict[str, Any]:
    """split.npz."""
    with np.load(folder / "split.npz") as saved:
        return dict(saved)


def predictions(folder: Path) -> dict[str, bytes]:
    """The files of predictions."""
    return {path.name: path.read_bytes() for path in sorted((folder / "predictions").iterdir()) if path.suffix == ".extxyz"}


def experiment(folder: Path) -> list[str]:
    """The lines of experiment.toml but the one that says where the run is."""
    return [line for line in (folder / "experiment.toml").read_text().splitlines() if not line.startswith("run_folder")]


READ = {
    "metrics.csv": rows,
    "results.json": results,
    "last.ckpt": lambda folder: checkpoint(folder, "last.ckpt"),
    "best.ckpt": lambda folder: checkpoint(folder, "best.ckpt"),
    "potential": potentials,
    "split.npz": split,
    "predictions": predictions,
    "experiment.toml": experiment,
}


def _differences(one: object, other: object, place: str) -> Iterator[str]:
    if type(one) is not type(other):
        yield f"{place}: {type(one).__name__} and {type(other).__name__}"
    elif isinstance(one, Mapping):
        if one.keys() != other.keys():
            yield f"{place}: {sorted(one.keys() ^ other.keys())} in one of them only"
        for key in one.keys() & other.keys():
            yield from _differences(one[key], other[key], f"{place}: {key}")
    elif isinstance(one, Sequence) and not isinstance(one, str | bytes):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} entries"
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from _differences(*pair, f"{place}: {index}")
    elif _bits(one) != _bits(other):
        yield f"{place}: {str(one)[:80]} and {str(other)[:80]}"


def _bits(value: object) -> object:
    """What tells values apart also where == does not: shapes, the sign of zero; a NaN equals itself."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)
