"""The sides of `benchmark_training.py`: each trains in a process of its own and tells how long its epochs took.

An epoch is one of training with its validation and checkpoint, or with `fixed_batches` a pass of optimizer steps over these.
"""

import csv
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal

from benchmark_networks import NETWORKS, PEERS

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATE, EMA_DECAY = 1e-3, 0.995
NUM_VALIDATION = 50
WARM_UP = 2  # epochs
COMPILED = "compiled steps from here on"  # what our log says where it is so


@dataclass(frozen=True)
class Workload:
    """What every side trains, and for how many measured epochs in a round."""

    data: Path
    num_train: int
    potential: str
    batch_size: int
    threads: int
    epochs: int
    fixed_batches: int = 0  # above 0: optimizer steps alone, over this many batches
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def num_structures(self) -> int:
        """Structures of an epoch."""
        return self.fixed_batches * self.batch_size or self.num_train


@dataclass(frozen=True)
class Side:
    """One that takes part; `compile` and `network` are for ours, the rest for the peer."""

    name: str
    compile: bool = False
    network: tuple[tuple[str, object], ...] = ()  # keys of [potential] that differ from the table of sizes
    python: Path | None = None
    workers: int = 0
    variant: str = ""

    @property
    def label(self) -> str:
        """Its name in the table."""
        if not self.python:
            return f"{self.name}, {'compiled' if self.compile else 'eager'}"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}" if self.workers else ""
        return ", ".join(filter(None, [self.name, workers, self.variant]))


@dataclass(frozen=True)
class Figures:
    """What a round tells; the time of validation counts, its structures do not."""

    epoch_seconds: list[float]
    structures_per_second: float
    peak_memory_mb: float
    num_parameters: int
    num_embedding: int
    versions: dict[str, str]

    @property
    def num_rest(self) -> int:
        """Parameters without the tables of elements."""
        return self.num_parameters - self.num_embedding


def measure(side: Side, workload: Workload, folder: Path) -> Figures:
    """Run a side once, in an empty folder."""
    return (_measure_peer if side.python else _measure_ours)(side, workload, folder)


def _measure_ours(side: Side, workload: Workload, folder: Path) -> Figures:
    """`modelforge train`, timed by metrics.csv, which has a row for each validation; or our script for the steps alone."""
    config, run = folder / "benchmark.toml", folder / "run"
    config.write_text(experiment(side, workload), encoding="utf-8")
    if workload.fixed_batches:
        script = [str(ROOT / "scripts" / "training_step.py"), str(config), "--batches", str(workload.fixed_batches)]
        peak = _run_child([sys.executable, *script, "--passes", str(WARM_UP + workload.epochs)], workload, folder)
        found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        return Figures(*_speed(found.pop("seconds"), workload), peak_memory_mb=peak, **found)
    peak = _run_child([sys.executable, "-m", "modelforge.cli", "train", "--config", str(config)], workload, folder)
    log = (run / "log.txt").read_text(encoding="utf-8")
    if side.compile and COMPILED not in log:
        sys.exit(f"the training step was not compiled, so there is no compiled figure:\n{log}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file) if row["train/loss"]]
    return Figures(
        *_speed(seconds, workload),
        peak_memory_mb=peak,
        num_parameters=json.loads((run / "results.json").read_text(encoding="utf-8"))["num_parameters"],
        num_embedding=size_of_embedding(run / "potential.safetensors"),
        versions={"modelforge": version("modelforge"), "torch": version("torch")},
    )


def _measure_peer(side: Side, workload: Workload, folder: Path) -> Figures:
    """The peer's script, with the peer's interpreter."""
    name = PEERS[side.name].environment or side.name
    script = ROOT / "scripts" / "peers" / f"train_{name.replace('-', '_')}.py"
    options = {
        "data": workload.data,
        "folder": folder,
        "potential": workload.potential,
        "network": json.dumps(NETWORKS[workload.potential]),
        "num-validation": NUM_VALIDATION,
        "batch-size": workload.batch_size,
        "threads": workload.threads,
        "epochs": WARM_UP + workload.epochs,
        "workers": side.workers,
        "learning-rate": LEARNING_RATE,
        "ema-decay": EMA_DECAY,
        "fixed-batches": workload.fixed_batches,
        "variant": side.variant if workload.device == "cpu" else f"{side.variant}, {workload.device}",
    }
    command = [str(side.python), str(script), *(f"--{name}={value}" for name, value in options.items())]
    peak = _run_child(command, workload, folder)
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return Figures(*_speed(found.pop("seconds"), workload), peak_memory_mb=peak, **found)


def experiment(side: Side, workload: Workload) -> str:
    """Our experiment as TOML; what the peer does not do (clipping, larger batches in validation) is off."""
    network = {"name": workload.potential} | NETWORKS.get(workload.potential, {}) | dict(side.network)
    return f"""
[potential]
{chr(10).join(f"{key} = {json.dumps(value)}" for key, value in network.items())}
[dataset]
name = "extxyz"
path = {json.dumps(str(workload.data))}
[dataset.split]
strategy = "blocks"
counts = [{workload.num_train}, {NUM_VALIDATION}, 0]
[training]
max_epochs = {WARM_UP + workload.epochs}
batch_size = {workload.batch_size}
evaluation_batch_size = {workload.batch_size}
[training.optimizer]
name = "adamw"
learning_rate = {LEARNING_RATE}
[training.clipping]
name = "none"
[training.ema]
decay = {EMA_DECAY}
[runtime]
run_folder = "run"
accelerator = "{workload.device}"
num_threads = {workload.threads}
compile = {str(side.compile).lower()}
progress_bar = false
"""


def _run_child(command: Sequence[str], workload: Workload, folder: Path) -> float:
    """Run a side to its end; gives its peak memory in MB, or ends the benchmark with its last words."""
    threads = {name: str(workload.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    said = folder / "said.txt"
    with said.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | threads, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"exit code {child.returncode} of {shlex.join(command)}:\n{said.read_text(encoding='utf-8')[-3000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _speed(seconds: Sequence[float], workload: Workload) -> tuple[list[float], float]:
    """Length of each epoch after the warm-up, from the ends of the validations; and structures/s over these."""
    epochs = [end - begin for begin, end in pairwise(seconds[WARM_UP - 1 :])]
    return epochs, workload.num_structures / statistics.mean(epochs)


def size_of_embedding(path: Path) -> int:
    """Values of the table of elements in a potential, from the header of its file; 0 if it has none."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if is_embedding(name))


def is_embedding(name: str) -> bool:
    """Whether a weight of that name in one of our networks is a table with a row for each element."""
    return name.endswith(("embedding.weight", "embedding.elements.weight"))
