"""Speed and memory of the data path on synthetic molecules: HDF5 -> store -> edges -> batches, beside the ways of others.

Each step is a process of its own (a script in `peers/`), so its peak memory is its own: VmHWM, which counts mapped pages of
files, too. Others stream a random sample of the same structures: ours and theirs take turns (A B A B ...), on one thread, in
the same order of batches. Extended XYZ is read by ours and by ASE in turns.

    python scripts/benchmark_data.py --num-structures 1000000 --json figures.json

A million structures take 10 GB of disk and of page cache, and about 10 minutes. Needs lmdb and Linux (/proc). This process
imports neither torch nor modelforge.
"""

import argparse
import json
import os
import random
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
NAMES = {"ase": "ASE database", "lmdb": "LMDB of pickles", "memory": "tensors in memory"}
SIDES = (("ase", 0), ("lmdb", 0), ("lmdb", 1), ("memory", 0), ("memory", 1))  # others with their data loading processes
OURS, ALL = "modelforge", "modelforge, all structures"
SEED = 0
FEWEST = 20_000  # structures: of far fewer neither store nor edges would be files
TARGETS_FOR = 1_000_000  # structures
MB = 1e6
WIDTH = 170  # of the tables
NOTES = """\
The others have torch's DataLoader, which collates structure by structure with torch.cat; "1 worker" loads in a second process.
LMDB and memory hold the edges; from the ASE database each structure's edges are found by modelforge's find_edges. Their first
batches equal ours bit for bit (ours have reverse edges, volumes, stresses and weights besides). per core s: for each second
that cores were busy, which other processes disturb less. ready: s until the data are open, or in memory. peak MB: VmHWM of the
main process, which counts mapped pages of files, libraries among them; anonymous MB: the highest RssAnon, seen every 10 ms."""


@dataclass(frozen=True)
class Measured:
    """What a process told of itself, and what was seen from outside."""

    seconds: dict[str, float]  # of its parts, without imports
    counts: dict[str, int]
    core_seconds: float  # that cores were busy with the step or epoch, data loading processes included
    peak_mb: float  # VmHWM
    process_seconds: float  # from its start to its end
    anonymous_mb: float  # highest RssAnon

    @property
    def whole(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        """Structures/s of its epoch."""
        return self.counts["structures"] / self.seconds["epoch"]

    @property
    def core_rate(self) -> float:
        """Structures for each second that a core is busy."""
        return self.counts["structures"] / self.core_seconds

    @property
    def build_rate(self) -> float:
        """Structures/s of all its parts."""
        return self.counts["structures"] / self.whole


@dataclass(frozen=True)
class XyzFile:
    """A file of extended XYZ, read by both, and compared with all its structures, labels and names of subsets."""

    file: str
    structures: int
    ours: float  # s that a core is busy
    ase: float  # s
    labels: str  # that it has
    differences: str  # names of what is not equal

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
        verdict = "reached" if reached else "MISSED"
        return f"target: {self.what}: {bound} {self.limit:,.0f} {self.unit}: {got} {self.unit}: {verdict}"


def measure(script: str, *words: str | Path) -> Measured:
    """Run a script in a process with one thread to its end; its last words end the benchmark if it fails."""
    command = [sys.executable, str(PEERS / script), *map(str, words)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    anonymous, begin = 0.0, time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | threads)
        while child.poll() is None:
            anonymous = max(anonymous, anonymous_mb(child.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        said.seek(0)
        lines = said.read().splitlines()
    told = [line for line in lines if line.startswith('{"seconds"')]
    if child.returncode or not told:
        sys.exit("\n".join([f"exit code {child.returncode} of {shlex.join(command)}:", *lines[-30:]]))
    return Measured(**json.loads(told[-1]), process_seconds=seconds, anonymous_mb=anonymous)


def anonymous_mb(process: int) -> float:
    """Memory that is not of files; 0 where a process is at its end."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) * 1024 / MB for line in status.splitlines() if line.startswith("RssAnon:")), 0.0)


def ours(step: str, folder: Path) -> Measured:
    """A step of ours."""
    return measure("stream_modelforge.py", step, "--folder", folder)


def theirs(action: str, peer: str, folder: Path, *, workers: int = 0) -> Measured:
    """An action of a peer."""
    return measure("stream_peers.py", action, peer, "--folder", folder, "--workers", str(workers))


def warm(folder: Path) -> None:
    """Read all files once, so that they are in the page cache."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def race(folder: Path, *, rounds: int, console: Console) -> dict[str, list[Measured]]:
    """An epoch of each side in turns, round after round: ours over all structures, then all sides over the sample."""
    found: dict[str, list[Measured]] = {}
    for number in range(1, rounds + 1):
        for label, side in {ALL: None, OURS: None, **{in_words(*side): side for side in SIDES}}.items():
            warm(folder)
            if side:
                measured = theirs("stream", side[0], folder, workers=side[1])
            else:
                measured = ours("stream_all" if label == ALL else "stream_sample", folder)
            found.setdefault(label, []).append(measured)
            console.print(f"round {number} of {rounds}: {label}: {measured.rate:,.0f} structures/s")
    counts = {label: epochs[0].counts for label, epochs in found.items() if label != ALL}
    if any(each != counts[OURS] for each in counts.values()):
        sys.exit(f"the sides streamed different data: {counts}")
    return found


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
    titles = ("step", "s", "core s", "s with imports", "structures/s", "peak MB", "anonymous MB")
    return table_of("steps of ours, each a process", titles, [step_row(name, each) for name, each in steps.items()])


def step_row(name: str, measured: Measured) -> list[str]:
    """Time, speed and memory of a step."""
    seconds = (f"{measured.whole:.2f}", f"{measured.core_seconds:.2f}", f"{measured.process_seconds:.1f}")
    rate = f"{measured.build_rate:,.0f}"
    return [name, *seconds, rate, f"{measured.peak_mb:.0f}", f"{measured.anonymous_mb:.0f}"]


def streaming_table(found: dict[str, list[Measured]]) -> Table:
    """A row for each side; ours over the sample is what the others are compared with."""
    rates = ("median", "lowest", "highest", "per core s", "ours / it", "same per core s")
    titles = ("side", "structures", *rates, "ready s", "peak MB", "anonymous MB")
    rows = [streaming_row(label, rounds, found[OURS]) for label, rounds in found.items()]
    return table_of("an epoch of batches with edges, structures/s", titles, rows)


def streaming_row(label: str, rounds: Sequence[Measured], own: Sequence[Measured]) -> list[str]:
    """Medians of speed, ratios of these, the highest memory."""
    rates, core_rates = ([each.rate for each in rounds], [each.core_rate for each in rounds])
    speeds = (median(rates), min(rates), max(rates), median(core_rates))
    ratios = (median(each.rate for each in own) / median(rates), median(each.core_rate for each in own) / median(core_rates))
    return [
        label,
        f"{rounds[0].counts['structures']:,}",
        *(f"{speed:,.0f}" for speed in speeds),
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{median(each.seconds['ready'] for each in rounds):.2f}",
        f"{max(each.peak_mb for each in rounds):.0f}",
        f"{max(each.anonymous_mb for each in rounds):.0f}",
    ]


def builds_table(own: Measured, builds: dict[str, Measured]) -> Table:
    """What it costs to prepare the data; ours begins at HDF5, the peers' at structures that lie in memory."""
    all_sides = {OURS: own, **builds}
    rows = [
        [
            label,
            f"{each.counts['structures']:,}",
            f"{each.build_rate:,.0f}",
            f"{own.build_rate / each.build_rate:.1f}",
            f"{own.core_rate / each.core_rate:.1f}",
            f"{each.counts['bytes'] / each.counts['structures']:,.0f}",
        ]
        for label, each in all_sides.items()
    ]
    titles = ("side", "structures", "structures/s", "ours / it", "same per core s", "bytes/structure")
    return table_of("preparing the files that batches come from", titles, rows)


def xyz_table(files: Sequence[XyzFile]) -> Table:
    """A row for each file of extended XYZ."""
    rows = [
        [
            each.file,
            f"{each.structures:,}",
            f"{each.ours * 1e3:.2f}",
            f"{each.ase * 1e3:.2f}",
            f"{each.ratio:.1f}",
            f"DIFFERENT: {each.differences}" if each.differences else each.labels,
        ]
        for each in files
    ]
    titles = ("file", "structures", "ours ms", "ase.io.read ms", "ratio", "equal labels")
    return table_of("reading extended XYZ, medians of the time that a core is busy", titles, rows)


def read_xyz(folder: Path, data: Path) -> list[XyzFile]:
    """Our reader beside ASE's, on all files below a folder."""
    figures = folder / "extxyz.json"
    measure("read_extxyz.py", "--data", data, "--json", figures)
    return [XyzFile(**each) for each in json.loads(figures.read_text(encoding="utf-8"))]


def targets_of(steps: dict[str, Measured], found: dict[str, list[Measured]], files: Sequence[XyzFile]) -> list[Target]:
    """What is asked for of a million structures, and of extended XYZ."""
    epochs = found[ALL]
    targets = [
        Target("open the store", steps["open_again"].whole, 1.0, "s"),
        Target("peak memory of opening", steps["open_again"].peak_mb, 1000, "MB"),
        Target("prepare store and edges from HDF5", steps["prepare"].whole, 300, "s"),
        Target("prepare store and edges from HDF5, busy core", steps["prepare"].core_seconds, 300, "s"),
        Target("peak memory of preparing", steps["prepare"].peak_mb, 1000, "MB"),
        Target("stream an epoch of all", median(each.rate for each in epochs), 50_000, "structures/s", at_least=True),
        Target("stream an epoch of all, per core", median(each.core_rate for each in epochs), 50_000, "1/s", at_least=True),
        Target("peak memory of streaming", max(each.peak_mb for each in epochs), 1000, "MB"),
    ]
    return targets + (xyz_targets(files) if files else [])


def xyz_targets(files: Sequence[XyzFile]) -> list[Target]:
    """What is asked for of extended XYZ; a file of a few structures is mostly the cost of any call."""
    what, unit = "read extended XYZ", "times the speed of ase.io.read"
    whole = sum(each.ase for each in files) / sum(each.ours for each in files)
    targets = [
        Target(f"{what}, files with differences", sum(bool(each.differences) for each in files), 0, "files"),
        Target(f"{what}, all files together", whole, 10, unit, at_least=True),
    ]
    for which, some in (("", files), (" of 100 structures or more", [each for each in files if each.structures >= 100])):
        if some:
            worst = min(some, key=lambda each: each.ratio)
            targets.append(Target(f"{what}, worst file{which} ({worst.file})", worst.ratio, 10, unit, at_least=True))
    return targets


def main() -> None:
    """Let all run in a folder."""
    options, console = parse(), Console(width=WIDTH)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"--folder: must be empty (got {folder}), as what lies there would be taken for what is prepared")
        benchmark(folder.absolute(), options, console)


def benchmark(folder: Path, options: argparse.Namespace, console: Console) -> None:
    """Let the steps and sides run, print, write."""
    workload = write_workload(folder, options)
    num = workload["num_structures"]
    console.print(
        f"{num:,} molecules, batches of {options.batch_size} in random order, one thread of {os.cpu_count()} cores; others, "
        f"and ours beside them, stream a random sample of {workload['num_peer_structures']:,}; {options.rounds} rounds",
        soft_wrap=True,
    )
    files = read_xyz(folder, options.data) if options.data.is_dir() else []
    console.print(xyz_table(files) if files else f"no folder {options.data}: extended XYZ is not compared")
    steps = {name: ours(name, folder) for name in ("write_hdf5", "prepare")}
    steps["open_again"] = sorted((ours("open_again", folder) for _ in range(3)), key=lambda each: each.whole)[1]  # median
    console.print(steps_table(steps), contents_in_words(steps), sep="\n", soft_wrap=True)
    builds = {NAMES[peer]: theirs("build", peer, folder) for peer in ("ase", "lmdb")}
    console.print(builds_table(steps["prepare"], builds))
    compared = {NAMES[peer]: theirs("compare", peer, folder).counts["batches"] for peer in NAMES}
    console.print(f"batches that equal ours bit for bit: {compared}", soft_wrap=True)
    found = race(folder, rounds=options.rounds, console=console)
    console.print(streaming_table(found), NOTES, sep="\n", soft_wrap=True)
    targets = targets_of(steps, found, files)
    console.print(*map(str, targets), sep="\n", soft_wrap=True)
    if num != TARGETS_FOR:
        console.print(f"the targets are meant for {TARGETS_FOR:,} structures, not for {num:,}")
    versions = {name: version(name) for name in ("modelforge", "torch", "numpy", "ase", "lmdb", "h5py")}
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    console.print(f"versions: {versions}; load of the machine in the last 1, 5, 15 minutes: {load}", soft_wrap=True)
    if options.json:
        figures: dict[str, object] = {"workload": workload, "versions": versions, "targets": [str(each) for each in targets]}
        figures |= {"steps": in_json(steps), "builds": in_json(builds), "extxyz": [asdict(each) for each in files]}
        figures["epochs"] = {label: [asdict(each) for each in rounds] for label, rounds in found.items()}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def in_json(found: dict[str, Measured]) -> dict[str, object]:
    """Figures by name."""
    return {name: asdict(each) for name, each in found.items()}


def write_workload(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """What all sides do, and the places of the sample, as files in the folder."""
    num, num_peer = options.num_structures, min(options.num_peer_structures, options.num_structures)
    workload = {"num_structures": num, "num_peer_structures": num_peer, "batch_size": options.batch_size}
    (folder / "workload.json").write_text(json.dumps(workload), encoding="utf-8")
    (folder / "sample.json").write_text(json.dumps(random.Random(SEED).sample(range(num), num_peer)), encoding="utf-8")
    return workload


def contents_in_words(steps: dict[str, Measured]) -> str:
    """What is in the files, and where the time of preparing went."""
    counts, seconds = steps["prepare"].counts, steps["prepare"].seconds
    num, size = counts["structures"], steps["write_hdf5"].counts["bytes"]
    return (
        f"{size / MB:,.0f} MB of HDF5 became {counts['bytes'] / MB:,.0f} MB of store and edges: {counts['atoms'] / num:.1f} "
        f"atoms and {counts['edges'] / num:.0f} edges a structure; of the time of preparing, the store took "
        f"{seconds['store']:.1f} s, the edges {seconds['edges']:.1f} s"
    )


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
    options = parser.parse_args()
    if options.num_structures < FEWEST:
        parser.error(
            f"--num-structures: must be {FEWEST} or more, as the edges of fewer are not kept (got {options.num_structures})"
        )
    return options


if __name__ == "__main__":
    main()
