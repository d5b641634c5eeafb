"""`Run`: an experiment that is set up in its run folder; data, model, task and keeper are where a run resumes."""

import json
import os
from dataclasses import dataclass
from typing import cast

import pytorch_lightning as pl
import torch

from modelforge import __version__
from modelforge.assembly import build_model, prepared, run_batches, total_steps_of
from modelforge.data.module import DataModule
from modelforge.data.prepare import PreparedData
from modelforge.experiment import Experiment, LoadedExperiment, resolved_toml
from modelforge.files import set_aside, write_text
from modelforge.model_file import TrainedPotential
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.report import batch_summary, data_summary, model_summary
from modelforge.run_folder import RunFolder, length_of
from modelforge.slurm.allocation import end_time
from modelforge.starting_point import prepared_for, start_summary, starting_point
from modelforge.training.checkpoint import latest_checkpoint
from modelforge.training.compilation import StepCompiler
from modelforge.training.display import RunLog
from modelforge.training.keeper import RunKeeper
from modelforge.training.ledger import formula
from modelforge.training.precision import ForceDifference, difference_in_words, force_difference
from modelforge.training.runtime import device_note
from modelforge.training.stop_signal import StopSignal
from modelforge.training.task import TrainingTask
from modelforge.training.trainer import reason_not_to_compile

PRECISION_STRUCTURES = 8  # whose forces are compared with those in float64


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

    def potential(self, *, weights: str) -> TrainedPotential:
        """The potential with the weights that the model has now; `weights` says which these are."""
        return TrainedPotential(
            model=self.task.model,
            potential=cast(PotentialSection, self.task.model.potential.section),  # completed by the training set
            dataset=self.experiment.dataset,
            self_energies=self.data.reference.self_energies,
            shifts=self.data.reference.shifts,
            experiment=self.resolved,
            weights=weights,
            training_precision=self.experiment.runtime.precision,
            matmul_precision=self.experiment.runtime.matmul_precision,
        )


def set_up(loaded: LoadedExperiment, folder: RunFolder, trainer: pl.Trainer, log: RunLog, stop_signal: StopSignal) -> Run:
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
    # Of several processes one writes the split; the others draw the same, or read it if it is there.
    split_file = folder.split if trainer.is_global_zero or folder.split.exists() else None
    start = starting_point(experiment, folder)
    data = prepared(experiment, split_file=split_file, say=log.line)
    if start is not None:
        data = prepared_for(start, experiment, data)
    resolved = resolved_toml(experiment, loaded.origins)
    if trainer.is_global_zero:
        write_text(folder.experiment, resolved)
        if start is not None:
            start.keep_copy(folder)
    batches = run_batches(experiment, data, rank=trainer.global_rank, num_processes=trainer.world_size, say=log.line)
    model = build_model(experiment, data, start.trained if start else None)
    for line in start_summary(start, data, model.scale.dtype) if start else ():
        log.line(line)
    steps_per_epoch = batches.steps_per_epoch
    for line in (*data_summary(data), *model_summary(experiment, model), batch_summary(experiment, batches)):
        log.line(line)
    if not experiment.potential.is_closed_form:
        log.line(formula(training.widest_loss))
    task = build_task(experiment, data, model, trainer, steps_per_epoch=steps_per_epoch)
    keeper = RunKeeper(
        training,
        folder.path,
        experiment=resolved,
        length=json.dumps(length_of(experiment)),
        stop_signal=stop_signal,
        end_of_job=end_time(os.environ),
    )
    keeper.metrics.tell = log.line
    go_on(folder, trainer, task, keeper, log)
    return Run(experiment, resolved, folder, data, DataModule(batches), task, keeper, trainer, log)


def build_task(
    experiment: Experiment, data: PreparedData, model: EnergyModel, trainer: pl.Trainer, *, steps_per_epoch: int
) -> TrainingTask:
    """The training of a model by a run's loss, with what compiles its steps."""
    training, runtime = experiment.training, experiment.runtime
    total_steps = total_steps_of(experiment, steps_per_epoch)
    refusal = reason_not_to_compile(runtime, trainer.strategy.root_device)
    compiler = StepCompiler(
        model,
        training.widest_loss,
        mode=runtime.compile,
        total_steps=total_steps,
        refusal=refusal,
        beside=trainer.local_rank == 0,
    )
    return TrainingTask(
        model,
        training,
        compiler,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        num_subsets=len(data.structures.subset_names),
        num_processes=trainer.world_size,
        is_first_process=trainer.is_global_zero,
        scaled_gradients=runtime.precision == "16-mixed",
    )


def go_on(folder: RunFolder, trainer: pl.Trainer, task: TrainingTask, keeper: RunKeeper, log: RunLog) -> None:
    """Continue from the last good checkpoint, if there is one."""
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


def measure_precision(run: Run) -> ForceDifference | None:
    """Forces of the model as it is now against float64, in the log; None where all is float64."""
    runtime, model = run.experiment.runtime, run.task.model
    if model.scale.dtype == torch.float64:
        return None
    batch = run.module.batches.sample(PRECISION_STRUCTURES).to(model.scale.device)
    found = force_difference(model, batch, precision=runtime.precision, matmul=runtime.matmul_precision)
    run.log.line(difference_in_words(found))
    return found
