"""`train(experiment)`: assemble, rehearse, fit, test, report, all of it in a run folder.

The same call starts a run, resumes it after any interruption, or finds it finished.
"""

import hashlib
import json
import os
import resource
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console

from modelforge import __version__
from modelforge.assembly import build_model, run_batches, total_steps_of
from modelforge.data.module import DataModule
from modelforge.data.prepare import PreparedData, prepare
from modelforge.data.sources.extxyz.writer import write_extxyz
from modelforge.disk import disk_failures_told
from modelforge.experiment import Experiment, LoadedExperiment, resolved_toml
from modelforge.files import set_aside, write_text
from modelforge.final_test import tested_sets
from modelforge.model_file import FILE_NAME, FIRST_STAGE_FILE_NAME, TrainedPotential, save_potential
from modelforge.rehearsal.rehearsal import Rehearsal
from modelforge.rehearsal.rehearsing import rehearse
from modelforge.report import batch_summary, data_report, data_summary, error_table, model_summary
from modelforge.run_folder import RunFolder, length_of
from modelforge.slurm.allocation import end_time, read_allocation
from modelforge.slurm.preflight import refuse_mismatch
from modelforge.training.checkpoint import latest_checkpoint, saved_experiment
from modelforge.training.compilation import StepCompiler
from modelforge.training.display import LiveBar, PlainLines, RunLog, duration
from modelforge.training.keeper import RunKeeper
from modelforge.training.ledger import formula
from modelforge.training.listener import Listener
from modelforge.training.loss import weights_of
from modelforge.training.not_finite import NotFinite
from modelforge.training.precision import ForceDifference, difference_in_words, force_difference, matmul_precision
from modelforge.training.processes import introduce
from modelforge.training.progress import BestWeights
from modelforge.training.runtime import device_note
from modelforge.training.stretches import next_stretch, num_stretches
from modelforge.training.task import TrainingTask
from modelforge.training.trainer import build_trainer, reason_not_to_compile

MOST_PLACES = 8  # structures that a message names
PRECISION_STRUCTURES = 8  # whose forces are compared with those in float64

Results = dict[str, Any]


@dataclass(eq=False)
class Run:
    """A run that is set up: everything that `fit` needs."""

    experiment: Experiment
    resolved: str
    folder: RunFolder
    data: PreparedData
    module: DataModule
    task: TrainingTask
    keeper: RunKeeper
    trainer: pl.Trainer
    log: RunLog


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
    with disk_failures_told(folder), matmul_precision(experiment.runtime.matmul_precision):
        if trainer.is_global_zero:
            folder.remove_leftovers()
        for note in notes:
            log.line(f"note: {note}")
        run = set_up(loaded, folder, trainer, log)
        fit(run, with_rehearsal=with_rehearsal)
        return finish(run)


def set_up(loaded: LoadedExperiment, folder: RunFolder, trainer: pl.Trainer, log: RunLog) -> Run:
    """Data, model, task and keeper, as they were where a run resumes."""
    experiment = loaded.experiment
    training, runtime = experiment.training, experiment.runtime
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    log.line(f"modelforge {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads", style="dim")
    if note := device_note(runtime):
        log.line(f"note: {note}")
    for loss_of_file in folder.losses():
        log.line(f"note: {loss_of_file}")
    loss = training.widest_loss
    data = prepare(experiment.dataset, weights=weights_of(loss), split_file=folder.split, say=log.line)
    resolved = resolved_toml(experiment, loaded.origins)
    if trainer.is_global_zero:
        write_text(folder.experiment, resolved)
    batches = run_batches(experiment, data, rank=trainer.global_rank, num_processes=trainer.world_size, say=log.line)
    model = build_model(experiment, data)
    steps_per_epoch = batches.steps_per_epoch
    for line in (*data_summary(data), *model_summary(experiment, model), batch_summary(experiment, batches), formula(loss)):
        log.line(line)
    total_steps = total_steps_of(experiment, steps_per_epoch)
    refusal = reason_not_to_compile(runtime, trainer.strategy.root_device)
    compiler = StepCompiler(
        model,
        loss,
        mode=runtime.compile,
        total_steps=total_steps,
        refusal=refusal,
        is_first_here=trainer.local_rank == 0,
    )
    task = TrainingTask(
        model,
        training,
        compiler,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        num_subsets=len(data.structures.subset_names),
        num_processes=trainer.world_size,
        scaled_gradients=runtime.precision == "16-mixed",
    )
    keeper = RunKeeper(
        training,
        folder.path,
        experiment=resolved,
        length=json.dumps(length_of(experiment)),
        end_of_job=end_time(os.environ),
    )
    keeper.metrics.tell = log.line
    if (latest := latest_checkpoint(*folder.checkpoints)) is not None:
        checkpoint, damage = latest
        if damage:
            log.line(f"note: {damage}; the run goes on from {folder.previous_checkpoint}, the one before")
            if trainer.is_global_zero and folder.last_checkpoint.exists():
                set_aside(folder.last_checkpoint)  # so that it does not become the one before
        if checkpoint["best"] and not folder.best_checkpoint.exists():
            log.line(f"note: {folder.best_checkpoint} is gone; it comes again with a better validation, and nothing needs it")
        task.restore(checkpoint["task"])
        keeper.restore(checkpoint)
    return Run(experiment, resolved, folder, data, DataModule(batches), task, keeper, trainer, log)


def fit(run: Run, *, with_rehearsal: bool) -> None:
    """Train from where the run stands to its end; `Interrupted` if a signal asks to stop."""
    task, training = run.task, run.experiment.training
    if run.keeper.has_ended or (task.steps >= task.total_steps and not run.keeper.progress.owes_validation):
        return
    run.keeper.listeners, bar = _listeners(run)
    run.trainer.callbacks.extend([BeforeTheStart(run, with_rehearsal=with_rehearsal), run.keeper])  # type: ignore[attr-defined]
    run.trainer.fit_loop.max_epochs = num_stretches(task, training)
    # Lightning's check before the training is here the validation that a run begins with.
    run.trainer.num_sanity_val_steps = float("inf") if run.keeper.progress.owes_validation else 0
    next_stretch(run.module, task, training)
    introduce(run.trainer, facts=_facts(run), say=run.log.line)
    try:
        with run.keeper.stop_signal:
            run.trainer.fit(task, datamodule=run.module)
    except NotFinite as failure:
        raise _with_batch(run, failure) from failure
    finally:
        if bar is not None:
            bar.stop()


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
        trained=_potential(run, weights="those at the start"),
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


def measure_precision(run: Run) -> ForceDifference | None:
    """Forces of the model as it is now against float64, in the log; None where all is float64."""
    runtime, model = run.experiment.runtime, run.task.model
    if runtime.precision == "64-true":
        return None
    batch = run.module.batches.sample(PRECISION_STRUCTURES).to(model.scale.device)
    found = force_difference(model, batch, precision=runtime.precision, matmul=runtime.matmul_precision)
    run.log.line(difference_in_words(found))
    return found


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


def finish(run: Run) -> Results:
    """Write the product, test the best weights, write the results; the first process gives them."""
    for place, best in enumerate(run.keeper.best):
        trained = best_potential(run, best)
        if run.trainer.is_global_zero:
            is_last = place == len(run.keeper.best) - 1
            save_potential(run.folder.path / (FILE_NAME if is_last else FIRST_STAGE_FILE_NAME), trained)
    device, log = run.trainer.strategy.root_device, run.log
    metrics = tested_sets(trained, run.data, run.experiment.training, folder=run.folder, device=device, say=log.line)
    if not run.trainer.is_global_zero:
        return {}
    precision = measure_precision(run)
    results = _results(run, trained, metrics) | {"precision": asdict(precision) if precision else None}
    write_text(run.folder.results, json.dumps(results, indent=2) + "\n")
    log.line(f"finished: {_reason(run)} after {duration(run.keeper.progress.seconds)}; tested weights: {trained.weights}")
    log.table(error_table(results))
    log.line(f"run folder: {run.folder.path}")
    return results


def best_potential(run: Run, best: BestWeights) -> TrainedPotential:
    """The potential with the best weights of a stage: the averaged ones where there is an average."""
    run.task.model.load_state_dict(best["weights"])
    run.task.model.eval()
    epoch = best["steps"] / run.task.steps_per_epoch
    stage = " of the second stage" if best["is_second_stage"] else ""
    return _potential(run, weights=f"best epoch {epoch:.4g}{stage}, {best['kind']}")


def _potential(run: Run, *, weights: str) -> TrainedPotential:
    """The potential with the weights of the model as they are."""
    return TrainedPotential(
        model=run.task.model,
        potential=run.experiment.potential,
        dataset=run.experiment.dataset,
        self_energies=run.data.reference.self_energies,
        shifts=run.data.reference.shifts,
        experiment=run.resolved,
        weights=weights,
        training_precision=run.experiment.runtime.precision,
        matmul_precision=run.experiment.runtime.matmul_precision,
    )


def _reason(run: Run) -> str:
    """Why the training ended; a run whose length was cut down below what it has ends without a step."""
    return run.keeper.progress.reason or "max_epochs reached"


def _results(run: Run, trained: TrainedPotential, metrics: dict[str, Any]) -> Results:
    speeds = run.keeper.metrics.column("structures_per_second")
    return {
        "status": "finished",
        "reason": _reason(run),
        "version": __version__,
        "epochs": run.task.steps / run.task.steps_per_epoch,
        "steps": run.task.steps,
        "num_parameters": sum(weight.numel() for weight in run.task.model.parameters()),
        "training_seconds": run.keeper.progress.seconds,
        "structures_per_second": statistics.median(speeds[len(speeds) // 2 :]) if speeds else None,
        "peak_memory_mb": peak_memory_mb(),
        "weights": trained.weights,
        "self_energies_ev": trained.self_energies.by_element,
        "data": data_report(run.data),
        "metrics": metrics,
        "length": length_of(run.experiment),
    }


def peak_memory_mb() -> float:
    """Peak memory of this process, or of the GPU if there is one in use, in MB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _listeners(run: Run) -> tuple[list[Listener], LiveBar | None]:
    runtime, steps_per_epoch = run.experiment.runtime, run.task.steps_per_epoch
    live = run.log.console.is_terminal if runtime.progress_bar == "auto" else runtime.progress_bar
    lines = PlainLines(run.log, interval=runtime.log_interval, steps_per_epoch=steps_per_epoch, shown=not live)
    bar = LiveBar(run.log, steps_per_epoch=steps_per_epoch) if live else None
    return ([lines, bar] if bar else [lines]), bar
