"""Training speed beside a peer: same network, sizes, data, split, batches, precision and threads; structures/s of both.

Each side is a process of its own that trains energies and forces through its own training loop: ours is `modelforge train`
with a TOML, the peer's is a script in `peers/`; they take turns (A B A B ...). Time is wall time from the end of one
validation to the end of the next, over the epochs after the warm-up: batches, training, validation, schedule, and the
checkpoints that each tool writes by default. Reading of data and compilation fall into the warm-up. With --step-only it is
the optimizer step alone, on fixed batches.

    python scripts/benchmark_training.py --peer schnetpack --potential painn --data train_300K.xyz --threads 2 --json out.json

This process imports neither torch nor modelforge: the peak memory of a child is never below what its parent has.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmark_networks import NETWORKS, PEERS
from benchmark_sides import NUM_VALIDATION, ROOT, WARM_UP, Figures, Side, Workload, measure
from rich.console import Console
from rich.table import Table

DATA = ROOT / "modelforge" / "data" / "sources" / "quickstart" / "train.xyz"
CACHE = Path.home() / ".cache" / "modelforge" / "peers"
Rounds = dict[Side, list[Figures]]


def num_frames(path: Path) -> int:
    """Structures in an XYZ file: each begins with its number of atoms, and a comment follows."""
    with path.open(encoding="utf-8") as lines:
        return sum(1 for line in lines if line.strip() and all(next(lines) for _ in range(int(line) + 1)))


def peer_python(name: str, console: Console) -> Path:
    """The interpreter of the peer's virtual environment, which is made where there is none yet."""
    peer = PEERS[name]
    folder = CACHE / (peer.environment or name)
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        console.print(
            f"installing {peer.requirement} into {folder} (once; some GB, as it has a torch of its own)", soft_wrap=True
        )
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        # torch first: by its plain version it is found as the build of this machine's index, and the peer keeps it.
        torch = [f"torch=={version('torch').partition('+')[0]}"] if peer.takes_this_torch else []
        if torch:
            subprocess.run([*pip, *torch], check=True)
        subprocess.run([*pip, *peer.requirement.split(), *torch], check=True)
        complete.touch()
    return python


def race(sides: Sequence[Side], workload: Workload, *, rounds: int, console: Console) -> Rounds:
    """All sides in turns, round after round, each time in a folder that is thrown away."""
    found: Rounds = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                figures = measure(side, workload, Path(folder))
            found[side].append(figures)
            console.print(f"round {number} of {rounds}: {side.label}: {figures.structures_per_second:.1f} structures/s")
    return found


def median(rounds: Sequence[Figures]) -> float:
    """Median structures/s."""
    return statistics.median(figures.structures_per_second for figures in rounds)


def is_same_network(side: Side, found: Rounds) -> bool:
    """Whether a side has as many parameters as ours, without the tables of elements."""
    ours = next(rounds[0] for other, rounds in found.items() if not other.python)
    return found[side][0].num_rest == ours.num_rest


def best_of_peer(found: Rounds) -> Side:
    """The fastest way of the peer to train our network; it must have that, else the comparison would mean nothing."""
    same = [side for side in found if side.python and is_same_network(side, found)]
    if not same:
        sizes = {side.label: rounds[0].num_rest for side, rounds in found.items()}
        sys.exit(f"the networks differ; parameters without the embedding of the elements: {sizes}")
    return max(same, key=lambda side: median(found[side]))


def table_of(found: Rounds, title: str) -> Table:
    """A row for each side, compared with the peer at its best."""
    best = median(found[best_of_peer(found)])
    table = Table(title=title)
    for name in ("side", "median", "lowest", "highest", "ratio", "peak MB"):
        table.add_column(name, justify="left" if name == "side" else "right", no_wrap=True)
    for side, rounds in found.items():
        speeds = [figures.structures_per_second for figures in rounds]
        memory = max(figures.peak_memory_mb for figures in rounds)
        values = (f"{value:.1f}" for value in (median(rounds), min(speeds), max(speeds)))
        table.add_row(side.label, *values, f"{median(rounds) / best:.2f}", f"{memory:.0f}")
    return table


def parameters_in_words(found: Rounds) -> list[str]:
    """How many parameters each side has."""
    lines = []
    for side, rounds in found.items():
        figures = rounds[0]
        other = "" if is_same_network(side, found) else "; another network, left out of the ratio"
        lines.append(
            f"{side.label}: {figures.num_parameters:,} parameters, {figures.num_rest:,} without tables of elements{other}"
        )
    return lines


def sides_of(options: argparse.Namespace, console: Console) -> list[Side]:
    """Ours and the peer's, in the order of their turns."""
    peer = PEERS[options.peer]
    python = options.peer_python.absolute() if options.peer_python else peer_python(options.peer, console)
    network = tuple(peer.network.get(options.potential, {}).items())
    compiled = {"both": (True, False), "true": (True,), "false": (False,)}[options.compile]
    workers = options.peer_workers or ((0,) if options.step_only else peer.workers)
    ours = [Side("modelforge", compile=choice, network=network) for choice in compiled]
    peers = [Side(options.peer, python=python, workers=count) for count in workers]
    peers += [Side(options.peer, python=python, workers=workers[0], variant=variant) for variant in options.variants]
    return [*ours, *peers]


def main() -> None:
    """Let the sides run, print, write."""
    options, console = parse(), Console()
    num_train = num_frames(options.data) - NUM_VALIDATION
    workload = Workload(
        options.data.absolute(),
        num_train,
        options.potential,
        options.batch_size,
        options.threads,
        options.epochs,
        options.fixed_batches if options.step_only else 0,
        "cuda" if options.kernels else "cpu",
    )
    what = f"steps alone on {options.fixed_batches} batches" if options.step_only else "validation and checkpoints included"
    console.print(
        f"{options.potential} {NETWORKS[options.potential]}; {options.data.name}: {num_train} structures train, the last "
        f"{NUM_VALIDATION} validate; batch size {workload.batch_size}, float32, {workload.threads} threads of {os.cpu_count()} "
        f"cores; {options.rounds} rounds of {workload.epochs} epochs, each after {WARM_UP} of warm-up; {what}",
        soft_wrap=True,
    )
    found = race(sides_of(options, console), workload, rounds=options.rounds, console=console)
    console.print(table_of(found, f"structures/s, {options.potential}"))
    console.print(f"ratio: to {best_of_peer(found).label}", soft_wrap=True)
    for line in parameters_in_words(found):
        console.print(line, soft_wrap=True)
    console.print(f"versions: {[rounds[0].versions for side, rounds in found.items() if side.workers == 0]}", soft_wrap=True)
    if options.json:
        figures = {
            "workload": asdict(workload) | {"data": options.data.name, "warm_up_epochs": WARM_UP, "peer": options.peer},
            "network": NETWORKS[options.potential],
            "structures_per_second": {side.label: median(rounds) for side, rounds in found.items()},
            "compared_with": best_of_peer(found).label,
            "rounds": {side.label: [asdict(figures) for figures in rounds] for side, rounds in found.items()},
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Training speed of a network on the CPU: modelforge beside a peer.")
    parser.add_argument("--peer", choices=sorted(PEERS), default="schnetpack")
    parser.add_argument("--potential", choices=sorted(NETWORKS), help="default: the first that the peer has")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has the peer (default: one is installed)")
    parser.add_argument("--peer-workers", type=int, nargs="+", help="its data loading processes, all tried (default: 0 1)")
    parser.add_argument("--variants", nargs="*", help="settings of its script, all tried (default: those of the peer)")
    parser.add_argument("--kernels", nargs="+", default=[], help="train on a GPU; its packages of kernels, all tried")
    parser.add_argument("--data", type=Path, default=DATA, help="extended XYZ in eV and angstrom (default: the bundled)")
    parser.add_argument("--batch-size", type=int, help="default: 5 or 10, by the peer")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, default=10, help="measured epochs of a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--compile", choices=("both", "true", "false"), default="both", help="ours: compiled, eager, both")
    parser.add_argument("--step-only", action="store_true", help="the optimizer step on fixed batches, without all the rest")
    parser.add_argument("--fixed-batches", type=int, default=20, help="of --step-only; an epoch is a pass over them")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    options.potential = options.potential or PEERS[options.peer].potentials[0]
    if options.potential not in PEERS[options.peer].potentials:
        parser.error(f"--potential: {options.peer} has {', '.join(PEERS[options.peer].potentials)} (got {options.potential})")
    if unknown := set(options.kernels) - set(PEERS[options.peer].kernels):
        parser.error(f"--kernels: {options.peer} has {', '.join(PEERS[options.peer].kernels) or 'none'} (got {unknown.pop()})")
    if options.kernels and options.step_only:
        parser.error("--kernels: not with --step-only, whose steps of ours are on the CPU")
    if options.variants is None:
        options.variants = PEERS[options.peer].variants
    options.variants = [*options.variants, *options.kernels]
    options.batch_size = options.batch_size or PEERS[options.peer].batch_size
    return options


if __name__ == "__main__":
    main()
