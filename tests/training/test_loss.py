"""The loss against its formulas, written out structure by structure in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled
from pydantic import ValidationError

from modelforge.atoms.graph import Batch, Labels, Prediction
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection, atoms_per_structure, term_sums, term_values, weights_of

RELATIVE = 1e-12
ATOMS = [
    labelled(cluster(4, (1, 6, 8), seed=0), seed=1),
    labelled(crystal(3, (1, 6), seed=2), seed=3),
    labelled(Atoms("O"), seed=4),
    labelled(crystal(2, (6, 8), seed=5), seed=6),
]
ALL_TERMS = {"energy_weight": 1.0, "forces_weight": 1.0, "stress_weight": 1.0}


def batch_with_gaps() -> Batch:
    """Labels are missing for one energy, all forces of one structure, one atom, one component, and one stress."""
    batch = batch_of(ATOMS, cutoff=3.0)
    energy, forces, stress = batch.labels.energy.clone(), batch.labels.forces.clone(), batch.labels.stress.clone()
    energy[1] = torch.nan
    forces[7] = torch.nan  # the isolated atom
    forces[0] = torch.nan
    forces[5, 2] = torch.nan
    stress[3] = torch.nan
    return replace(batch, labels=Labels(energy, forces, stress))


def prediction_for(batch: Batch) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    energy, forces, stress = (
        torch.randn(like.shape, generator=generator, dtype=like.dtype)
        for like in (batch.labels.energy, batch.labels.forces, batch.labels.stress)
    )
    return Prediction(energy, forces, torch.where(batch.graph.volume.isfinite()[:, None, None], stress, torch.nan))


def terms(section: LossSection, prediction: Prediction, batch: Batch) -> np.ndarray:
    return term_values(term_sums(section, prediction, batch.labels, batch.graph)).numpy()


def by_structure(batch: Batch, prediction: Prediction) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Number of atoms, energy error (), forces errors (N_s, 3) and virial errors (3, 3); NaN where there is no label."""
    energy = (prediction.energy - batch.labels.energy).numpy()
    forces = (prediction.forces - batch.labels.forces).numpy()
    stress = (prediction.stress - batch.labels.stress).numpy()
    found, start = [], 0
    for place, atoms in enumerate(ATOMS):
        virial = stress[place] * (atoms.get_volume() if atoms.pbc.all() else np.nan)
        found.append((len(atoms), energy[place], forces[start : start + len(atoms)], virial))
        start += len(atoms)
    return found


def huber(error: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(error)
    return np.where(size <= delta, size**2 / 2, delta * size - delta**2 / 2)


FUNCTIONS = {"mse": np.square, "mae": np.abs, "huber": lambda error: huber(error, 0.3)}


@pytest.mark.parametrize("energy_error", ["over_atoms", "per_atom", "total"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_energy_term_is_its_formula(function: str, energy_error: str):
    section = LossSection(
        function=function, energy_error=energy_error, forces_weight=0, huber_delta=0.3 if function == "huber" else None
    )
    batch = batch_with_gaps()
    prediction = prediction_for(batch)
    power = {"over_atoms": 0.5, "per_atom": 1.0, "total": 0.0}[energy_error]
    values = [
        FUNCTIONS[function](error / num**power) for num, error, _, _ in by_structure(batch, prediction) if np.isfinite(error)
    ]
    assert len(values) == 3
    assert terms(section, prediction, batch) == pytest.approx([np.mean(values)], rel=RELATIVE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_forces_term_is_the_mean_over_structures_of_the_mean_over_their_components(function: str):
    section = LossSection(energy_weight=0, function=function, huber_delta=0.3 if function == "huber" else None)
    batch = batch_with_gaps()
    prediction = prediction_for(batch)
    values = [
        np.nanmean(FUNCTIONS[function](errors))
        for _, _, errors, _ in by_structure(batch, prediction)
        if np.isfinite(errors).any()
    ]
    assert len(values) == 3
    assert terms(section, prediction, batch) == pytest.approx([np.mean(values)], rel=RELATIVE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_forces_term_may_be_the_mean_over_all_components(function: str):
    section = LossSection(
        energy_weight=0, forces_mean="component", function=function, huber_delta=0.3 if function == "huber" else None
    )
    batch = batch_with_gaps()
    prediction = prediction_for(batch)
    errors = np.concatenate([errors for _, _, errors, _ in by_structure(batch, prediction)])
    assert np.isnan(errors).sum() == 3 + 3 + 1
    expected = np.nanmean(FUNCTIONS[function](errors))
    assert terms(section, prediction, batch) == pytest.approx([expected], rel=RELATIVE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_stress_term_is_the_virial_over_the_root_of_the_number_of_atoms(function: str):
    section = LossSection(
        energy_weight=0, forces_weight=0, stress_weight=1, function=function, huber_delta=0.3 if function == "huber" else None
    )
    batch = batch_with_gaps()
    prediction = prediction_for(batch)
    errors = [virial / np.sqrt(num) for num, _, _, virial in by_structure(batch, prediction)]
    expected = np.nanmean(FUNCTIONS[function](np.array(errors)))
    assert terms(section, prediction, batch) == pytest.approx([expected], rel=RELATIVE)


def test_the_default_is_the_formula_of_the_original_project():
    batch = batch_of(ATOMS, cutoff=3.0)
    prediction = prediction_for(batch)
    section = LossSection()
    expected = np.mean(
        [
            1.0 * energy**2 / num + 100.0 * (forces**2).sum() / (3 * num)
            for num, energy, forces, _ in by_structure(batch, prediction)
        ]
    )
    weighted = (terms(section, prediction, batch) * list(weights_of(section).values())).sum()
    assert weighted == pytest.approx(expected, rel=RELATIVE)


def test_the_default_delta_of_huber_is_a_tenth():
    batch = batch_of(ATOMS, cutoff=3.0)
    prediction = prediction_for(batch)
    usual, stated = LossSection(function="huber"), LossSection(function="huber", huber_delta=0.1)
    np.testing.assert_array_equal(terms(usual, prediction, batch), terms(stated, prediction, batch))


def test_sums_of_two_batches_give_the_value_of_both_together():
    """Means of batches would not; validation relies on it."""
    whole = batch_with_gaps()
    section = LossSection(**ALL_TERMS)
    zero = Prediction(*(torch.zeros_like(x) for x in (whole.labels.energy, whole.labels.forces, whole.labels.stress)))
    parts = []
    for chosen in ([0, 1, 2], [3]):
        batch = batch_of([ATOMS[place] for place in chosen], cutoff=3.0)
        atoms = torch.isin(whole.graph.structure_index, torch.tensor(chosen))
        labels = Labels(whole.labels.energy[chosen], whole.labels.forces[atoms], whole.labels.stress[chosen])
        prediction = Prediction(zero.energy[chosen], zero.forces[atoms], zero.stress[chosen])
        parts.append(term_sums(section, prediction, labels, batch.graph))
    together = term_sums(section, zero, whole.labels, whole.graph)
    torch.testing.assert_close(parts[0] + parts[1], together, rtol=RELATIVE, atol=0)


def test_what_a_masked_prediction_says_changes_nothing():
    section, batch = LossSection(**ALL_TERMS), batch_with_gaps()
    one = prediction_for(batch)
    wild = [
        torch.where(label.isnan(), torch.full_like(label, 1e30), value)
        for value, label in zip(
            (one.energy, one.forces, one.stress), (batch.labels.energy, batch.labels.forces, batch.labels.stress), strict=True
        )
    ]
    np.testing.assert_array_equal(terms(section, Prediction(*wild), batch), terms(section, one, batch))


def test_terms_without_any_label_are_zero_with_zero_gradients():
    batch = batch_of([cluster(4, (1, 6), seed=0), crystal(3, (1, 6), seed=1)], cutoff=3.0)
    model = small_model().train()
    prediction = model(batch.graph, stress=True)
    values = term_values(term_sums(LossSection(**ALL_TERMS), prediction, batch.labels, batch.graph))
    assert values.tolist() == [0.0, 0.0, 0.0]
    for gradient in torch.autograd.grad(values.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True):
        assert (gradient == 0).all()


def small_model() -> EnergyModel:
    section = SchNetSection(name="schnet", cutoff=3.0, num_features=4, num_layers=1, num_radial=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyModel(section.build((1, 6, 8))).double()


def test_doubling_a_weight_doubles_its_part():
    batch = batch_of(ATOMS, cutoff=3.0)
    step = EagerStep(small_model().train(), LossSection(**ALL_TERMS))
    base = step(batch, torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64))
    for place in range(3):
        weights = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
        weights[place] *= 2
        more = step(batch, weights)
        part = weights[place] / 2 * base.sums[place, 0]
        assert part > 0
        torch.testing.assert_close((more.loss - base.loss).detach(), part, rtol=1e-9, atol=0)
        torch.testing.assert_close(more.sums, base.sums)


@pytest.mark.parametrize(
    ("weights", "num_derivatives"),
    [
        ({"energy_weight": 1.0, "forces_weight": 0.0}, 0),
        ({"energy_weight": 1.0, "forces_weight": 1.0}, 1),
        ({"energy_weight": 0.0, "forces_weight": 1.0, "stress_weight": 1.0}, 1),
    ],
)
def test_a_weight_of_zero_computes_no_derivative(weights: dict[str, float], num_derivatives: int, monkeypatch):
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(args) or real(*args, **options))
    section = LossSection(**weights)
    result = EagerStep(small_model().train(), section)(
        batch_of(ATOMS, cutoff=3.0), torch.ones(len(weights_of(section)), dtype=torch.float64)
    )
    assert len(calls) == num_derivatives
    assert len(result.sums) == len(weights_of(section))
    assert result.prediction.forces.isnan().all() == (weights["forces_weight"] == 0)


def test_the_number_of_atoms_of_each_structure():
    assert atoms_per_structure(batch_of(ATOMS, cutoff=3.0).graph).tolist() == [4, 3, 1, 2]
    assert atoms_per_structure(batch_of(ATOMS[:1], cutoff=3.0).graph).tolist() == [4]


def test_a_loss_that_trains_nothing_or_ignores_an_option_is_a_mistake():
    with pytest.raises(ValidationError, match="all weights are 0"):
        LossSection(energy_weight=0, forces_weight=0)
    with pytest.raises(ValidationError, match="has no effect with function"):
        LossSection(huber_delta=0.1)
