"""`check`: everything about an experiment that can be known without training, in seconds.

It writes nothing but the cache of large data.
"""

import shlex
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from modelforge.assembly import build_model, prepared, run_batches, total_steps_of
from modelforge.atoms.graph import Batch
from modelforge.data.batching.run_batches import RunBatches
from modelforge.experiment import Experiment, LoadedExperiment
from modelforge.potentials.energy_model import EnergyModel
from modelforge.report import batch_summary, data_summary, model_summary
from modelforge.run_folder import RunFolder
from modelforge.starting_point import prepared_for, start_summary, starting_point
from modelforge.training.eager_step import EagerStep, plain_scales
from modelforge.training.precision import matmul_precision
from modelforge.training.runtime import accelerator_of

TIMED_STEPS = 3
OVERHEAD = 1.3  # measured: optimizer, averages and metrics on top of a step
VALIDATION_COST = 1 / 3  # of a training step, per structure: no derivatives by the weights


def check(loaded: LoadedExperiment) -> Iterator[str]:
    """Lines about the run folder, the data, the model and the time that training would take; a mistake is a `UserError`."""
    experiment = loaded.experiment
    folder = RunFolder(Path(experiment.runtime.run_folder))
    folder.refuse_other_experiment(experiment)
    folder.refuse_unwritable()
    if experiment.runtime.num_threads:
        torch.set_num_threads(experiment.runtime.num_threads)
    split_file = folder.split if folder.split.exists() else None
    start = starting_point(experiment, folder)
    data = prepared(experiment, split_file=split_file)
    if start is not None:
        data = prepared_for(start, experiment, data)
    yield from data_summary(data)
    batches = run_batches(experiment, data)
    model = build_model(experiment, data, start.trained if start else None)
    if start is not None:
        yield from start_summary(start, data, model.scale.dtype)
    yield from model_summary(experiment, model)
    yield batch_summary(experiment, batches)
    if not experiment.potential.is_closed_form:
        yield _duration_line(experiment, batches, model)
    yield f"run folder: {folder.path} ({_state(folder, experiment)})"
    yield f"nothing was trained; start with: {start_command(loaded)}"


def start_command(loaded: LoadedExperiment) -> str:
    """The command that trains this experiment."""
    settings = [word for override in loaded.overrides for word in ("--set", override)]
    return shlex.join(["modelforge", "train", "--config", str(loaded.path), *settings])


def _state(folder: RunFolder, experiment: Experiment) -> str:
    if folder.finished_results(experiment) is not None:
        return "this run is finished"
    return "would go on from its last checkpoint" if folder.last_checkpoint.exists() else "would start from the beginning"


def _duration_line(experiment: Experiment, batches: RunBatches, model: EnergyModel) -> str:
    """What an epoch and the whole run would take here, eagerly and on one device."""
    device = _device(experiment)
    steps_per_epoch = batches.steps_per_epoch
    first = [batch.to(device) for batch in batches.training(0, min(1 + TIMED_STEPS, steps_per_epoch))]
    with matmul_precision(experiment.runtime.matmul_precision):
        step = OVERHEAD * seconds_per_step(experiment, first, model.to(device))
    validation = VALIDATION_COST * len(batches.validation_members) / len(batches.members) * steps_per_epoch * step
    epoch = steps_per_epoch * step + validation
    total = total_steps_of(experiment, steps_per_epoch) / steps_per_epoch * epoch
    total = min(total, experiment.training.seconds or total)
    where = f"on the CPU with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else f"on one {device.type}"
    return f"time: about {_words(epoch)} per epoch eager, about {_words(total)} in all (estimate, {where})"


def seconds_per_step(experiment: Experiment, batches: list[Batch], model: EnergyModel) -> float:
    """Median time of a training step; the first batch only warms up, if there are several."""
    loss = experiment.training.widest_loss
    step = EagerStep(model, loss)
    scales = plain_scales(model, loss)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    seconds = []
    for batch in batches:
        begun = time.perf_counter()
        torch.autograd.grad(step(batch, scales).loss, trained, allow_unused=True)
        float(model.scale)  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:] or seconds)


def _device(experiment: Experiment) -> torch.device:
    return torch.device(accelerator_of(experiment.runtime) if torch.cuda.is_available() else "cpu")


def _words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
