"""What an experiment amounts to before anything is trained: the model with its first weights, and the number of steps."""

import torch

from modelforge.data.prepare import PreparedData
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
    by_steps = training.max_steps * training.accumulate_batches if training.max_steps else by_epochs
    return min(by_epochs, by_steps)
