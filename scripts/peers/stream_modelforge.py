"""The data path of modelforge, step by step: synthetic HDF5, store and edges, an epoch of batches; `benchmark_data.py` runs it.

    python scripts/peers/stream_modelforge.py prepare --folder folder

Each step tells its time, counts and peak memory in its last line. Peers' scripts share what lies here.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from modelforge.atoms.graph import Reach
from modelforge.data.batching.batches import StructureTable, structure_table
from modelforge.data.batching.edges import EdgeTable, edges_of
from modelforge.data.batching.order import BatchOrder, TrainingBatches
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.store.file_digests import SETTLED
from modelforge.data.store.opening import OpenedData, open_files

SEED = 0
CUTOFF = 5.0  # angstrom
SIZES = range(15, 26)  # atoms
ELEMENTS, SHARES, ENERGIES = (1, 6, 7, 8), (0.45, 0.35, 0.1, 0.1), (-0.5, -37.8, -54.5, -75.0)  # hartree
GRID = np.stack(np.meshgrid(*map(np.arange, (2, 3, 5)), indexing="ij"), axis=-1).reshape(-1, 3) * 1.5  # (30, 3) angstrom
JITTER = 0.1  # angstrom; with these 17 neighbours an atom, where aspirin has 15
CHUNK = 4096  # rows
WARM_UP = 20  # batches
MB = 1e6


@dataclass(frozen=True)
class Told:
    """What a process tells of itself at its end."""

    seconds: dict[str, float]  # of its parts, without imports
    counts: dict[str, int]
    core_seconds: float = 0.0  # that cores were busy with the step or epoch, data loading processes included


@dataclass(frozen=True)
class Workload:
    """What all sides do; `benchmark_data.py` writes it into the folder."""

    num_structures: int
    num_peer_structures: int
    batch_size: int


def workload_of(folder: Path) -> Workload:
    """The workload that was written into a folder."""
    return Workload(**json.loads((folder / "workload.json").read_text(encoding="utf-8")))


def write_hdf5(folder: Path) -> Told:
    """Synthetic molecules in the layout of ANI-2x: a group for each number of atoms; hartree and angstrom."""
    rng, clock = np.random.default_rng(SEED), Clock()
    num_structures = workload_of(folder).num_structures
    counts = np.bincount(rng.integers(min(SIZES), max(SIZES) + 1, size=num_structures), minlength=max(SIZES) + 1)
    with h5py.File(folder / "molecules.h5", "w") as file:
        for size in SIZES:
            write_group(file.create_group(f"{size:03}"), int(counts[size]), size, rng)
    seconds, core_seconds = clock.read()
    time.sleep(SETTLED + 0.5)  # the digest of a file that has just changed is not remembered
    size = (folder / "molecules.h5").stat().st_size
    return Told({"write": seconds}, {"structures": num_structures, "bytes": size}, core_seconds)


def write_group(group: h5py.Group, num: int, size: int, rng: np.random.Generator) -> None:
    """Molecules of one size: atoms on random places of a small grid, off these by a little."""
    rows, types = min(CHUNK, num), {"species": "i8", "coordinates": "f4", "energies": "f8", "forces": "f8"}
    shapes = {"species": (size,), "coordinates": (size, 3), "energies": (), "forces": (size, 3)}
    sets = {name: group.create_dataset(name, (num, *s), types[name], chunks=(rows, *s)) for name, s in shapes.items()}
    for first in range(0, num, CHUNK):
        some = min(CHUNK, num - first)
        kinds = rng.choice(len(ELEMENTS), size=(some, size), p=SHARES)
        places = rng.random((some, len(GRID))).argsort(axis=1)[:, :size]
        values = {
            "species": np.array(ELEMENTS)[kinds],
            "coordinates": GRID[places] + rng.normal(scale=JITTER, size=(some, size, 3)),
            "energies": np.array(ENERGIES)[kinds].sum(axis=1) + rng.normal(scale=0.05, size=some),
            "forces": rng.normal(scale=0.02, size=(some, size, 3)),
        }
        for name, rows_of in values.items():
            sets[name][first : first + some] = rows_of


def prepare(folder: Path) -> Told:
    """HDF5 -> store -> edges; nothing is there yet."""
    clock = Clock()
    opened = opened_data(folder)
    stored, _ = clock.read()
    edges = kept_edges(opened, folder)
    end, core_seconds = clock.read()
    counts = {"structures": len(opened.structures), "atoms": int(opened.structures.offsets[-1]), "edges": len(edges.vectors)}
    counts["bytes"] = size_of(folder / "cache")
    return Told({"store": stored, "edges": end - stored}, counts, core_seconds)


def open_again(folder: Path) -> Told:
    """Open what is prepared: by the name of the HDF5 file, as a training run does."""
    clock = Clock()
    opened = opened_data(folder)
    seconds, core_seconds = clock.read()
    return Told({"open": seconds}, {"structures": len(opened.structures)}, core_seconds)


def stream_all(folder: Path) -> Told:
    """An epoch over all structures."""
    return stream(folder, None)


def stream_sample(folder: Path) -> Told:
    """An epoch over the sample that the peers have."""
    return stream(folder, torch.from_numpy(sample_places(folder)))


def stream(folder: Path, members: torch.Tensor | None) -> Told:
    """An epoch of batches in random order; each member must come once, with all its atoms and edges."""
    begin = time.perf_counter()
    table = opened_table(folder)
    ready = time.perf_counter() - begin
    members = torch.arange(len(table)) if members is None else members
    order = BatchOrder(len(members), workload_of(folder).batch_size, SEED)
    steps = order.steps_per_epoch
    for _ in TrainingBatches(table, order, first_step=steps, last_step=steps + WARM_UP, members=members):
        pass
    seen, atoms, edges = [], 0, 0
    clock = Clock()
    for batch in TrainingBatches(table, order, first_step=0, last_step=steps, members=members):
        seen.append(batch.indices)
        atoms, edges = atoms + batch.graph.num_atoms, edges + batch.graph.num_edges
    seconds, core_seconds = clock.read()
    check_epoch(torch.cat(seen), atoms, edges, members=members, table=table)
    counts = {"structures": len(members), "atoms": atoms, "edges": edges}
    return Told({"ready": ready, "epoch": seconds}, counts, core_seconds)


def sample_places(folder: Path) -> NDArray[np.int64]:
    """Places in the data set of the sample that the peers have."""
    return np.array(json.loads((folder / "sample.json").read_text(encoding="utf-8")))


def busy_seconds() -> float:
    """Time on cores of this process, and of child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Clock:
    """Wall time, and time on cores with that of child processes, since it was made."""

    def __init__(self) -> None:
        self.wall, self.cores = time.perf_counter(), busy_seconds()

    def read(self) -> tuple[float, float]:
        """Seconds of both."""
        return time.perf_counter() - self.wall, busy_seconds() - self.cores


def opened_data(folder: Path) -> OpenedData:
    """The molecules from the store, which is prepared if it is not there."""
    section = HDF5(name="hdf5", path=(str(folder / "molecules.h5"),))
    return open_files(section.training_files(), cache=folder / "cache", say=lambda _: None, store_from=0)


def kept_edges(opened: OpenedData, folder: Path) -> EdgeTable:
    """The edges from the cache, found if they are not there."""
    return edges_of(opened.structures, cutoff=CUTOFF, key=opened.content_hash, cache=folder / "cache", mapped=opened.columns)


def opened_table(folder: Path) -> StructureTable:
    """What batches are gathered from, all of it mapped files; total energies, as they are in the peers."""
    opened = opened_data(folder)
    edges = kept_edges(opened, folder)
    return structure_table(
        opened.structures,
        reach=Reach(CUTOFF),
        self_energies=np.zeros(256),
        dtype=torch.float32,
        edges=edges,
        mapped=opened.columns,
    )


def check_epoch(seen: torch.Tensor, atoms: int, edges: int, *, members: torch.Tensor, table: StructureTable) -> None:
    """Each member came once, with all its atoms and edges; else the benchmark means nothing."""
    expected = (int(table.num_atoms[members].sum()), int(table.num_edges[members].sum()))
    if not torch.equal(seen.sort().values, members.sort().values) or (atoms, edges) != expected:
        sys.exit(
            f"an epoch of {len(members)} structures gave {len(seen)}, and {(atoms, edges)} atoms and edges, not {expected}"
        )


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tell(told: Told) -> None:
    """Print what a process tells, with its peak memory so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 / MB for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps(asdict(told) | {"peak_mb": peak}))


STEPS = {step.__name__: step for step in (write_hdf5, prepare, open_again, stream_all, stream_sample)}


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description="A step of modelforge's data path.")
    parser.add_argument("step", choices=sorted(STEPS))
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    tell(STEPS[options.step](options.folder))


if __name__ == "__main__":
    main()
