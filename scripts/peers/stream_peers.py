"""Stream structures as others keep them: ASE's database, LMDB of pickles, tensors in memory; `benchmark_data.py` runs it.

Each is a torch Dataset of structures with a DataLoader that collates them one by one with torch.cat. `build` writes the
sample into the peer's own file, `compare` compares its first batches with ours, `stream` gives an epoch in the order of ours.
"""

# mypy: allow-untyped-calls
# because ase annotates only some of its functions.

import argparse
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import ase.db
import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from stream_modelforge import CUTOFF, SEED, WARM_UP, Clock, Told, opened_data, opened_table, sample_places, tell, workload_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modelforge.atoms.graph import Batch
from modelforge.atoms.neighbors import find_edges
from modelforge.data.batching.order import BatchOrder, TrainingBatches
from modelforge.data.structures import Array

MAP_SIZE = 1 << 38  # bytes: more than LMDB will need
COMPARED = 5  # batches


class Sample(TypedDict):
    """A structure as the DataLoader takes it."""

    atomic_numbers: Tensor  # (N,)
    edge_index: Tensor  # (2, E)
    edge_vectors: Tensor  # (E, 3)
    energy: Tensor  # (1,)
    forces: Tensor  # (N, 3)
    index: int


def sample_of(index: int, numbers: Array, positions: Array, energy: float, forces: Array) -> Sample:
    """A molecule with its edges, found for it alone."""
    edges = find_edges(np.array([len(numbers)]), positions, np.zeros((1, 3, 3)), np.zeros((1, 3), dtype=bool), cutoff=CUTOFF)
    return Sample(
        atomic_numbers=torch.from_numpy(numbers.astype(np.int64)),
        edge_index=torch.from_numpy(np.stack([edges.receivers, edges.senders]).astype(np.int64)),
        edge_vectors=torch.from_numpy(edges.vectors.astype(np.float32)),
        energy=torch.tensor([energy], dtype=torch.float32),
        forces=torch.from_numpy(forces.astype(np.float32)),
        index=index,
    )


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """A batch; the atoms of each structure are counted on from those before it."""
    counts = torch.tensor([len(sample["atomic_numbers"]) for sample in samples])
    firsts = (counts.cumsum(0) - counts).tolist()
    return {
        "atomic_numbers": torch.cat([sample["atomic_numbers"] for sample in samples]),
        "structure_index": torch.repeat_interleave(counts),
        "edge_index": torch.cat([sample["edge_index"] + first for sample, first in zip(samples, firsts, strict=True)], dim=1),
        "edge_vectors": torch.cat([sample["edge_vectors"] for sample in samples]),
        "energy": torch.cat([sample["energy"] for sample in samples]),
        "forces": torch.cat([sample["forces"] for sample in samples]),
        "indices": torch.tensor([sample["index"] for sample in samples]),
    }


class AseDatabase(Dataset[Sample]):
    """Rows of an ASE database in SQLite; its connection stays open, without which it is several times slower."""

    def __init__(self, folder: Path, chosen: Array) -> None:
        self.chosen, self.database = chosen, ase.db.connect(folder / "ase.db", use_lock_file=False).__enter__()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> Sample:
        atoms = self.database.get(place + 1).toatoms()
        found = atoms.calc.results
        return sample_of(int(self.chosen[place]), atoms.numbers, atoms.positions, found["energy"], found["forces"])


class PickledSamples(Dataset[Sample]):
    """Pickled dicts of tensors in LMDB."""

    def __init__(self, folder: Path, chosen: Array) -> None:
        self.folder, self.chosen = folder, chosen

    @cached_property
    def transaction(self) -> lmdb.Transaction:
        """Opened at first use: in the data loading process, if there is one, as LMDB must not be opened before a fork."""
        return open_lmdb(self.folder, readonly=True).begin()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> Sample:
        pickled = self.transaction.get(key_of(place))
        assert pickled is not None
        sample: Sample = pickle.loads(pickled)
        return sample


class SamplesInMemory(Dataset[Sample]):
    """Tensors of each structure, all in memory."""

    def __init__(self, folder: Path, chosen: Array) -> None:
        self.samples = list(samples_of(folder, chosen))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Sample:
        return self.samples[place]


def build_ase(folder: Path, chosen: Array) -> None:
    """The sample as ASE's database, in one transaction."""
    with ase.db.connect(folder / "ase.db", use_lock_file=False) as database:
        for _, numbers, positions, energy, forces in molecules_of(folder, chosen):
            atoms = Atoms(numbers, positions)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            database.write(atoms)


def build_lmdb(folder: Path, chosen: Array) -> None:
    """The sample with its edges as pickles in LMDB, in one transaction."""
    with open_lmdb(folder, readonly=False) as environment, environment.begin(write=True) as transaction:
        for place, sample in enumerate(samples_of(folder, chosen)):
            transaction.put(key_of(place), pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL))


def open_lmdb(folder: Path, *, readonly: bool) -> lmdb.Environment:
    """The database; one reader at a time needs no locks, and random reads no look ahead."""
    return lmdb.open(
        str(folder / "samples.lmdb"), subdir=False, map_size=MAP_SIZE, readonly=readonly, lock=False, readahead=False
    )


def key_of(place: int) -> bytes:
    """Keys that sort as the places do."""
    return f"{place:012}".encode()


def molecules_of(folder: Path, chosen: Array) -> Iterator[tuple[int, Array, Array, float, Array]]:
    """The chosen molecules one by one, out of a copy in memory: place in the data set, and what `sample_of` takes."""
    sample = opened_data(folder).structures.take(chosen)
    bounds = pairwise(sample.offsets.tolist())
    for index, energy, (begin, end) in zip(chosen.tolist(), sample.energy.tolist(), bounds, strict=True):
        yield index, sample.atomic_numbers[begin:end], sample.positions[begin:end], energy, sample.forces[begin:end]


def samples_of(folder: Path, chosen: Array) -> Iterator[Sample]:
    """The chosen molecules with their edges."""
    return (sample_of(*molecule) for molecule in molecules_of(folder, chosen))


BUILDS = {"ase": build_ase, "lmdb": build_lmdb}
DATASETS = {"ase": AseDatabase, "lmdb": PickledSamples, "memory": SamplesInMemory}
FILES = {"ase": "ase.db", "lmdb": "samples.lmdb"}


def build(peer: str, folder: Path) -> Told:
    """Write the peer's file."""
    chosen = sample_places(folder)
    clock = Clock()
    BUILDS[peer](folder, chosen)
    seconds, core_seconds = clock.read()
    size = (folder / FILES[peer]).stat().st_size
    return Told({"build": seconds}, {"structures": len(chosen), "bytes": size}, core_seconds)


def stream(peer: str, folder: Path, *, workers: int) -> Told:
    """An epoch over the sample; each structure must come once."""
    chosen = sample_places(folder)
    begin = time.perf_counter()
    dataset: Dataset[Sample] = DATASETS[peer](folder, chosen)
    ready = time.perf_counter() - begin
    order = [batch.tolist() for batch in BatchOrder(len(chosen), workload_of(folder).batch_size, SEED).epoch(0)]
    for _ in loader_of(dataset, order[-WARM_UP:], workers):
        pass
    seen, atoms, edges = [], 0, 0
    clock = Clock()
    for batch in loader_of(dataset, order, workers):
        seen.append(batch["indices"])
        atoms, edges = atoms + len(batch["atomic_numbers"]), edges + len(batch["edge_vectors"])
    seconds, core_seconds = clock.read()
    if not torch.equal(torch.cat(seen).sort().values, torch.from_numpy(chosen).sort().values):
        sys.exit(f"an epoch of {peer} has not each structure once")
    return Told({"ready": ready, "epoch": seconds}, {"structures": len(chosen), "atoms": atoms, "edges": edges}, core_seconds)


def loader_of(dataset: Dataset[Sample], order: Sequence[list[int]], workers: int) -> DataLoader[Sample]:
    """Batches in an order."""
    return DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers)


def compare(peer: str, folder: Path) -> Told:
    """The first batches must be ours bit for bit."""
    begin, chosen = time.perf_counter(), sample_places(folder)
    order, table = BatchOrder(len(chosen), workload_of(folder).batch_size, SEED), opened_table(folder)
    members = torch.from_numpy(chosen)
    ours = TrainingBatches(table, order, first_step=0, last_step=min(COMPARED, order.steps_per_epoch), members=members)
    theirs = loader_of(DATASETS[peer](folder, chosen), [batch.tolist() for batch in order.epoch(0)][: len(ours)], 0)
    for step, (batch, other) in enumerate(zip(ours, theirs, strict=True)):
        fields = shared_fields(batch)
        if differ := [name for name, values in fields.items() if not same_bits(values, other[name])]:
            sys.exit(f"batch {step} of {peer} is not ours: {', '.join(differ)}")
    return Told({"compare": time.perf_counter() - begin}, {"structures": len(chosen), "batches": len(ours)})


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal in type, shape and values."""
    return first.dtype == second.dtype and torch.equal(first, second)


def shared_fields(batch: Batch) -> dict[str, Tensor]:
    """What batches of all sides have; ours have more (reverse edges, first edges, volumes, stresses, weights)."""
    graph, labels = batch.graph, batch.labels
    return {
        "atomic_numbers": graph.atomic_numbers,
        "structure_index": graph.structure_index,
        "edge_index": graph.edge_index,
        "edge_vectors": graph.edge_vectors,
        "energy": labels.energy,
        "forces": labels.forces,
        "indices": batch.indices,
    }


def main() -> None:
    """Run a peer."""
    parser = argparse.ArgumentParser(description="Stream structures as others keep them.")
    parser.add_argument("action", choices=("build", "compare", "stream"))
    parser.add_argument("peer", choices=sorted(DATASETS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=0, help="data loading processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.action == "stream":
        tell(stream(options.peer, options.folder, workers=options.workers))
    else:
        tell((build if options.action == "build" else compare)(options.peer, options.folder))


if __name__ == "__main__":
    main()
