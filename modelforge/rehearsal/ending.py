"""The end of a run, rehearsed with a few structures: checkpoints on the way to it, product, test, results and table.

One process writes; the test is shared out over all of them, as it will be.
"""

import io
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from modelforge.data.prepare import PreparedData
from modelforge.data.store.opening import OpenedData
from modelforge.data.store.prepared_once import silent
from modelforge.data.structures import Integers, Structures
from modelforge.errors import UserError
from modelforge.files import write_text
from modelforge.final_test import evaluate_sets
from modelforge.model_file import FILE_NAME, TrainedPotential, load_potential, save_potential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.rehearsal.rehearsal import Rehearsal, RehearsalFailed, bytes_in_words, no_number
from modelforge.report import data_report, error_table
from modelforge.run_folder import REHEARSAL, RunFolder
from modelforge.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from modelforge.training.progress import BestWeights
from modelforge.training.step import in_a_line
from modelforge.training.task import TaskState

CHECKPOINTS = 4  # last, previous, best, and one that is being written
BYTES_PER_ATOM, BYTES_PER_STRUCTURE = 180, 800  # of predictions with energy, forces and stress: 178 and 748 at most, measured
BYTES_OF_CHARGE, BYTES_OF_MOMENTS = 50, 700  # per atom and per structure, of a potential with charges


def write_checkpoint(run: Rehearsal, model: EnergyModel, optimizer: Optimizer) -> str:
    """Write a checkpoint as large as all will be, and read it back; in words, what it takes."""
    checkpoint = _full_grown(run, model, optimizer)
    disk = _refuse_full_disk(run, model, checkpoint)
    path = run.folder.last_checkpoint.with_name(f"{REHEARSAL}.ckpt")
    begun = time.perf_counter()
    try:
        save_checkpoint(path, checkpoint)
        seconds, size = time.perf_counter() - begun, path.stat().st_size
        load_checkpoint(path)  # which finds out whether it reads what was written
    except UserError as error:
        raise RehearsalFailed(f"a checkpoint cannot be read back: {error.__cause__ or error}") from error
    except OSError as error:
        raise _not_writable(run, error) from error
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and the first error is the one to tell
            path.unlink(missing_ok=True)
    return f"checkpoint ({bytes_in_words(size)} in {seconds:.2g} s) works, {disk}"


def write_product(run: Rehearsal, model: EnergyModel) -> None:
    """Save the potential."""
    folder = _folder(run)
    try:
        folder.path.mkdir(exist_ok=True)
        save_potential(folder.path / FILE_NAME, replace(run.trained, model=model.eval()))
    except OSError as error:
        raise _not_writable(run, error) from error


def tested_few(run: Rehearsal) -> dict[str, Any]:
    """Errors of the saved potential for a few structures of each set; of several processes only the first gives them."""
    folder = _folder(run)
    try:
        trained = load_potential(folder.path, device=run.device)
        return evaluate_sets(trained, _few(run), run.experiment.training, folder=folder, device=run.device, say=silent)
    except OSError as error:
        raise _not_writable(run, error) from error


def write_report(run: Rehearsal, metrics: dict[str, Any]) -> None:
    """Results and table of these errors."""
    for name, (structures, members) in _few(run).evaluated_sets().items():
        _refuse_no_numbers(name, structures.take(members), metrics[name], run.trained)
    results = {"weights": run.trained.weights, "data": data_report(run.data), "metrics": metrics}
    try:
        write_text(_folder(run).results, json.dumps(results, indent=2))
    except OSError as error:
        raise _not_writable(run, error) from error
    Console(file=io.StringIO()).print(error_table(results))


def remove_traces(run: Rehearsal) -> None:
    """Remove all that product, test and report have written."""
    shutil.rmtree(_folder(run).path, ignore_errors=True)


def _folder(run: Rehearsal) -> RunFolder:
    return RunFolder(run.folder.path / REHEARSAL)


def _full_grown(run: Rehearsal, model: EnergyModel, optimizer: Optimizer) -> Checkpoint:
    """A checkpoint of now with what it has only later on: what the optimizer keeps, and the best weights of each stage."""
    made = run.make_checkpoint()
    task = TaskState({**made["task"], "optimizer": optimizer.state_dict()})
    best = BestWeights(steps=0, kind="raw", is_second_stage=False, weights=dict(model.state_dict()))
    num_stages = 1 if run.experiment.training.second_stage.start_epoch is None else 2
    return Checkpoint({**made, "task": task, "best": [best] * num_stages})


def _few(run: Rehearsal) -> PreparedData:
    """The data of the run with two of the smallest and two of the largest structures of each set that is tested.

    The set with the largest batch has that batch before them. Batches of validation have been tried already, and within
    budgets of edges and atoms those of a test are no larger.
    """
    training, sets = run.experiment.training, run.data.evaluated_sets()
    chosen = {name: _extremes(*part) for name, part in sets.items()}
    if not (training.max_edges or training.max_atoms):
        size = training.evaluation_batch_size * run.batches.num_processes
        largest = {name: _largest_batch(*part, size=size) for name, part in sets.items()}
        name = max(largest, key=lambda name: int(sets[name][0].num_atoms[largest[name]].sum()))
        if name != "validation":
            chosen[name] = np.concatenate([largest[name], np.setdiff1d(chosen[name], largest[name])])
    split = replace(run.data.split, **{name: chosen[name] for name in ("validation", "test") if name in chosen})
    return replace(run.data, split=split, tests={name: _taken(test, chosen[name]) for name, test in run.data.tests.items()})


def _taken(opened: OpenedData, chosen: Integers) -> OpenedData:
    reading = opened.reading._replace(structures=opened.structures.take(chosen))
    return replace(opened, reading=reading, columns=None)


def _extremes(structures: Structures, members: Integers) -> Integers:
    """The two smallest and the two largest members, or all where there are fewer."""
    by_size = members[np.argsort(structures.num_atoms[members], kind="stable")]
    return np.unique(np.concatenate([by_size[:2], by_size[-2:]]))


def _largest_batch(structures: Structures, members: Integers, *, size: int) -> Integers:
    """The members that make up the batch with the most atoms."""
    starts = np.arange(0, len(members), size)
    first = int(starts[np.add.reduceat(structures.num_atoms[members], starts).argmax()])
    return members[first : first + size]


def _refuse_no_numbers(name: str, structures: Structures, found: dict[str, Any], trained: TrainedPotential) -> None:
    """Errors leave out predictions that are not finite: there must be as many as labels."""
    num_energies, num_forces = int(structures.has_energy.sum()), int(np.isfinite(structures.forces).sum())
    num_labels = num_energies * trained.has_energies, num_forces * trained.has_forces
    if (found["num_energy_labels"], found["num_force_components"]) != num_labels:
        raise no_number(f"dataset: the set {name!r} (such as {structures.place(0)})")


def _refuse_full_disk(run: Rehearsal, model: EnergyModel, checkpoint: Checkpoint) -> str:
    """Room that the run needs beside the checkpoints that it has written already, and room that there is, in words."""
    sets = run.data.evaluated_sets().values()
    num_atoms = sum(int(structures.num_atoms[members].sum()) for structures, members in sets)
    num_structures = sum(len(members) for _, members in sets)
    per_atom, per_structure = BYTES_PER_ATOM, BYTES_PER_STRUCTURE
    if model.has_charges:
        per_atom, per_structure = per_atom + BYTES_OF_CHARGE, per_structure + BYTES_OF_MOMENTS
    parts = {
        "checkpoints": CHECKPOINTS * sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)),
        "potential": len(checkpoint["best"]) * sum(tensor.nbytes for tensor in model.state_dict().values()),
        "predictions": per_atom * num_atoms + per_structure * num_structures,
    }
    folder = run.folder.path.resolve()
    written = sum(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))
    needed, free = max(sum(parts.values()) - written, 0), shutil.disk_usage(folder).free
    if needed > free:
        disk = next(place for place in (folder, *folder.parents) if os.path.ismount(place))
        each = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in parts.items())
        raise UserError(
            f"runtime.run_folder: needs about {bytes_in_words(needed)} on its disk, {disk} ({each}), and "
            f"{bytes_in_words(free)} are free there. Make room, or choose a folder on another disk"
        )
    return f"disk {bytes_in_words(needed)} needed, {bytes_in_words(free)} free"


def _not_writable(run: Rehearsal, error: OSError) -> UserError:
    return UserError(
        f"runtime.run_folder: must be a folder to write to (got {run.folder.path}: {in_a_line(error)}). Mend the disk or its "
        "permissions, or choose another folder"
    )
