"""`train(experiment)`: assemble, fit, test, report, all of it in a run folder.

The same call starts a run, resumes it after any interruption, or finds it finished.
"""

import json
import resource
import statistics
import sys
from dataclasses import dataclass
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
from modelforge.evaluate import evaluate, write_predictions
from modelforge.experiment import Experiment, LoadedExperiment, resolved_toml
from modelforge.files import write_text
from modelforge.model_file import FILE_NAME, TrainedPotential, save_potential
from modelforge.report import batch_summary, data_report, data_summary, error_table, model_summary
from modelforge.run_folder import RunFolder, length_of
from modelforge.training.checkpoint import latest_checkpoint, load_checkpoint
from modelforge.training.compilation import StepCompiler
from modelforge.training.display import LiveBar, PlainLines, RunLog, duration
from modelforge.training.keeper import NotFinite, RunKeeper, next_stretch, num_stretches
from modelforge.training.listener import Listener
from modelforge.training.loss import weights_of
from modelforge.training.task import TrainingTask
from modelforge.training.trainer import build_trainer, reason_not_to_compile

MOST_PLACES = 8  # structures that a message names

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


def train(loaded: LoadedExperiment, console: Console) -> Results:
    """Train, test and report; gives the results, which are also in the run folder's results.json."""
    experiment = loaded.experiment
    folder = RunFolder(Path(experiment.runtime.run_folder))
    folder.refuse_other_experiment(experiment)
    if (results := folder.finished_results(experiment)) is not None:
        console.print(f"This run is finished: {folder.path}", markup=False, highlight=False, soft_wrap=True)
        console.print(error_table(results))
        return results
    folder.create()
    trainer = build_trainer(experiment.runtime, experiment.training, folder=str(folder.path))
    # Every process of a run comes through here; the first one speaks for all.
    log = RunLog(console, folder.log) if trainer.is_global_zero else RunLog(Console(quiet=True), None)
    try:
        run = set_up(loaded, folder, trainer, log)
        fit(run)
        return finish(run) if trainer.is_global_zero else {}
    finally:
        log.close()


def set_up(loaded: LoadedExperiment, folder: RunFolder, trainer: pl.Trainer, log: RunLog) -> Run:
    """Data, model, task and keeper, as they were where a run resumes."""
    experiment = loaded.experiment
    training, runtime = experiment.training, experiment.runtime
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    log.line(f"modelforge {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads", style="dim")
    data = prepare(experiment.dataset, weights=weights_of(training.loss), split_file=folder.split, say=log.line)
    resolved = resolved_toml(experiment, loaded.origins)
    write_text(folder.experiment, resolved)
    batches = run_batches(experiment, data, rank=trainer.global_rank, num_processes=trainer.world_size, say=log.line)
    model = build_model(experiment, data)
    steps_per_epoch = batches.steps_per_epoch
    for line in (*data_summary(data), *model_summary(experiment, model), batch_summary(experiment, batches)):
        log.line(line)
    total_steps = total_steps_of(experiment, steps_per_epoch)
    refusal = reason_not_to_compile(runtime, trainer.strategy.root_device)
    compiler = StepCompiler(model, training.loss, mode=runtime.compile, total_steps=total_steps, refusal=refusal)
    task = TrainingTask(
        model,
        training,
        compiler,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        num_subsets=len(data.structures.subset_names),
        scaled_gradients=runtime.precision == "16-mixed",
    )
    keeper = RunKeeper(training, folder.path, experiment=resolved, length=json.dumps(length_of(experiment)))
    if (latest := latest_checkpoint(folder.last_checkpoint, folder.previous_checkpoint)) is not None:
        checkpoint, damage = latest
        if damage:
            log.line(f"note: {damage}; the run goes on from {folder.previous_checkpoint}, the one before")
        task.restore(checkpoint["task"])
        keeper.restore(checkpoint["keeper"])
    return Run(experiment, resolved, folder, data, DataModule(batches), task, keeper, trainer, log)


def fit(run: Run) -> None:
    """Train from where the run stands to its end; `Interrupted` if a signal asks to stop."""
    task, training = run.task, run.experiment.training
    if run.keeper.has_ended or task.steps >= task.total_steps:
        return
    run.keeper.listeners, bar = _listeners(run)
    run.trainer.callbacks.append(run.keeper)  # type: ignore[attr-defined]
    run.trainer.fit_loop.max_epochs = num_stretches(task, training)
    next_stretch(run.module, task, training)
    try:
        with run.keeper.stop_signal:
            run.trainer.fit(task, datamodule=run.module)
    except NotFinite as failure:
        raise _with_batch(run, failure) from failure
    finally:
        if bar is not None:
            bar.stop()


def _with_batch(run: Run, failure: NotFinite) -> NotFinite:
    """The same failure with the structures of its batch, which are written to the run folder."""
    if failure.step is None:
        return failure
    structures = run.data.structures.take(run.module.batches.structures_of_step(failure.step))
    path = run.folder.path / f"not_finite_{run.trainer.global_rank}.extxyz"
    write_extxyz(path, structures)
    places = [structures.place(number) for number in range(len(structures))]
    named = ", ".join(places[:MOST_PLACES]) + (f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else "")
    return NotFinite(f"{failure}. The batch of that step is {named}; it is written to {path}", step=failure.step)


def finish(run: Run) -> Results:
    """Test the best weights, write the product and the results."""
    trained = best_potential(run)
    save_potential(run.folder.path / FILE_NAME, trained)
    device, training = run.task.device, run.experiment.training
    metrics: dict[str, Any] = {}
    for name, (structures, members) in run.data.evaluated_sets().items():
        structures = structures.take(members) if len(members) < len(structures) else structures
        evaluation = evaluate(
            trained,
            structures,
            batch_size=training.evaluation_batch_size,
            max_edges=training.max_edges,
            max_atoms=training.max_atoms,
            device=device,
        )
        metrics[name] = evaluation.metrics
        write_predictions(run.folder.predictions(name), structures, evaluation)
        for note in evaluation.notes:
            run.log.line(f"note: {name}: {note}")
    results = _results(run, trained, metrics)
    write_text(run.folder.results, json.dumps(results, indent=2) + "\n")
    run.log.line(f"finished: {_reason(run)} after {duration(run.keeper.state.seconds)}; tested weights: {trained.weights}")
    run.log.table(error_table(results))
    run.log.line(f"run folder: {run.folder.path}")
    return results


def best_potential(run: Run) -> TrainedPotential:
    """The potential with the best weights so far: the averaged ones where there is an average."""
    state = load_checkpoint(run.folder.best_checkpoint)["task"]
    run.task.model.load_state_dict({**state["weights"], **state["averaged_weights"]})
    epoch = state["steps"] / run.task.steps_per_epoch
    kind = "EMA" if run.experiment.training.ema.decay else "raw"
    return TrainedPotential(
        model=run.task.model.eval(),
        potential=run.experiment.potential,
        dataset=run.experiment.dataset,
        self_energies=run.data.reference.self_energies,
        shifts=run.data.reference.shifts,
        experiment=run.resolved,
        weights=f"best epoch {epoch:.4g}, {kind}",
    )


def _reason(run: Run) -> str:
    """Why the training ended; a run whose length was cut down below what it has ends without a step."""
    return run.keeper.state.reason or "max_epochs reached"


def _results(run: Run, trained: TrainedPotential, metrics: dict[str, Any]) -> Results:
    speeds = run.keeper.metrics.column("structures_per_second")
    return {
        "status": "finished",
        "reason": _reason(run),
        "version": __version__,
        "epochs": run.task.steps / run.task.steps_per_epoch,
        "steps": run.task.steps,
        "num_parameters": sum(weight.numel() for weight in run.task.model.parameters()),
        "training_seconds": run.keeper.state.seconds,
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
