"""Training speed of our PaiNN beside a peer's PaiNN: same sizes, data, split, batches and threads; structures/s of both.

Each side is a process of its own that trains through its own training loop: ours is `modelforge train` with a TOML, the
peer's is a script in `peers/`; they take turns (A B A B ...). Time is wall time from the end of one validation to the end of
the next, over the epochs after the warm-up: batches, training, validation with the averaged weights, schedule, and the
checkpoints that each tool writes by default (last and best). Reading of data and compilation fall into the warm-up.

    python scripts/benchmark_training.py --data train_300K.xyz --threads 2 --json figures.json

This process imports neither torch nor modelforge: the peak memory of a child is never below what its parent has.
"""

import argparse
import csv
import json
import math
import os
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
CACHE = Path.home() / ".cache" / "modelforge" / "peers"
PEERS = {"schnetpack": "schnetpack==2.1.1"}  # its pins lead pip to torch 2.4.1, which needs Python 3.12 or older
FEATURES, LAYERS, RADIAL, CUTOFF, LEARNING_RATE, EMA_DECAY = 64, 3, 20, 5.0, 1e-3, 0.995
NUM_VALIDATION = 50
WARM_UP = 2  # epochs


@dataclass(frozen=True)
class Workload:
    """What every side trains, and for how many measured epochs in a round."""

    data: Path
    num_train: int
    batch_size: int
    threads: int
    epochs: int


@dataclass(frozen=True)
class Side:
    """One that takes part; `compile` is for ours, `python` and `workers` (data loading processes) are for the peer."""

    name: str
    compile: bool = False
    python: Path | None = None
    workers: int = 0

    @property
    def label(self) -> str:
        """Its name in the table."""
        option = f"{self.workers} workers" if self.python else "compiled" if self.compile else "eager"
        return f"{self.name}, {option}"


@dataclass(frozen=True)
class Figures:
    """What a round tells; the time of validation counts, its structures do not."""

    epoch_seconds: list[float]
    structures_per_second: float
    peak_memory_mb: float
    num_parameters: int
    num_embedding: int
    versions: dict[str, str]


def measure_ours(side: Side, workload: Workload, folder: Path) -> Figures:
    """`modelforge train`; the times are those of metrics.csv, which has a row for each validation."""
    config, run = folder / "benchmark.toml", folder / "run"
    config.write_text(experiment(side, workload), encoding="utf-8")
    peak = run_child([sys.executable, "-m", "modelforge.cli", "train", "--config", str(config)], workload, folder)
    log = (run / "log.txt").read_text(encoding="utf-8")
    if side.compile and "compiled steps from here on" not in log:
        sys.exit(f"the training step was not compiled, so there is no compiled figure:\n{log}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file) if row["train/loss"]]
    sizes = tensor_sizes(run / "potential.safetensors")
    return Figures(
        *speed(seconds, workload.num_train),
        peak_memory_mb=peak,
        num_parameters=json.loads((run / "results.json").read_text(encoding="utf-8"))["num_parameters"],
        num_embedding=next(size for name, size in sizes.items() if name.endswith("embedding.weight")),
        versions={"modelforge": version("modelforge"), "torch": version("torch")},
    )


def measure_peer(side: Side, workload: Workload, folder: Path) -> Figures:
    """The peer's script, with the peer's interpreter."""
    script = ROOT / "scripts" / "peers" / f"train_{side.name}.py"
    options = f"--batch-size {workload.batch_size} --threads {workload.threads} --workers {side.workers}"
    options += f" --epochs {WARM_UP + workload.epochs} --num-validation {NUM_VALIDATION} --cutoff {CUTOFF}"
    options += f" --features {FEATURES} --layers {LAYERS} --radial {RADIAL}"
    options += f" --learning-rate {LEARNING_RATE} --ema-decay {EMA_DECAY}"
    command = [str(side.python), str(script), "--data", str(workload.data), "--folder", str(folder), *options.split()]
    peak = run_child(command, workload, folder)
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return Figures(*speed(found.pop("seconds"), workload.num_train), peak_memory_mb=peak, **found)


def experiment(side: Side, workload: Workload) -> str:
    """Our experiment as TOML; what the peer does not do (clipping, larger batches in validation) is off."""
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
accelerator = "cpu"
num_threads = {workload.threads}
compile = {str(side.compile).lower()}
progress_bar = false
"""


def run_child(command: Sequence[str], workload: Workload, folder: Path) -> float:
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


def speed(seconds: Sequence[float], num_train: int) -> tuple[list[float], float]:
    """Length of each epoch after the warm-up, from the ends of the validations; and training structures/s over these."""
    epochs = [end - begin for begin, end in pairwise(seconds[WARM_UP - 1 :])]
    return epochs, num_train / statistics.mean(epochs)


def tensor_sizes(path: Path) -> dict[str, int]:
    """Number of values of each tensor in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def num_frames(path: Path) -> int:
    """Structures in an XYZ file: each begins with its number of atoms, and a comment follows."""
    with path.open(encoding="utf-8") as lines:
        return sum(1 for line in lines if line.strip() and all(next(lines) for _ in range(int(line) + 1)))


def peer_python(peer: str, console: Console) -> Path:
    """The interpreter of the peer's virtual environment, which is made where there is none yet."""
    folder = CACHE / peer
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        console.print(f"installing {PEERS[peer]} into {folder} (once; some GB, as it has a torch of its own)", soft_wrap=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEERS[peer]], check=True)
        complete.touch()
    return python


def race(sides: Sequence[Side], workload: Workload, *, rounds: int, console: Console) -> dict[str, list[Figures]]:
    """All sides in turns, round after round, each time in a folder that is thrown away."""
    found: dict[str, list[Figures]] = {side.label: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                figures = (measure_peer if side.python else measure_ours)(side, workload, Path(folder))
            found[side.label].append(figures)
            console.print(f"round {number} of {rounds}: {side.label}: {figures.structures_per_second:.1f} structures/s")
    return found


def medians_of(found: dict[str, list[Figures]]) -> dict[str, float]:
    """Median structures/s of each side."""
    return {label: statistics.median(figures.structures_per_second for figures in rounds) for label, rounds in found.items()}


def table_of(found: dict[str, list[Figures]], peer: str) -> Table:
    """A row for each side, compared with the peer at its best."""
    medians = medians_of(found)
    best = max(median for label, median in medians.items() if label.startswith(peer))
    table = Table(title="structures/s in training, validation included")
    for title in ("side", "median", "lowest", "highest", "ratio", "peak MB"):
        table.add_column(title, justify="left" if title == "side" else "right", no_wrap=True)
    for label, rounds in found.items():
        speeds = [figures.structures_per_second for figures in rounds]
        memory = max(figures.peak_memory_mb for figures in rounds)
        values = (f"{value:.1f}" for value in (medians[label], min(speeds), max(speeds)))
        table.add_row(label, *values, f"{medians[label] / best:.2f}", f"{memory:.0f}")
    return table


def parameters_in_words(ours: Figures, peer: Figures) -> str:
    """Both sizes; without the table of elements they must be the same, else the comparison would mean nothing."""
    rest, peer_rest = (figures.num_parameters - figures.num_embedding for figures in (ours, peer))
    if rest != peer_rest:
        sys.exit(f"the networks differ: {rest} and {peer_rest} parameters without the embedding of the elements")
    return (
        f"parameters: {ours.num_parameters:,} and {peer.num_parameters:,} (peer), {rest:,} each without the embedding, "
        f"which has {ours.num_embedding // FEATURES} rows, one for each element of the data, "
        f"and {peer.num_embedding // FEATURES} in the peer"
    )


def main() -> None:
    """Let the sides run, print, write."""
    options, console = parse(), Console()
    num_train = num_frames(options.data) - NUM_VALIDATION
    workload = Workload(options.data.absolute(), num_train, options.batch_size, options.threads, options.epochs)
    console.print(
        f"{options.data.name}: {num_train} structures train, the last {NUM_VALIDATION} validate; batch size "
        f"{workload.batch_size}, {workload.threads} threads of {os.cpu_count()} cores; {options.rounds} rounds of "
        f"{workload.epochs} epochs, each after {WARM_UP} of warm-up",
        soft_wrap=True,
    )
    python = options.peer_python.absolute() if options.peer_python else peer_python(options.peer, console)
    compiled = {"both": (True, False), "true": (True,), "false": (False,)}[options.compile]
    ours = [Side("modelforge", compile=choice) for choice in compiled]
    peers = [Side(options.peer, python=python, workers=workers) for workers in options.peer_workers]
    found = race([*ours, *peers], workload, rounds=options.rounds, console=console)
    first, last = found[ours[0].label][0], found[peers[0].label][0]
    console.print(table_of(found, options.peer))
    console.print(f"ratio: to the fastest of the peer. versions: {first.versions} and {last.versions}", soft_wrap=True)
    console.print(parameters_in_words(first, last), soft_wrap=True)
    if options.json:
        figures = {
            "workload": asdict(workload) | {"data": options.data.name, "warm_up_epochs": WARM_UP},
            "structures_per_second": medians_of(found),
            "rounds": {label: [asdict(figures) for figures in rounds] for label, rounds in found.items()},
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Training speed of PaiNN on the CPU: modelforge beside a peer.")
    parser.add_argument("--peer", choices=sorted(PEERS), default="schnetpack")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has the peer (default: one is installed)")
    parser.add_argument("--peer-workers", type=int, nargs="+", default=[0, 1], help="its data loading processes, all tried")
    parser.add_argument("--data", type=Path, default=DATA, help="extended XYZ in eV and angstrom (default: the bundled)")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, default=10, help="measured epochs of a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--compile", choices=("both", "true", "false"), default="both", help="ours: compiled, eager, both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
