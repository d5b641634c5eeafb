"""The loss terms of dipoles, quadrupoles and partial charges, written out structure by structure in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_structures import batch_of, cluster, crystal, labelled, with_charges
from tolerances import FINITE_DIFFERENCE

from modelforge.atoms.graph import Batch, Prediction, Reach
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training.eager_step import EagerStep
from modelforge.training.ledger import formula
from modelforge.training.loss import TERMS, LossSection, term_counts, term_sums, term_values, weights_of

RELATIVE = 1e-12
CUTOFF = 3.0
SIZES = (4, 3, 5, 2, 1)
ATOMS = [
    with_charges(labelled(make(num, (1, 6, 8), seed=num), seed=num), seed=num)
    for num, make in zip(SIZES, (cluster, cluster, cluster, crystal, cluster), strict=True)
]
FUNCTIONS = {
    "mse": np.square,
    "mae": np.abs,
    "huber": lambda x: np.where(np.abs(x) <= 0.3, x**2 / 2, 0.3 * np.abs(x) - 0.3**2 / 2),
}
ONLY = {"energy_weight": 0.0, "forces_weight": 0.0}
ALL = {f"{term}_weight": 1.0 for term in TERMS}


def batch_with_gaps() -> Batch:
    """One dipole, one quadrupole and two charges are missing; the crystal has charges, and no moments."""
    batch = batch_of(ATOMS, reach=Reach(CUTOFF, positions=True))
    labels = batch.labels
    dipole, quadrupole, charges = (x.clone() for x in (labels.dipole, labels.quadrupole, labels.partial_charges))
    dipole[1], quadrupole[2], charges[[0, 8]] = torch.nan, torch.nan, torch.nan
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    return replace(batch, labels=replace(labels, dipole=dipole, quadrupole=quadrupole, partial_charges=charges), weight=weight)


def prediction_for(batch: Batch) -> Prediction:
    """Random numbers; NaN where a model gives none."""
    generator = torch.Generator().manual_seed(0)
    labels = batch.labels
    like = (labels.energy, labels.forces, labels.stress, labels.dipole, labels.quadrupole, labels.partial_charges)
    prediction = Prediction(*(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in like))
    prediction.dipole[3], prediction.quadrupole[3] = torch.nan, torch.nan
    return prediction


def sums(section: LossSection, batch: Batch, prediction: Prediction) -> np.ndarray:
    return term_sums(section, prediction, batch.labels, batch.graph, batch.weight).numpy()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_term_is_its_formula(function: str):
    delta = 0.3 if function == "huber" else None
    batch, of = batch_with_gaps(), FUNCTIONS[function]
    prediction = prediction_for(batch)
    weight = batch.weight.numpy()
    errors = {name: (getattr(prediction, name) - getattr(batch.labels, name)).numpy() for name in TERMS[3:]}
    dipoles = [(s, of(errors["dipole"][s])) for s in (0, 2, 4)]
    traces = [np.trace(matrix) for matrix in errors["quadrupole"]]
    quadrupoles = [(s, of(errors["quadrupole"][s] - traces[s] / 3 * np.eye(3))) for s in (0, 1, 4)]
    owners = np.repeat(np.arange(5), SIZES)
    charges = [(owners[atom], of(errors["partial_charges"][[atom]])) for atom in range(15) if atom not in (0, 8)]
    for name, values in (("dipole", dipoles), ("quadrupole", quadrupoles), ("partial_charges", charges)):
        section = LossSection(**ONLY, **{f"{name}_weight": 2.0}, function=function, huber_delta=delta)
        numerator = sum(weight[structure] * value.sum() for structure, value in values)
        count = sum(value.size for _, value in values)
        np.testing.assert_allclose(sums(section, batch, prediction), [[numerator, count]], rtol=RELATIVE)


def test_the_trace_of_a_quadrupole_changes_nothing():
    batch = batch_with_gaps()
    prediction, section = prediction_for(batch), LossSection(**ONLY, quadrupole_weight=1.0)
    shifted = replace(batch.labels, quadrupole=batch.labels.quadrupole + 7.0 * torch.eye(3, dtype=torch.float64))
    found = sums(section, batch, prediction)
    np.testing.assert_allclose(sums(section, replace(batch, labels=shifted), prediction), found, rtol=1e-10)
    turned = replace(batch.labels, quadrupole=batch.labels.quadrupole.flip(1))
    assert abs(sums(section, replace(batch, labels=turned), prediction) - found).max() > 0.1


def test_parts_of_a_batch_have_together_the_sums_of_the_whole():
    section, whole = LossSection(**ALL), batch_of(ATOMS, reach=Reach(CUTOFF, positions=True))
    model = small_model().eval()
    expected = sums(section, whole, model(whole.graph, stress=True))
    parts = [batch_of(some, reach=model.reach) for some in (ATOMS[:2], ATOMS[2:3], ATOMS[3:])]
    found = sum(sums(section, part, model(part.graph, stress=True)) for part in parts)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    counts = sum(part.label_counts for part in parts)
    assert term_counts(section, counts).tolist() == expected[:, 1].tolist()


def small_model() -> EnergyModel:
    section = SchNetSection(name="schnet", cutoff=CUTOFF, num_features=4, num_layers=1, num_radial=4, partial_charges=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyModel(section.build((1, 6, 8))).double()


@pytest.mark.parametrize("term", TERMS[3:])
def test_the_gradient_of_a_term_is_its_finite_difference(term: str):
    model, batch = small_model().train(), batch_with_gaps()
    step = EagerStep(model, LossSection(**ONLY, **{f"{term}_weight": 1.0}))
    one = torch.ones(1, dtype=torch.float64)
    weights = dict(model.named_parameters())
    gradients = dict(zip(weights, torch.autograd.grad(step(batch, one).loss, list(weights.values())), strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in weights.items()}
    losses = []
    for sign in (1.0, -2.0):
        for name, weight in weights.items():
            weight.data += sign * 1e-5 * direction[name]
        losses.append(float(step(batch, one).loss.detach()))
    expected = (losses[0] - losses[1]) / 2e-5
    found = sum(float((gradients[name] * direction[name]).sum()) for name in weights)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=FINITE_DIFFERENCE)


def test_terms_without_any_label_are_zero_with_zero_gradients():
    unlabelled = [cluster(4, (1, 6), seed=0), crystal(3, (1, 6), seed=1)]
    model = small_model().train()
    batch = batch_of(unlabelled, reach=model.reach)
    prediction = model(batch.graph, stress=True)
    values = term_values(term_sums(LossSection(**ALL), prediction, batch.labels, batch.graph))
    assert values.tolist() == [0.0] * 6
    for gradient in torch.autograd.grad(values.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True):
        assert (gradient == 0).all()


def test_charges_alone_need_no_derivative_and_every_weight_has_a_gradient():
    """A weight without one would fail with several processes."""
    model, batch = small_model().train(), batch_with_gaps()
    section = LossSection(**ONLY, dipole_weight=1.0)
    assert not section.needs_derivatives
    result = EagerStep(model, section)(batch, torch.ones(1, dtype=torch.float64))
    assert result.prediction.forces.isnan().all()
    result.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_formula_names_the_terms_and_their_units():
    text = formula(LossSection(**ONLY, dipole_weight=1.0, quadrupole_weight=2.0, partial_charges_weight=3.0))
    assert text == (
        "loss = w_dipole mean(square(dD)) over components + w_quadrupole mean(square(dQ)) over components without trace + "
        "w_partial_charges mean(square(dq)) over atoms (eV, angstrom, e)"
    )
    assert formula(LossSection(forces_weight=0.0)).endswith("(eV, angstrom)")
    assert list(weights_of(LossSection(**ALL))) == list(TERMS)
