"""Training speed of our PaiNN beside a peer's PaiNN: same sizes, data, split, batches, threads; structures per second of both.

Each side is a process of its own that trains through its own training loop: ours is `modelforge train` with a TOML, the
peer's a script in `peers/`, run in turns (A B A B ...). Time is wall time from the end of one validation to the end of the
next, over the epochs after the warm-up: batches, training, validation of the averaged weights, learning rate schedule, and
the checkpoints that each tool writes by default (last and best). Compilation and reading of the data fall into the warm-up.

    python scripts/benchmark_training.py --data train_300K.xyz --threads 2 --json figures.json

This process stays small and imports neither torch nor modelforge, as the peak memory of a child counts from its parent's.
"""

import argparse
import csv
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "modelforge" / "data" / "sources" / "quickstart" / "train.xyz"
PEERS = {"schnetpack": "schnetpack==2.1.1"}
CACHE = Path.home() / ".cache" / "modelforge" / "peers"
FEATURES, LAYERS, RADIAL, CUTOFF, LEARNING_RATE, EMA_DECAY = 64, 3, 20, 5.0, 1e-3, 0.995
NUM_VALIDATION = 50
WARM_UP = 2  # epochs


@dataclass(frozen=True)
class Workload:
    """What every side trains."""

    data: Path
    num_train: int
    batch_size: int
    threads: int
    epochs: int
    """Measured epochs of a round."""

    @property
    def max_epochs(self) -> int:
        """Epochs of a round, with the warm-up."""
        return WARM_UP + self.epochs


@dataclass(frozen=True)
class Side:
    """One of those that race; `compile` is for ours, `python` and `workers` are for the peer."""

    name: str
    compile: bool = False
    python: Path | None = None
    workers: int = 0

    @property
    def label(self) -> str:
        """Its name in the table."""
        if self.python is None:
            return f"{self.name}, {'compiled' if self.compile else 'eager'}"
        return f"{self.name}, {self.workers} workers"


@dataclass(frozen=True)
class Figures:
    """What a round tells."""

    epoch_seconds: list[float]
    num_train: int
    peak_memory_mb: float
    num_parameters: int
    num_embedding: int
    versions: dict[str, str]

    @property
    def structures_per_second(self) -> float:
        """Training structures by wall time; that of validation counts, its structures do not."""
        return self.num_train / statistics.mean(self.epoch_seconds)


def measure(side: Side, workload: Workload) -> Figures:
    """One round of a side, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        return measure_ours(side, workload, folder) if side.python is None else measure_peer(side, workload, folder)


def measure_ours(side: Side, workload: Workload, folder: Path) -> Figures:
    """`modelforge train`; the times are those of metrics.csv, which has a row for each validation."""
    config, run = folder / "benchmark.toml", folder / "run"
    config.write_text(experiment(side, workload), encoding="utf-8")
    peak = run_child([sys.executable, "-m", "modelforge.cli", "train", "--config", str(config)], workload, folder)
    log = (run / "log.txt").read_text(encoding="utf-8")
    if side.compile and "compiled steps from here on" not in log:
        sys.exit(f"the training step was not compiled, so there is no compiled figure:\n{log}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    sizes = tensor_sizes(run / "potential.safetensors")
    return Figures(
        epoch_seconds=epochs_after_warm_up(seconds),
        num_train=workload.num_train,
        peak_memory_mb=peak,
        num_parameters=json.loads((run / "results.json").read_text(encoding="utf-8"))["num_parameters"],
        num_embedding=next(size for name, size in sizes.items() if name.endswith("embedding.weight")),
        versions={"modelforge": version("modelforge"), "torch": version("torch")},
    )


def measure_peer(side: Side, workload: Workload, folder: Path) -> Figures:
    """The peer's script, with the peer's interpreter."""
    script = ROOT / "scripts" / "peers" / f"train_{side.name}.py"
    data = f"--data {shlex.quote(str(workload.data))} --folder {shlex.quote(str(folder))}"
    network = f"--features {FEATURES} --layers {LAYERS} --radial {RADIAL} --cutoff {CUTOFF}"
    training = f"--batch-size {workload.batch_size} --epochs {workload.max_epochs} --num-validation {NUM_VALIDATION}"
    rates = f"--learning-rate {LEARNING_RATE} --ema-decay {EMA_DECAY}"
    machine = f"--threads {workload.threads} --workers {side.workers}"
    options = shlex.split(" ".join((data, network, training, rates, machine)))
    peak = run_child([str(side.python), str(script), *options], workload, folder)
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    seconds = found.pop("seconds")
    return Figures(epoch_seconds=epochs_after_warm_up(seconds), peak_memory_mb=peak, **found)


def experiment(side: Side, workload: Workload) -> str:
    """Our experiment as TOML; what the peer does not do, such as clipping, is off."""
    return f"""
[potential]
name = "painn"
cutoff = {CUTOFF}
num_features = {FEATURES}
num_layers = {LAYERS}
num_radial = {RADIAL}
[dataset]
name = "extxyz"
path = {json.dumps(str(workload.data))}
[dataset.split]
strategy = "blocks"
counts = [{workload.num_train}, {NUM_VALIDATION}, 0]
[training]
max_epochs = {workload.max_epochs}
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
accelerator = "cpu"
num_threads = {workload.threads}
compile = {str(side.compile).lower()}
progress_bar = false
"""


def run_child(command: Sequence[str], workload: Workload, folder: Path) -> float:
    """Run a side to its end; gives its peak memory in MB, or ends the benchmark with its last words."""
    threads = {name: str(workload.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    said = folder / "said.txt"
    with said.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | threads, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"exit code {child.returncode} of {shlex.join(command)}:\n{said.read_text()[-3000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def epochs_after_warm_up(seconds: Sequence[float]) -> list[float]:
    """Length of each epoch after the warm-up, from the ends of the validations."""
    return [end - begin for begin, end in pairwise(seconds[WARM_UP - 1 :])]


def tensor_sizes(path: Path) -> dict[str, int]:
    """Number of values of each tensor in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def num_frames(path: Path) -> int:
    """Structures in an XYZ file: each begins with its number of atoms."""
    with path.open(encoding="utf-8") as lines:
        return sum(1 for line in lines if line.strip() and all(next(lines) for _ in range(int(line) + 1)))


def peer_python(peer: str, console: Console) -> Path:
    """The interpreter of the peer's virtual environment, which is made where there is none yet."""
    folder = CACHE / peer
    complete = folder / "complete"
    if not complete.exists():
        console.print(f"installing {PEERS[peer]} into {folder} (once; with its own torch, some GB)", soft_wrap=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", PEERS[peer]], check=True)
        complete.touch()
    return folder / "bin" / "python"


def race(sides: Sequence[Side], workload: Workload, *, rounds: int, console: Console) -> dict[str, list[Figures]]:
    """All sides in turns, round after round."""
    found: dict[str, list[Figures]] = {side.label: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            figures = measure(side, workload)
            found[side.label].append(figures)
            console.print(f"round {number} of {rounds}: {side.label}: {figures.structures_per_second:.1f} structures/s")
    return found


def peer_side(options: argparse.Namespace, workload: Workload, console: Console) -> Side:
    """The peer with the number of data loading processes that suits it best here, found by a round of each."""
    python = options.peer_python.absolute() if options.peer_python else peer_python(options.peer, console)
    sides = [Side(options.peer, python=python, workers=workers) for workers in (0, 1)]
    if options.peer_workers != "auto":
        return sides[int(options.peer_workers)]
    console.print("trial, not counted: how many data loading processes the peer should have")
    trial = race(sides, workload, rounds=1, console=console)
    return max(sides, key=lambda side: trial[side.label][0].structures_per_second)


def speed(rounds: Sequence[Figures]) -> float:
    """Median over the rounds of a side, in structures/s."""
    return statistics.median(figures.structures_per_second for figures in rounds)


def table_of(found: dict[str, list[Figures]], peer: Side) -> Table:
    """A row for each side."""
    table = Table(title="training, validation included")
    for title in ("side", "structures/s\nmedian", "lowest to\nhighest", "times\nthe peer", "peak memory\nMB", "torch"):
        table.add_column(title, justify="left" if title == "side" else "right")
    for label, rounds in found.items():
        speeds = [figures.structures_per_second for figures in rounds]
        memory = max(figures.peak_memory_mb for figures in rounds)
        ratio = f"{speed(rounds) / speed(found[peer.label]):.2f}"
        spread = f"{min(speeds):.1f} to {max(speeds):.1f}"
        table.add_row(label, f"{speed(rounds):.1f}", spread, ratio, f"{memory:.0f}", rounds[0].versions["torch"])
    return table


def parameters_in_words(ours: Figures, peer: Figures) -> str:
    """Both sizes; without the table of elements they must be the same, else the race would mean nothing."""
    without = [figures.num_parameters - figures.num_embedding for figures in (ours, peer)]
    if without[0] != without[1]:
        sys.exit(f"the networks differ: {without[0]} and {without[1]} parameters without the embedding of the elements")
    return (
        f"parameters: {ours.num_parameters:,} of ours, {peer.num_parameters:,} of the peer. They differ only in the "
        f"embedding, which has a row for each element of the data in ours ({ours.num_embedding // FEATURES} rows) and for "
        f"each possible element in the peer's ({peer.num_embedding // FEATURES} rows); the other {without[0]:,} are the same"
    )


def main() -> None:
    """Race, print, write."""
    options, console = parse(), Console()
    data: Path = options.data.absolute()
    num_train = num_frames(data) - NUM_VALIDATION
    workload = Workload(data, num_train, options.batch_size, options.threads, options.epochs)
    console.print(
        f"{data.name}: {num_train} structures train, the last {NUM_VALIDATION} validate; batch size {workload.batch_size}, "
        f"{workload.threads} threads, {platform.machine()}, {os.cpu_count()} cores; rounds of {workload.epochs} epochs "
        f"after {WARM_UP} of warm-up",
        soft_wrap=True,
    )
    peer = peer_side(options, workload, console)
    compiled = {"both": (True, False), "true": (True,), "false": (False,)}[options.compile]
    sides = [*(Side("modelforge", compile=choice) for choice in compiled), peer]
    found = race(sides, workload, rounds=options.rounds, console=console)
    console.print(table_of(found, peer))
    console.print(parameters_in_words(found[sides[0].label][0], found[peer.label][0]), soft_wrap=True)
    if options.json:
        rounds = {label: [asdict(figures) for figures in rounds] for label, rounds in found.items()}
        medians = {label: speed(rounds) for label, rounds in found.items()}
        settings = asdict(workload) | {"data": data.name, "warm_up_epochs": WARM_UP}
        figures = {"workload": settings, "structures_per_second": medians, "rounds": rounds}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Training speed of PaiNN: modelforge beside a peer, on the CPU.")
    parser.add_argument("--peer", choices=sorted(PEERS), default="schnetpack")
    parser.add_argument("--peer-python", type=Path, help="an interpreter with the peer installed (default: one is made)")
    parser.add_argument("--peer-workers", choices=("auto", "0", "1"), default="auto", help="its data loading processes")
    parser.add_argument("--data", type=Path, default=DATA, help="extended XYZ in eV and angstrom (default: the bundled)")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, default=10, help="measured epochs of a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--compile", choices=("both", "true", "false"), default="both", help="ours: compiled, eager or both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
