"""The test at the end of a run: every set that is not trained on, shared out over the processes, errors and predictions.

S structures, N atoms of a set.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from modelforge.data.prepare import PreparedData
from modelforge.data.store.prepared_once import Say
from modelforge.data.structures import COLUMNS, LABELS, Integers, Structures
from modelforge.errors import RunFailure
from modelforge.evaluate import Evaluation, Predicted, evaluate, evaluation_of, write_predictions
from modelforge.files import replacing
from modelforge.model_file import TrainedPotential
from modelforge.run_folder import RunFolder
from modelforge.training.metrics import ErrorSums
from modelforge.training.section import TrainingSection
from modelforge.training.stop_signal import Interrupted


def evaluate_sets(
    trained: TrainedPotential,
    data: PreparedData,
    training: TrainingSection,
    *,
    folder: RunFolder,
    device: torch.device,
    say: Say,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Errors of each set; its predictions go to the run folder. Of several processes only the first gives errors."""
    rank, num_processes = _place_among_processes()
    evaluated = partial(_evaluated, trained, training=training, device=device, num_processes=num_processes)
    sets = {name: _taken(structures, members) for name, (structures, members) in data.evaluated_sets().items()}
    if num_processes > 1:
        _write_shares({name: folder.shares(name, num_processes)[rank] for name in sets}, sets, evaluated, stop_if_asked)
        if rank > 0:
            return {}
    else:
        stop_if_asked()
    metrics: dict[str, Any] = {}
    for name, structures in sets.items():
        shares = folder.shares(name, num_processes)
        found = evaluated(structures) if num_processes == 1 else _merged(trained, structures, shares)
        metrics[name] = found.metrics
        write_predictions(folder.predictions(name), structures, found)
        for share in shares:
            share.unlink(missing_ok=True)
        for note in found.notes:
            say(f"note: {name}: {note}")
    return metrics


def _taken(structures: Structures, members: Integers) -> Structures:
    return structures.take(members) if len(members) < len(structures) else structures


def _evaluated(
    trained: TrainedPotential, structures: Structures, *, training: TrainingSection, device: torch.device, num_processes: int
) -> Evaluation:
    """Batches are shares of those that all processes have together."""
    return evaluate(
        trained,
        structures,
        batch_size=-(-training.evaluation_batch_size // num_processes),
        max_edges=training.max_edges and -(-training.max_edges // num_processes),
        max_atoms=training.max_atoms and -(-training.max_atoms // num_processes),
        device=device,
    )


def _write_shares(
    paths: Mapping[str, Path],
    sets: Mapping[str, Structures],
    evaluated: Callable[[Structures], Evaluation],
    stop_if_asked: Callable[[], None],
) -> None:
    """The share of this process of each set; done on all processes, or a failure on all: none waits for one that has failed."""
    rank, num_processes = _place_among_processes()
    failure: Exception | None = None
    try:
        stop_if_asked()
        for name, structures in sets.items():
            own = structures.take(np.arange(len(structures))[rank::num_processes])
            if len(own):
                _write_share(paths[name], evaluated(own))
    except Exception as error:  # noqa: BLE001 - whatever it is, the others have to know first
        failure = error
    outcomes: list[str | None] = [None] * num_processes
    is_stopped = isinstance(failure, Interrupted)
    torch.distributed.all_gather_object(outcomes, None if failure is None else "stopped" if is_stopped else "failed")
    if failure is not None:
        raise failure
    if "failed" in outcomes:
        raise RunFailure(f"the test failed on process {outcomes.index('failed')}, whose message says why")
    if "stopped" in outcomes:
        raise Interrupted("a signal to another process, in the test")


def _place_among_processes() -> tuple[int, int]:
    """Rank and number of processes that are there now: a run that only its test was missing from has one."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _write_share(path: Path, share: Evaluation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        **share.predicted,
        "by_subset": share.sums.by_subset.cpu().numpy(),
        "by_element": share.sums.by_element.cpu().numpy(),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _merged(trained: TrainedPotential, structures: Structures, shares: list[Path]) -> Evaluation:
    """Process r has each structure r, r + P, r + 2 P, ... of P processes."""
    predicted: Predicted = {}
    sums = ErrorSums(len(structures.subset_names), over_processes=False)
    owner_of_atom = np.repeat(np.arange(len(structures)), structures.num_atoms) % len(shares)  # (N,)
    for rank, path in enumerate(shares):
        if rank >= len(structures):
            break
        share: Mapping[str, Any] = np.load(path)
        for name in set(share) & set(LABELS):
            column = COLUMNS[name]
            whole = np.full((len(owner_of_atom if column.per_atom else structures), *column.shape), np.nan)
            place = owner_of_atom == rank if column.per_atom else slice(rank, None, len(shares))
            predicted.setdefault(name, whole)[place] = share[name]
        sums.by_subset += torch.from_numpy(share["by_subset"])
        sums.by_element += torch.from_numpy(share["by_element"])
    return evaluation_of(trained, structures, {name: predicted[name] for name in LABELS if name in predicted}, sums)
