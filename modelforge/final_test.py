"""The test at the end of a run: every set that is not trained on, shared out over the processes, errors and predictions.

S structures, N atoms of a set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from modelforge.data.prepare import PreparedData
from modelforge.data.store.prepared_once import Say
from modelforge.data.structures import Structures
from modelforge.evaluate import Evaluation, evaluate, metrics_of, notes_of, write_predictions
from modelforge.files import replacing
from modelforge.model_file import TrainedPotential
from modelforge.run_folder import RunFolder
from modelforge.training.metrics import ErrorSums
from modelforge.training.section import TrainingSection


def tested_sets(
    trained: TrainedPotential,
    data: PreparedData,
    training: TrainingSection,
    *,
    folder: RunFolder,
    device: torch.device,
    say: Say,
) -> dict[str, Any]:
    """Errors of each set; its predictions go to the run folder. Of several processes only the first gives errors."""
    rank, num_processes = _place_among_processes()
    metrics: dict[str, Any] = {}
    for name, (structures, members) in data.evaluated_sets().items():
        everything = structures.take(members) if len(members) < len(structures) else structures
        own = everything if num_processes == 1 else everything.take(np.arange(len(members))[rank::num_processes])
        found = _evaluated(trained, own, training, device) if len(own) else None
        if num_processes > 1:
            found = _together(trained, everything, found, shares=folder.shares(name, num_processes), rank=rank)
        if found is None:
            continue
        metrics[name] = found.metrics
        write_predictions(folder.predictions(name), everything, found)
        for note in found.notes:
            say(f"note: {name}: {note}")
    return metrics


def _evaluated(trained: TrainedPotential, own: Structures, training: TrainingSection, device: torch.device) -> Evaluation:
    return evaluate(
        trained,
        own,
        batch_size=training.evaluation_batch_size,
        max_edges=training.max_edges,
        max_atoms=training.max_atoms,
        device=device,
    )


def _place_among_processes() -> tuple[int, int]:
    """Rank and number of processes that are there now: a run that only its test was missing from has one."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _together(
    trained: TrainedPotential, structures: Structures, own: Evaluation | None, *, shares: list[Path], rank: int
) -> Evaluation | None:
    """The evaluation of all structures from the shares of the processes, on the first one; None on the others."""
    if own is not None:
        _write_share(shares[rank], own)
    torch.distributed.barrier()
    if rank > 0:
        return None
    merged = _merged(trained, structures, shares)
    for share in shares:
        share.unlink(missing_ok=True)
    return merged


def _write_share(path: Path, share: Evaluation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "energy": share.energy,
        "forces": share.forces,
        "by_subset": share.sums.by_subset.cpu().numpy(),
        "by_element": share.sums.by_element.cpu().numpy(),
    }
    if share.stress is not None:
        arrays["stress"] = share.stress
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _merged(trained: TrainedPotential, structures: Structures, shares: list[Path]) -> Evaluation:
    """Process r has each structure r, r + P, r + 2 P, ... of P processes."""
    energy, forces = np.empty(len(structures)), np.empty((structures.offsets[-1], 3))
    stress, has_stress = np.full((len(structures), 3, 3), np.nan), False
    sums = ErrorSums(len(structures.subset_names), over_processes=False)
    owner_of_atom = np.repeat(np.arange(len(structures)), structures.num_atoms) % len(shares)  # (N,)
    for rank, path in enumerate(shares):
        if rank >= len(structures):
            break
        share: Mapping[str, Any] = np.load(path)
        energy[rank :: len(shares)] = share["energy"]
        forces[owner_of_atom == rank] = share["forces"]
        if "stress" in share:
            stress[rank :: len(shares)], has_stress = share["stress"], True
        sums.by_subset += torch.from_numpy(share["by_subset"])
        sums.by_element += torch.from_numpy(share["by_element"])
    return Evaluation(
        energy,
        forces,
        stress if has_stress else None,
        metrics_of(sums, structures.subset_names),
        notes_of(trained, structures),
        sums,
    )
