"""The loss ledger: shares of the gradient against gradients of each term alone, and the formula in words."""

import math

import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled

from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training.eager_step import EagerStep
from modelforge.training.ledger import formula, gradient_norms, ledger
from modelforge.training.loss import LossSection

ATOMS: list[Atoms] = [labelled(cluster(5, (1, 8), seed=0), seed=1), labelled(crystal(4, (1, 8), seed=2), seed=3)]
LOSS = LossSection(energy_weight=2, forces_weight=30, stress_weight=1)


def small_model() -> EnergyModel:
    torch.manual_seed(0)
    section = SchNetSection(name="schnet", cutoff=3.0, num_features=8, num_layers=1, num_radial=6)
    return EnergyModel(section.build((1, 8))).double().train()


def test_gradient_norms_are_those_of_each_term_alone():
    batch, model = batch_of(ATOMS, cutoff=3.0), small_model()
    scales = torch.tensor([2.0, 30.0, 1.0], dtype=torch.float64)
    found = gradient_norms(EagerStep(model, LOSS), batch, scales)
    for place, term in enumerate(("energy", "forces", "stress")):
        only = LossSection(**{f"{name}_weight": float(name == term) for name in ("energy", "forces", "stress")})
        model.zero_grad()
        EagerStep(model, only)(batch, scales[place : place + 1]).loss.backward()
        expected = math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.parameters() if weight.grad is not None))
        assert float(found[place]) == pytest.approx(expected, rel=1e-10)


def test_an_entry_has_value_weight_product_and_share():
    energy, forces, stress = ledger(LOSS, [0.5, 0.25, 4.0], [2.0, 30.0, 0.0], [1.0, 3.0, 0.0])
    assert energy.row() == {
        "loss/energy_raw": 0.5,
        "loss/energy_weight": 2.0,
        "loss/energy_weighted": 1.0,
        "loss/energy_gradient_share": 0.25,
    }
    assert forces.in_words() == "forces 0.25 x 30 = 7.5, 75 % of the gradient"
    assert stress.gradient_share == 0


def test_without_any_gradient_there_are_no_shares():
    assert [entry.gradient_share for entry in ledger(LOSS, [0.0] * 3, [1.0] * 3, [0.0] * 3)] == [None] * 3


def test_the_formula_names_terms_functions_and_means():
    assert formula(LossSection()) == (
        "loss = w_energy mean(square(dE / sqrt(N))) over structures + "
        "w_forces mean(square(dF)) over components of a structure, then over structures (eV, angstrom)"
    )
    other = LossSection(function="huber", energy_error="per_atom", forces_mean="component", stress_weight=1)
    assert "huber_0.1(dE / N)" in formula(other)
    assert "over all components + w_stress mean(huber_0.1(V dS / sqrt(N)))" in formula(other)
