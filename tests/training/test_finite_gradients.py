"""A training step on structures where derivatives tend to break: loss and weight gradients stay finite, whatever the loss."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from made_structures import batch_of, cluster, labelled
from torch import Tensor

from modelforge.atoms.graph import Batch, Labels, tensors_of
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.section import Section
from modelforge.training.eager_step import EagerStep, StepResult, scales_of
from modelforge.training.loss import LossSection, weights_of

CUTOFF = 3.5
SMALL = {"cutoff": CUTOFF, "num_features": 8, "num_filters": 6, "num_layers": 2, "num_radial": 5, "avg_num_neighbors": 5.0}
ELEMENTS = (1, 6, 8)
POTENTIALS: tuple[type[Section], ...] = get_args(get_args(PotentialSection)[0])
LOSSES = {
    f"{function}-{energy_error}-{forces_mean}": LossSection(
        function=function, energy_error=energy_error, forces_mean=forces_mean, stress_weight=1.0
    )
    for function in ("mse", "mae", "huber")
    for energy_error in ("over_atoms", "per_atom", "total")
    for forces_mean in ("structure", "component")
}
CASES = {
    "an isolated atom": Atoms("O"),
    "an isolated atom in a cell": Atoms("O", cell=[20, 20, 20], pbc=True),
    "a dimer at the cutoff": Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF]]),
    "a dimer just inside": Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF * (1 - 1e-9)]]),  # in float32: at it, with an edge
    "a perfect crystal": bulk("C", "diamond", a=3.57),
    "atoms nearly in one place": Atoms("CO", positions=[[0, 0, 0], [0, 0, 0.1]]),
}


@pytest.fixture(params=POTENTIALS, ids=lambda section: get_args(section.model_fields["name"].annotation)[0])
def section(request) -> type[Section]:
    return request.param


def build(section: type[Section], dtype: torch.dtype) -> EnergyModel:
    options = {name: value for name, value in SMALL.items() if name in section.model_fields}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyModel(section(name=get_args(section.model_fields["name"].annotation)[0], **options).build(ELEMENTS)).to(
            dtype
        )


def batch(atoms: list[Atoms], dtype: torch.dtype) -> Batch:
    return batch_of([labelled(one, seed=seed) for seed, one in enumerate(atoms)], cutoff=CUTOFF, dtype=dtype)


def labelled_by(model: EnergyModel, sample: Batch) -> Batch:
    """The batch with the model's own predictions, bit by bit, as labels."""
    prediction = model(sample.graph, stress=True)
    return replace(sample, labels=Labels(*(tensor.detach() for tensor in tensors_of(prediction))))


def step(model: EnergyModel, loss: LossSection, sample: Batch) -> tuple[StepResult, list[Tensor]]:
    """A training step and its weight gradients."""
    weights = torch.tensor(list(weights_of(loss).values()), dtype=model.scale.dtype)
    result = EagerStep(model.train(), loss)(sample, scales_of(model, loss, weights, sample.label_counts))
    gradients = torch.autograd.grad(result.loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return result, list(gradients)


def not_finite(model: EnergyModel, sample: Batch) -> Iterator[str]:
    """Losses of the table, and their weights, that are not finite."""
    for name, loss in LOSSES.items():
        result, gradients = step(model, loss, sample)
        if not result.loss.isfinite():
            yield f"{name}: {float(result.loss.detach())}"
        named = zip(model.named_parameters(), gradients, strict=True)
        yield from (f"{name}: {weight}" for (weight, _), gradient in named if not gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_finite(section, case, dtype):
    """The hard case alone, and among others, which must not hide it."""
    for atoms in ([CASES[case]], [cluster(5, ELEMENTS, seed=0), CASES[case], bulk("C", "sc", a=1.9)]):
        model = build(section, dtype)
        assert list(not_finite(model, batch(atoms, dtype))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_loss_and_gradients_are_finite_where_nothing_is_wrong(section, dtype):
    """Labels are the predictions: the loss is zero, and a root or a norm of the errors would have no derivative."""
    model = build(section, dtype)
    sample = labelled_by(model.train(), batch([*CASES.values(), cluster(5, ELEMENTS, seed=0)], dtype))
    assert list(not_finite(model, sample)) == []
    for loss in LOSSES.values():
        result, gradients = step(model, loss, sample)
        assert float(result.loss.detach()) == 0.0
        assert all((gradient == 0).all() for gradient in gradients)


def test_the_perfect_crystal_has_no_forces_and_a_dimer_has_edges_at_the_cutoff(section):
    """Else the cases above were not those that they are called."""
    model = build(section, torch.float64)
    assert model(batch([CASES["a perfect crystal"]], torch.float64).graph).forces.abs().max() < 1e-12
    assert batch([CASES["a dimer at the cutoff"]], torch.float64).graph.num_edges == 0
    assert batch([CASES["a dimer just inside"]], torch.float32).graph.edge_vectors.norm(dim=1).tolist() == [CUTOFF, CUTOFF]
