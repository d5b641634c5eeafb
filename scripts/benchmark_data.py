"""Speed and memory of the data path on synthetic molecules: HDF5 -> store -> edges -> batches, beside peers' ways.

Each step is a process of its own (this script with a step's name), so its peak memory is its own: VmHWM, which counts mapped
pages of files, too. Peers (`peers/stream_structures.py`) stream a random sample of the same structures, in turns with ours
(A B A B ...), on one thread, in the same order of batches. Extended XYZ is read beside ASE (`peers/read_extxyz.py`).

    python scripts/benchmark_data.py --num-structures 1000000 --json figures.json

A million structures take about 10 GB of disk, all of it also in the page cache, and 10 minutes. Linux only, for /proc.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "scripts" / "peers"
SIDES = (("ase", 0), ("lmdb", 0), ("lmdb", 1), ("memory", 0), ("memory", 1))  # peers with their data loading processes
NAMES = {"ase": "ASE database", "lmdb": "LMDB of pickles", "memory": "tensors in memory"}
OURS = "modelforge"
SEED = 0
CUTOFF = 5.0  # angstrom
SIZES = range(15, 26)  # atoms
FEWEST = KEPT_FROM_ATOMS // min(SIZES) + 1  # structures: edges of fewer are not kept in files
MB = 1e6
NOTES = """\
"modelforge, all" streams everything, "modelforge" the sample of the peers out of it. Peers stream by torch's DataLoader, which
collates structure by structure with torch.cat; "+ worker" loads in a second process. LMDB and memory hold the edges, the ASE
database finds them one structure at a time by modelforge's find_edges. The first batch of each peer equals ours bit for bit
(ours has reverse edges, volumes, stresses and weights besides). ready: opening, or reading into memory. per core: by the time
on all cores. Peak memory (VmHWM) counts mapped pages of files, anonymous memory (RssAnon, looked at every 10 ms) does not."""


@dataclass(frozen=True)
class Measured:
    """What a process told, and what was seen from outside."""

    told: Told
    process_seconds: float  # from its start to its end
    anonymous_mb: float  # peak of RssAnon, looked at every 10 ms

    @property
    def seconds(self) -> float:
        """Time of all its parts, without imports."""
        return sum(self.told.seconds.values())

    @property
    def rate(self) -> float:
        """Structures/s of its epoch."""
        return self.told.counts["structures"] / self.told.seconds["epoch"]

    @property
    def core_rate(self) -> float:
        """Structures for each second of a core."""
        return self.told.counts["structures"] / self.told.core_seconds


@dataclass(frozen=True)
class XyzFile:
    """A file of extended XYZ, read by both; equal in every label, else `peers/read_extxyz.py` ends the benchmark."""

    file: str
    structures: int
    ours: float  # s
    ase: float  # s
    labels: str

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.ase / self.ours


@dataclass(frozen=True)
class Target:
    """A figure that is asked for."""

    what: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    def __str__(self) -> str:
        reached = self.value >= self.limit if self.at_least else self.value <= self.limit
        bound = "at least" if self.at_least else "at most"
        got = f"{self.value:,.2f}" if self.value < 10 else f"{self.value:,.0f}"
        return f"target: {self.what}: {bound} {self.limit:,.0f} {self.unit}: {got} {self.unit}: {'reached' if reached else 'MISSED'}"


def memory_mb(status: str, name: str) -> float:
    """An entry of /proc/*/status; 0 where a process has ended."""
    return next((int(line.split()[1]) * 1024 / MB for line in status.splitlines() if line.startswith(f"{name}:")), 0.0)


def measure(*words: str | Path) -> Measured:
    """Run a script in a process with one thread to its end; ends the benchmark with its last words if it fails."""
    command = [sys.executable, *map(str, words)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = {"PYTHONPATH": str(ROOT / "scripts")}  # peers import what is shared from here
    anonymous, begin = 0.0, time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | threads | paths)
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:  # until then its entry is there
            anonymous = max(anonymous, memory_mb(status.read_text(encoding="utf-8"), "RssAnon"))
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        said.seek(0)
        lines = said.read().splitlines()
    if child.returncode:
        sys.exit("\n".join([f"exit code {child.returncode} of {shlex.join(command)}:", *lines[-30:]]))
    return Measured(Told(**json.loads(lines[-1])), seconds, anonymous)


def step(name: str, folder: Path) -> Measured:
    """A step of ours in a process of its own."""
    return measure(__file__, "--step", name, "--folder", folder)


def warm(folder: Path) -> None:
    """Read all files once, so that they are in the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def race(folder: Path, *, rounds: int, console: Console) -> dict[str, list[Measured]]:
    """All sides in turns over the sample, and ours over all structures, round after round."""
    found: dict[str, list[Measured]] = {}
    for number in range(1, rounds + 1):
        for label, command in {
            f"{OURS}, all": (__file__, "--step", "stream_all", "--folder", folder),
            OURS: (__file__, "--step", "stream_sample", "--folder", folder),
            **{in_words(*side): peer_command("stream", *side, folder=folder) for side in SIDES},
        }.items():
            warm(folder)
            measured = measure(*command)
            found.setdefault(label, []).append(measured)
            console.print(f"round {number} of {rounds}: {label}: {measured.rate:,.0f} structures/s")
    return found


def peer_command(action: str, peer: str, workers: int, *, folder: Path) -> tuple[str | Path, ...]:
    """How a peer is run."""
    return (PEERS / "stream_structures.py", action, peer, "--workers", str(workers), "--folder", folder)


def in_words(peer: str, workers: int) -> str:
    """A peer's name in the table."""
    return NAMES[peer] + (f", {workers} worker" if workers else "")


def median(values: Iterable[float]) -> float:
    """Of the rounds."""
    return statistics.median(list(values))


def table_of(title: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with names on the left and figures on the right."""
    table = Table(title=title)
    for name in titles:
        table.add_column(name, justify="left" if name == titles[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def steps_table(steps: dict[str, Measured]) -> Table:
    """What each of our steps costs."""
    titles = ("step", "s", "s with imports", "structures/s", "peak MB", "anonymous MB")
    return table_of("steps of ours, each a process", titles, [step_row(name, each) for name, each in steps.items()])


def step_row(name: str, measured: Measured) -> list[str]:
    """Time, speed and memory of a step."""
    seconds = (f"{measured.seconds:.2f}", f"{measured.process_seconds:.1f}")
    rate = f"{measured.told.counts['structures'] / measured.seconds:,.0f}"
    return [name, *seconds, rate, f"{measured.told.peak_mb:.0f}", f"{measured.anonymous_mb:.0f}"]


def streaming_table(found: dict[str, list[Measured]]) -> Table:
    """A row for each side; ours over the sample is what the peers are compared with."""
    ours = median(measured.rate for measured in found[OURS])
    titles = ("side", "structures", "median", "lowest", "highest", "per core", "ours / it", "ready s", "peak MB", "anonymous MB")
    rows = [streaming_row(label, rounds, ours) for label, rounds in found.items()]
    return table_of("an epoch of batches with edges, structures/s", titles, rows)


def streaming_row(label: str, rounds: Sequence[Measured], ours: float) -> list[str]:
    """Medians of speed, the highest memory."""
    rates = [measured.rate for measured in rounds]
    speeds = (median(rates), min(rates), max(rates), median(measured.core_rate for measured in rounds))
    ratio, ready = ours / median(rates), median(measured.told.seconds["ready"] for measured in rounds)
    peaks = (max(measured.told.peak_mb for measured in rounds), max(measured.anonymous_mb for measured in rounds))
    return [
        label,
        f"{rounds[0].told.counts['structures']:,}",
        *(f"{speed:,.0f}" for speed in speeds),
        f"{ratio:.1f}",
        f"{ready:.2f}",
        *(f"{peak:.0f}" for peak in peaks),
    ]


def builds_table(ours: Measured, builds: dict[str, Measured]) -> Table:
    """What it costs to prepare the data; ours begins at HDF5, the peers' at structures that lie in memory."""
    all_sides = {OURS: ours, **builds}
    rates = {label: each.told.counts["structures"] / each.seconds for label, each in all_sides.items()}
    rows = [
        [
            label,
            f"{each.told.counts['structures']:,}",
            f"{rates[label]:,.0f}",
            f"{rates[OURS] / rates[label]:.1f}",
            f"{each.told.counts['bytes'] / each.told.counts['structures']:,.0f}",
        ]
        for label, each in all_sides.items()
    ]
    titles = ("side", "structures", "structures/s", "ours / it", "bytes/structure")
    return table_of("preparing the files that batches come from", titles, rows)


def xyz_table(files: Sequence[XyzFile]) -> Table:
    """A row for each file of extended XYZ."""
    rows = [
        [each.file, f"{each.structures:,}", f"{each.ours * 1e3:.2f}", f"{each.ase * 1e3:.2f}", f"{each.ratio:.1f}", each.labels]
        for each in files
    ]
    return table_of(
        "reading extended XYZ", ("file", "structures", "ours ms", "ase.io.read ms", "ratio", "labels that are there"), rows
    )


def read_xyz(folder: Path, data: Path) -> list[XyzFile]:
    """Our reader beside ASE's, on all files below a folder."""
    figures = folder / "extxyz.json"
    measure(PEERS / "read_extxyz.py", "--data", data, "--json", figures)
    return [XyzFile(**each) for each in json.loads(figures.read_text(encoding="utf-8"))]


def targets_of(steps: dict[str, Measured], found: dict[str, list[Measured]], files: Sequence[XyzFile]) -> list[Target]:
    """What is asked for of a million structures, and of extended XYZ."""
    epochs = found[f"{OURS}, all"]
    targets = [
        Target("open the store", steps["open_again"].seconds, 1.0, "s"),
        Target("peak memory of opening", steps["open_again"].told.peak_mb, 1000, "MB"),
        Target("prepare store and edges from HDF5", steps["prepare"].seconds, 300, "s"),
        Target("peak memory of preparing", steps["prepare"].told.peak_mb, 1000, "MB"),
        Target("stream an epoch of all", median(each.rate for each in epochs), 50_000, "structures/s", at_least=True),
        Target("stream an epoch of all, per core", median(each.core_rate for each in epochs), 50_000, "1/s", at_least=True),
        Target("peak memory of streaming", max(each.told.peak_mb for each in epochs), 1000, "MB"),
    ]
    if files:
        whole = sum(each.ase for each in files) / sum(each.ours for each in files)
        targets.append(Target("extended XYZ, all files together", whole, 10, "times ase.io.read", at_least=True))
        targets.append(
            Target("extended XYZ, the worst file", min(f.ratio for f in files), 10, "times ase.io.read", at_least=True)
        )
    return targets


def main() -> None:
    """Let all steps and sides run, print, write."""
    options, console = parse(), Console()
    if options.step:
        tell(STEPS[options.step](options.folder))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"--folder: must be empty (got {folder}), as what lies there would be taken for what is prepared")
        benchmark(folder.absolute(), options, console)


def benchmark(folder: Path, options: argparse.Namespace, console: Console) -> None:
    """The benchmark in a folder."""
    num, num_peer = options.num_structures, min(options.num_peer_structures, options.num_structures)
    workload = {"num_structures": num, "num_peer_structures": num_peer, "batch_size": options.batch_size}
    (folder / "workload.json").write_text(json.dumps(workload), encoding="utf-8")
    np.save(folder / "sample.npy", np.random.default_rng(SEED).permutation(num)[:num_peer])
    console.print(
        f"{num:,} molecules of {min(SIZES)} to {max(SIZES)} atoms, cutoff {CUTOFF} angstrom, batches of {options.batch_size} in "
        f"random order, one thread of {os.cpu_count()} cores; the peers, and ours beside them, have a random sample of "
        f"{num_peer:,}; {options.rounds} rounds",
        soft_wrap=True,
    )
    steps = {name: step(name, folder) for name in ("write_hdf5", "prepare")}
    steps["open_again"] = sorted((step("open_again", folder) for _ in range(3)), key=lambda each: each.seconds)[1]
    counts = steps["prepare"].told.counts
    console.print(
        f"{(folder / 'molecules.h5').stat().st_size / MB:,.0f} MB of HDF5, {counts['bytes'] / MB:,.0f} MB prepared; "
        f"{counts['atoms'] / num:.1f} atoms and {counts['edges'] / num:.0f} edges a structure",
        soft_wrap=True,
    )
    builds = {NAMES[peer]: measure(*peer_command("build", peer, 0, folder=folder)) for peer in ("ase", "lmdb")}
    found = race(folder, rounds=options.rounds, console=console)
    files = read_xyz(folder, options.data) if options.data.is_dir() else []
    targets = targets_of(steps, found, files)
    console.print(steps_table(steps), builds_table(steps["prepare"], builds), streaming_table(found))
    console.print(NOTES, soft_wrap=True)
    console.print(xyz_table(files) if files else f"no folder {options.data}: extended XYZ is not compared", soft_wrap=True)
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps["prepare"].told.seconds.items())
    console.print(f"preparing: {parts}", *map(str, targets), sep="\n", soft_wrap=True)
    if num != 1_000_000:
        console.print(f"the targets are meant for 1,000,000 structures, not for {num:,}")
    versions = {name: version(name) for name in ("modelforge", "torch", "numpy", "ase", "lmdb", "h5py")}
    console.print(f"versions: {versions}", soft_wrap=True)
    if options.json:
        figures = {
            "workload": workload,
            "versions": versions,
            "steps": {name: asdict(each) for name, each in steps.items()},
            "builds": {name: asdict(each) for name, each in builds.items()},
            "epochs": {label: [asdict(each) for each in rounds] for label, rounds in found.items()},
            "extxyz": [asdict(each) for each in files],
            "targets": [str(target) for target in targets],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed and memory of the data path: modelforge beside peers.")
    parser.add_argument("--num-structures", type=int, default=1_000_000)
    parser.add_argument("--num-peer-structures", type=int, default=20_000, help="sample that the slower peers stream")
    parser.add_argument("--folder", type=Path, help="empty folder for the data, which stay (default: a temporary one)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with extended XYZ")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)  # the script calls itself with this
    options = parser.parse_args()
    if not options.step and options.num_structures < FEWEST:
        parser.error(f"--num-structures: must be {FEWEST} or more, as the edges of fewer are not kept (got {options.num_structures})")
    return options


if __name__ == "__main__":
    main()
