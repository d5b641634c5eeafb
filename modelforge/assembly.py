"""What an experiment amounts to before anything is trained: the model with its first weights, batches, number of steps."""

import torch

from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.prepare import PreparedData
from modelforge.data.store.prepared_once import Say, silent
from modelforge.experiment import Experiment
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.runtime import dtype_of


def build_model(experiment: Experiment, data: PreparedData) -> EnergyModel:
    """The model with random weights, from their own random stream: how the data were split does not change them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.runtime.seed)
        potential = experiment.potential.build(data.elements)
        return EnergyModel(potential, scale=data.scale).to(dtype_of(experiment.runtime))


def total_steps_of(experiment: Experiment, steps_per_epoch: int) -> int:
    """Batches until the run ends, if nothing ends it before."""
    training = experiment.training
    by_epochs = training.max_epochs * steps_per_epoch
    if training.max_steps is None:
        return by_epochs
    # Batches are summed up from one validation to the next; the last optimizer step before one may have fewer of them.
    stretch, accumulated = training.validation_interval(steps_per_epoch), training.accumulate_batches
    whole, rest = divmod(training.max_steps, -(-stretch // accumulated))
    return min(by_epochs, whole * stretch + rest * accumulated)


def run_batches(
    experiment: Experiment, data: PreparedData, *, rank: int = 0, num_processes: int = 1, say: Say = silent
) -> RunBatches:
    """Batches of the data for one of several processes."""
    training = experiment.training
    return RunBatches(
        data,
        reach=experiment.potential.reach,
        dtype=dtype_of(experiment.runtime),
        batch_size=training.batch_size,
        max_edges=training.max_edges,
        max_atoms=training.max_atoms,
        evaluation_batch_size=training.evaluation_batch_size,
        seed=experiment.runtime.seed,
        rank=rank,
        num_processes=num_processes,
        accumulate=training.accumulate_batches,
        say=say,
    )
