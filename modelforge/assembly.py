"""What an experiment amounts to before anything is trained: the model with its first weights, batches, number of steps."""

from pathlib import Path

import numpy as np
import torch

from modelforge.data.batching.edges import edges_of, refuse_endless
from modelforge.data.batching.order import EvaluationBatches
from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.prepare import PreparedData, prepare
from modelforge.data.store.prepared_once import Say, silent
from modelforge.experiment import Experiment, inputs_of
from modelforge.model_file import TrainedPotential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.freezing import freeze
from modelforge.training.loss import weights_of
from modelforge.training.runtime import dtype_of

MOST_STRUCTURES = 1000  # that a mean number of neighbours is taken of


def prepared(experiment: Experiment, *, split_file: Path | None = None, say: Say = silent) -> PreparedData:
    """The data as the loss and the potential of an experiment need them."""
    experiment.potential.refuse_missing_packages()  # before anything is read
    data = prepare(
        experiment.dataset,
        weights=weights_of(experiment.training.widest_loss),
        inputs=inputs_of(experiment.potential),
        fixed_terms=experiment.potential.fixed_terms,
        split_file=split_file,
        say=say,
    )
    reach = experiment.potential.reach
    for structures, members in data.evaluated_sets().values():  # which the training itself does not see
        for cutoff in (reach.cutoff, reach.far_cutoff):
            refuse_endless(structures, members, cutoff=cutoff)
    return data


def dtype_of_model(experiment: Experiment) -> torch.dtype:
    """The numbers of weights and labels: what is solved in closed form needs float64, whatever `runtime.precision` says."""
    return torch.float64 if experiment.potential.is_closed_form else dtype_of(experiment.runtime)


def build_model(experiment: Experiment, data: PreparedData, start: TrainedPotential | None = None) -> EnergyModel:
    """The model with random weights, or with those of a potential that it starts from; what is frozen has no gradient.

    Random weights come from their own random stream: how the data were split does not change them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.runtime.seed)
        section = start.potential if start else experiment.potential.completed(lambda: _mean_num_neighbors(experiment, data))
        potential = section.build(start.elements if start else data.elements)
        model = EnergyModel(potential, scale=data.scale).to(dtype_of_model(experiment))
    if start:
        model.load_state_dict(start.model.state_dict())
    freeze(model, experiment.training.freeze)
    return model


def _mean_num_neighbors(experiment: Experiment, data: PreparedData) -> float:
    """Of the atoms of the training set, or of an even sample of it where it is large; to six digits."""
    members = data.split.train
    sample = members[np.linspace(0, len(members) - 1, min(len(members), MOST_STRUCTURES)).astype(np.int64)]
    edges = edges_of(data.structures.take(sample), cutoff=experiment.potential.cutoff)
    return float(f"{edges.edges_of_atom.mean():.6g}") or 1.0  # atoms that are all alone have sums of nothing


def total_steps_of(experiment: Experiment, steps_per_epoch: int) -> int:
    """Batches until the run ends, if nothing ends it before."""
    training = experiment.training
    if experiment.potential.is_closed_form:
        return 0
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
        dtype=dtype_of_model(experiment),
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


def exact_batches(experiment: Experiment, data: PreparedData) -> EvaluationBatches:
    """The training set in order, in float64."""
    training = experiment.training
    batches = RunBatches(
        data,
        reach=experiment.potential.reach,
        dtype=torch.float64,
        batch_size=training.batch_size,
        evaluation_batch_size=training.evaluation_batch_size,
        seed=experiment.runtime.seed,
    )
    return EvaluationBatches(batches.table, training.evaluation_batch_size, members=batches.members)
