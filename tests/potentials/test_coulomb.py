"""The Coulomb energies against sums over pairs and images written out, and as a part of the energy that is trained."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled, structures_of
from pydantic import TypeAdapter, ValidationError
from tolerances import CUTOFF_MARGIN, FINITE_DIFFERENCE, JUMP, STEP

from modelforge.atoms.graph import Reach
from modelforge.data.batching.batches import structure_table
from modelforge.errors import UserError
from modelforge.potentials.coulomb import COULOMB, CoulombFields, CoulombSection, DampedCoulomb, SwitchedCoulomb
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection

ELEMENTS = (1, 6, 8)
ALL_PAIRS = [DampedCoulomb(length=5.0), SwitchedCoulomb(length=2.5)]
WITH_CUTOFF = [DampedCoulomb(length=5.0, cutoff=6.0), SwitchedCoulomb(length=2.5, cutoff=2.5)]
KIND = [section.name for section in ALL_PAIRS]


def chi(section: CoulombFields, r: float) -> float:
    """Of the papers."""
    if isinstance(section, DampedCoulomb):
        x = 2 * r / section.length
        phi = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3 if x < 1 else 0.0
        return phi / math.sqrt(r * r + 1) + (1 - phi) / r
    y = r / section.length
    return (1 - math.exp(1 - 1 / (1 - y * y))) / r if y < 1 else 1 / r


def energy_of(section: CoulombFields, charges: np.ndarray, atoms: Atoms) -> float:
    """Half the sum over all pairs of atoms and images closer than the cutoff."""
    cutoff = section.cutoff or math.inf
    images = list(product(range(-4, 5), repeat=3)) if atoms.pbc.all() else [(0, 0, 0)]
    energy = 0.0
    for i, j in product(range(len(atoms)), repeat=2):
        for image in images:
            r = float(np.linalg.norm(atoms.positions[j] - atoms.positions[i] + np.array(image) @ atoms.cell.array))
            if 0 < r < cutoff:
                shift = -2 / cutoff + r / cutoff**2 if section.cutoff else 0.0
                energy += 0.5 * COULOMB * charges[i] * charges[j] * (chi(section, r) + shift)
    return energy


def charges_of(atoms: Atoms) -> np.ndarray:
    return np.random.default_rng(5).normal(size=len(atoms))


def found(section: CoulombFields, *all_atoms: Atoms) -> torch.Tensor:
    graph = batch_of(all_atoms, reach=Reach(1.0, far_cutoff=section.far_cutoff)).graph
    return section.energies(torch.cat([torch.from_numpy(charges_of(atoms)) for atoms in all_atoms]), graph)


MOLECULES = [cluster(9, ELEMENTS, seed=1), Atoms("O"), Atoms("CO", positions=[[0, 0, 0], [0, 0, 30.0]])]


def test_the_constant_is_that_of_two_elementary_charges_at_an_angstrom():
    assert pytest.approx(1.602176634e-19 / (4 * math.pi * 8.8541878128e-12) * 1e10, rel=1e-9) == COULOMB


@pytest.mark.parametrize("section", ALL_PAIRS, ids=KIND)
def test_all_pairs_of_molecules_count(section):
    expected = [energy_of(section, charges_of(atoms), atoms) for atoms in MOLECULES]
    assert found(section, *MOLECULES).tolist() == pytest.approx(expected, rel=1e-12)
    assert abs(expected[2]) > 1e-2  # 30 angstrom apart


@pytest.mark.parametrize("section", WITH_CUTOFF, ids=KIND)
def test_with_a_cutoff_all_images_within_it_count(section):
    atoms = crystal(5, ELEMENTS, seed=2)
    assert atoms.cell.lengths().max() < section.cutoff or section.name == "switched"
    expected = [energy_of(section, charges_of(one), one) for one in (atoms, *MOLECULES)]
    assert found(section, atoms, *MOLECULES).tolist() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("section", ALL_PAIRS + WITH_CUTOFF, ids=[*KIND, *(f"{kind} to a cutoff" for kind in KIND)])
def test_value_and_slope_never_jump(section):
    """Where the damping ends, and at the cutoff."""
    for place in {section.plain_from, section.cutoff or section.plain_from}:
        distances = [place + n * CUTOFF_MARGIN for n in (-1, 0, 1)]
        dimers = [Atoms("CO", positions=[[0, 0, 0], [0, 0, r]]) for r in distances]
        charges = charges_of(dimers[0])
        low, middle, high = (found(section, *dimers) / (COULOMB * charges[0] * charges[1])).tolist()
        assert abs(high - low) < 3 * CUTOFF_MARGIN
        assert abs((high - middle) - (middle - low)) / CUTOFF_MARGIN < 100 * JUMP
    if section.cutoff:
        assert abs(middle) < JUMP


def schnet_with(section: CoulombFields) -> EnergyModel:
    torch.manual_seed(0)
    options = {"num_features": 6, "num_layers": 1, "num_radial": 5, "cutoff": 2.0}
    carried = {"partial_charges": True, "coulomb": section}
    model = EnergyModel(SchNetSection(name="schnet", **options, **carried).build(ELEMENTS), scale=0.1).double()
    model.charges.network[2].weight.data *= 10.0  # so that charges are large
    return model


@pytest.mark.parametrize("section", ALL_PAIRS + WITH_CUTOFF, ids=[*KIND, *(f"{kind} to a cutoff" for kind in KIND)])
def test_forces_are_the_slopes_of_an_energy_with_coulomb(section):
    """Charges depend on positions: their derivatives are a part of the forces."""
    model, atoms = schnet_with(section).eval(), cluster(6, ELEMENTS, seed=3)
    atoms.info["total_charge"] = 1.0
    moved = []
    for step in STEP * np.eye(18).reshape(18, 6, 3):
        for sign in (1, -1):
            moved.append(atoms.copy())
            moved[-1].positions += sign * step
    energies = model(batch_of(moved, reach=model.reach).graph, forces=False).energy.reshape(18, 2)
    slopes = ((energies[:, 0] - energies[:, 1]) / (2 * STEP)).reshape(6, 3)
    graph = batch_of([atoms], reach=model.reach).graph
    forces = model(graph).forces
    assert float((forces + slopes).abs().max()) < FINITE_DIFFERENCE * float(forces.abs().max())
    model.coulomb = None
    assert float((model(graph).forces - forces).abs().max()) > 0.1, "no Coulomb forces, so this could not fail"


@pytest.mark.parametrize("section", [ALL_PAIRS[0], WITH_CUTOFF[1]], ids=["damped", "switched to a cutoff"])
def test_charges_learn_from_labels_of_energies_and_forces(section):
    """Gradients of the weights of the charges, by finite differences."""
    model = schnet_with(section).train()
    batch = batch_of([labelled(cluster(5, ELEMENTS, seed=4), seed=0), labelled(Atoms("O"), seed=1)], reach=model.reach)
    step = EagerStep(model, LossSection())
    weights = list(model.charges.parameters())
    gradients = torch.autograd.grad(step(batch, torch.ones(2)).loss, weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn_like(weight)
        losses = []
        for sign in (1, -2):
            weight.data += sign * STEP * direction
            losses.append(float(step(batch, torch.ones(2)).loss.detach()))
        weight.data += STEP * direction
        slope = (losses[0] - losses[1]) / (2 * STEP)
        # The bias of the last layer alone does nothing: it is shared out again.
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-2


def test_periodic_structures_need_a_cutoff():
    with pytest.raises(UserError, match=r"made\.xyz.*is periodic.*potential\.coulomb\.cutoff"):
        structure_table(
            structures_of([crystal(3, ELEMENTS, seed=0)]),
            reach=Reach(2.0, far_cutoff=ALL_PAIRS[0].far_cutoff),
            self_energies=np.zeros(119),
            dtype=torch.float64,
        )


@pytest.mark.parametrize(("name", "length", "from_where"), [("damped", 10.0, "5"), ("switched", 5.0, "5")])
def test_a_cutoff_where_charges_are_still_damped_is_refused(name, length, from_where):
    section = TypeAdapter(CoulombSection)
    assert section.validate_python({"name": name, "length": length, "cutoff": 5.0}).far_cutoff == 5.0
    with pytest.raises(ValidationError, match=f"cutoff: must not be below {from_where}, .* \\(got 4.9\\)"):
        section.validate_python({"name": name, "length": length, "cutoff": 4.9})
    assert math.isinf(section.validate_python({"name": name}).far_cutoff)
