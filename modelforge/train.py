"""`train(experiment)`: set up, rehearse, fit, test, report, all of it in a run folder.

The same call starts a run, resumes it after any interruption, or finds it finished.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from rich.console import Console

from modelforge import __version__
from modelforge.assembly import exact_batches
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.disk import disk_failures_told
from modelforge.errors import RunFailure, UserError
from modelforge.experiment import LoadedExperiment
from modelforge.finish import Results, finish
from modelforge.potentials.closed_form import ClosedFormPotential
from modelforge.rehearsal.rehearsal import Rehearsal
from modelforge.rehearsal.rehearsing import rehearse
from modelforge.report import error_table
from modelforge.run import Run, measure_precision, set_up
from modelforge.run_folder import RunFolder
from modelforge.slurm.allocation import read_allocation
from modelforge.slurm.preflight import refuse_mismatch
from modelforge.training.checkpoint import saved_experiment
from modelforge.training.core_watch import CoreWatch
from modelforge.training.display import ClosedFormLine, LiveBar, PlainLines, RunLog
from modelforge.training.listener import Listener
from modelforge.training.loss import weights_of
from modelforge.training.not_finite import NotFinite
from modelforge.training.precision import matmul_precision
from modelforge.training.processes import introduce, kept_together
from modelforge.training.stop_signal import Interrupted, StopSignal
from modelforge.training.stretches import next_stretch, num_stretches
from modelforge.training.trainer import build_trainer

MOST_PLACES = 8  # structures that a message names


def train(loaded: LoadedExperiment, console: Console, *, with_rehearsal: bool = True) -> Results:
    """Train, test and report; gives the results, which are also in the run folder's results.json."""
    experiment = loaded.experiment
    folder = RunFolder(Path(experiment.runtime.run_folder))
    folder.refuse_misplaced()
    folder.refuse_other_experiment(experiment, saved=lambda: saved_experiment(*folder.checkpoints))
    if (results := folder.finished_results(experiment)) is not None:
        shown = RunLog(console, None)
        shown.line(f"This run is finished: {folder.path}")
        shown.table(error_table(results))
        return results
    notes = refuse_mismatch(experiment.runtime, read_allocation(os.environ), num_visible_gpus=torch.cuda.device_count())
    folder.create()
    trainer = build_trainer(experiment.runtime, experiment.training, folder=str(folder.path))
    # Every process of a run comes through here; the first one speaks for all.
    log = RunLog(console, folder.log) if trainer.is_global_zero else RunLog(Console(quiet=True), None)
    arithmetic = matmul_precision(experiment.runtime.matmul_precision)
    with _end_logged(log), disk_failures_told(folder), arithmetic, StopSignal() as stop_signal, kept_together(trainer):
        if trainer.is_global_zero:
            folder.remove_leftovers()
        for note in notes:
            log.line(f"note: {note}")
        run = set_up(loaded, folder, trainer, log, stop_signal)
        fit(run, with_rehearsal=with_rehearsal)
        return finish(run)


@contextmanager
def _end_logged(log: RunLog) -> Iterator[None]:
    """The log says how a run ended that did not finish; the command line says it on the console."""
    try:
        yield
    except Interrupted as stop:
        log.line(f"stopped ({stop})", shown=False)
        raise
    except (UserError, RunFailure) as error:
        log.line(f"stopped: {error}", shown=False)
        raise


def fit(run: Run, *, with_rehearsal: bool) -> None:
    """Train from where the run stands to its end; `Interrupted` if a signal asks to stop."""
    task, training = run.task, run.experiment.training
    if run.keeper.has_ended or (task.steps >= task.total_steps and not run.keeper.progress.owes_validation):
        return
    if is_closed_form := run.experiment.potential.is_closed_form:
        _solve(run)
    run.keeper.listeners, bar = _listeners(run)
    before = BeforeTheStart(run, with_rehearsal=with_rehearsal and not is_closed_form)
    run.trainer.callbacks.extend([before, run.keeper])  # type: ignore[attr-defined]
    run.trainer.fit_loop.max_epochs = num_stretches(task, training)
    # Lightning's check before the training is here the validation that a run begins with.
    run.trainer.num_sanity_val_steps = float("inf") if run.keeper.progress.owes_validation else 0
    next_stretch(run.module, task, training)
    introduce(run.trainer, facts=_facts(run), say=run.log.line)
    try:
        with run.keeper.stop_signal.only_noted():
            run.trainer.fit(task, datamodule=run.module)
    except NotFinite as failure:
        raise _with_batch(run, failure) from failure
    finally:
        if bar is not None:
            bar.stop()


def _solve(run: Run) -> None:
    """Find the weights of a potential that is not trained in steps: all that follows is a validation."""
    potential, scale = run.task.model.potential, float(run.task.model.scale)
    assert isinstance(potential, ClosedFormPotential)
    terms = weights_of(run.experiment.training.widest_loss)
    batches = exact_batches(run.experiment, run.data)
    begun = time.perf_counter()
    told = potential.solve(batches, scale=scale, with_energies="energy" in terms, with_forces="forces" in terms)
    run.keeper.progress.seconds = time.perf_counter() - begun
    for line in told:
        run.log.line(line)


def _facts(run: Run) -> dict[str, str]:
    """What all processes have to agree on, or they would train on different things."""
    split = hashlib.blake2b(b"".join(members.tobytes() for members in run.data.split.sets().values()), digest_size=8)
    return {
        "version of modelforge": __version__,
        "data": run.data.opened.content_hash,
        "split": split.hexdigest(),
        "experiment": hashlib.blake2b(run.resolved.encode(), digest_size=8).hexdigest(),
        "step to go on from": str(run.task.steps),
    }


class BeforeTheStart(pl.Callback):
    """Rehearses a run, and measures its numbers against float64, once its processes and devices are there."""

    def __init__(self, run: Run, *, with_rehearsal: bool) -> None:
        self.run, self.with_rehearsal = run, with_rehearsal

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Before the clock of the training starts."""
        if self.with_rehearsal:
            for line in rehearse(_rehearsal(self.run)):
                self.run.log.line(line)
        if trainer.is_global_zero:
            measure_precision(self.run)


def _rehearsal(run: Run) -> Rehearsal:
    return Rehearsal(
        trained=run.potential(weights="those at the start"),
        experiment=run.experiment,
        batches=run.module.batches,
        data=run.data,
        folder=run.folder,
        device=run.trainer.strategy.root_device,
        autocast=run.trainer.precision_plugin.train_step_context,
        sum_over_processes=run.task.over_processes,
        make_checkpoint=lambda: run.keeper.checkpoint(run.task),
        is_first=run.trainer.is_global_zero,
    )


def _with_batch(run: Run, failure: NotFinite) -> NotFinite:
    """The same failure with the structures of its batch, which are written to the run folder."""
    if not run.trainer.is_global_zero:
        return NotFinite("the first process tells why")
    if failure.step is None:
        return failure
    structures = run.data.structures.take(run.module.batches.structures_of_step(failure.step, rank=failure.rank))
    path = run.folder.path / "not_finite.extxyz"
    try:
        write_extxyz(path, structures)
        written = f"it is written to {path}"
    except OSError as error:
        written = f"it could not be written to {path}: {error.strerror}"
    places = [structures.place(number) for number in range(len(structures))]
    named = ", ".join(places[:MOST_PLACES]) + (f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else "")
    return NotFinite(f"{failure}. The batch of that step is {named}; {written}", step=failure.step)


def _listeners(run: Run) -> tuple[list[Listener], LiveBar | None]:
    if run.experiment.potential.is_closed_form:
        return [ClosedFormLine(run.log)], None
    runtime, steps_per_epoch = run.experiment.runtime, run.task.steps_per_epoch
    live = run.log.console.is_terminal if runtime.progress_bar == "auto" else runtime.progress_bar
    lines = PlainLines(run.log, interval=runtime.log_interval, steps_per_epoch=steps_per_epoch, shown=not live)
    bar = LiveBar(run.log, steps_per_epoch=steps_per_epoch) if live else None
    listeners: list[Listener] = [lines, bar] if bar else [lines]
    if run.trainer.strategy.root_device.type == "cpu" and run.trainer.world_size == 1:
        compiler = run.task.compiler
        say, num_threads = run.keeper.say, torch.get_num_threads()
        listeners.append(CoreWatch(say, num_threads=num_threads, is_compiling=lambda: compiler.is_compiling))
    return listeners, bar
