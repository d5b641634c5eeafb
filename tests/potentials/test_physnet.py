"""PhysNet against its equations written out atom by atom in numpy: each block, energies, charges and forces (float64)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster
from numpy.typing import NDArray
from tolerances import EXACT_SUM, FINITE_DIFFERENCE, STEP

from modelforge.nn.pairs import pairs_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.physnet import PhysNet, PhysNetSection

Array = NDArray[np.float64]
Weights = dict[str, Array]

ELEMENTS = (1, 6, 8)
CUTOFF = 3.0
COULOMB = 14.39964548  # e^2/(4 pi epsilon_0), eV angstrom (CODATA 2018)
NUM_MODULES, NUM_RADIAL = 3, 6
RESIDUALS = {"num_interaction_residuals": 2, "num_atomic_residuals": 2, "num_output_residuals": 1}
SECTION = PhysNetSection(
    name="physnet",
    cutoff=CUTOFF,
    num_features=5,
    num_layers=NUM_MODULES,
    num_radial=NUM_RADIAL,
    partial_charges=True,
    **RESIDUALS,
)
WITH_COULOMB = SECTION.model_validate({**SECTION.model_dump(), "coulomb": {"name": "damped", "length": 4.0}})
ATOMS = cluster(7, ELEMENTS, seed=2)


# The paper, atom by atom


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x)) - np.log(2.0)


def phi(r: float, cutoff: float) -> float:
    x = r / cutoff
    return 1 - 6 * x**5 + 15 * x**4 - 10 * x**3 if x < 1 else 0.0


def radial(r: float) -> Array:
    lowest = np.exp(-CUTOFF)
    centres = [rounded(lowest + k * (1 - lowest) / (NUM_RADIAL - 1)) for k in range(NUM_RADIAL)]
    beta = rounded((2 / NUM_RADIAL * (1 - lowest)) ** -2)
    return np.array([phi(r, CUTOFF) * np.exp(-beta * (np.exp(-r) - centre) ** 2) for centre in centres])


def rounded(constant: float) -> float:
    """As a network keeps its constants."""
    return float(np.float32(constant))


def layer(w: Weights, name: str, x: Array) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def residual(w: Weights, name: str, x: Array) -> Array:
    return x + layer(w, f"{name}.layers.3", softplus(layer(w, f"{name}.layers.1", softplus(x))))


def blocks(w: Weights, name: str, x: Array, num: int) -> Array:
    for n in range(num):
        x = residual(w, f"{name}.{n}", x)
    return x


def interaction(w: Weights, t: int, x: list[Array], positions: Array) -> list[Array]:
    name, width = f"interactions.{t}", len(x[0])
    new = []
    for i in range(len(x)):
        v = softplus(layer(w, f"{name}.of_receiver.0", softplus(x[i])))
        for j in range(len(x)):
            r = float(np.linalg.norm(positions[j] - positions[i]))
            if j != i and r < CUTOFF:
                filters = w["filters.weight"][t * width : (t + 1) * width] @ radial(r)
                v = v + filters * softplus(layer(w, f"{name}.of_sender.0", softplus(x[j])))
        v = blocks(w, f"{name}.residuals", v, RESIDUALS["num_interaction_residuals"])
        new.append(w[f"{name}.gate"] * x[i] + layer(w, f"{name}.output.1", softplus(v)))
    return new


def output(w: Weights, t: int, x: Array) -> Array:
    x = blocks(w, f"outputs.{t}.residuals", x, RESIDUALS["num_output_residuals"])
    return np.asarray(w[f"outputs.{t}.last.weight"] @ softplus(x))


def atomic(w: Weights, atoms: Atoms, total_charge: float) -> tuple[Array, Array]:
    """Energies and charges of the atoms."""
    rows = [ELEMENTS.index(z) for z in atoms.numbers]
    x = [w["embedding.weight"][row] for row in rows]
    y = np.zeros((len(atoms), 2))
    for t in range(NUM_MODULES):
        x = [
            blocks(w, f"residuals.{t}", one, RESIDUALS["num_atomic_residuals"]) for one in interaction(w, t, x, atoms.positions)
        ]
        y += np.array([output(w, t, one) for one in x])
    y = w["scale_of_element.weight"][rows] * y + w["shift_of_element.weight"][rows]
    return y[:, 0], y[:, 1] - (y[:, 1].sum() - total_charge) / len(atoms)


def coulomb(charges: Array, positions: Array, length: float) -> float:
    energy = 0.0
    for i in range(len(charges)):
        for j in range(i):
            r = float(np.linalg.norm(positions[j] - positions[i]))
            chi = phi(2 * r, length) / np.sqrt(r**2 + 1) + (1 - phi(2 * r, length)) / r
            energy += COULOMB * charges[i] * charges[j] * chi
    return energy


# Comparisons


def potential_of(section: PhysNetSection) -> PhysNet:
    """All weights random, also those that start at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        potential = PhysNet(section, ELEMENTS).double()
        for weight in potential.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return potential.eval()


def weights_of(potential: PhysNet) -> Weights:
    return {name: weight.detach().numpy() for name, weight in potential.named_parameters()}


def charged(total_charge: float) -> Atoms:
    atoms = ATOMS.copy()
    atoms.info["total_charge"] = total_charge
    return atoms


def slopes(energy: Callable[[Array], float], positions: Array) -> Array:
    found = np.zeros_like(positions)
    for place in np.ndindex(*positions.shape):
        step = np.zeros_like(positions)
        step[place] = STEP
        found[place] = (energy(positions + step) - energy(positions - step)) / (2 * STEP)
    return found


def assert_close(got: torch.Tensor, expected: Array, *, relative: float = EXACT_SUM) -> None:
    assert float(np.abs(got.detach().numpy() - expected).max()) <= relative * float(np.abs(expected).max())


@pytest.mark.parametrize("total_charge", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("section", [SECTION, WITH_COULOMB], ids=["network", "network and Coulomb"])
def test_energies_charges_and_forces_are_those_of_the_equations(section, total_charge):
    potential = potential_of(section)
    w = weights_of(potential)
    model = EnergyModel(potential, scale=1.7).double().eval()
    prediction = model(batch_of([charged(total_charge)], reach=model.reach).graph)

    def energy(positions: Array) -> float:
        atoms = ATOMS.copy()
        atoms.positions = positions
        energies, charges = atomic(w, atoms, total_charge)
        of_charges = coulomb(charges, positions, section.coulomb.length) if section is WITH_COULOMB else 0.0
        return rounded(1.7) * float(energies.sum()) + of_charges

    assert float(prediction.partial_charges.sum()) == pytest.approx(total_charge, abs=EXACT_SUM)
    assert_close(prediction.partial_charges, atomic(w, ATOMS, total_charge)[1])
    assert float(prediction.energy) == pytest.approx(energy(ATOMS.positions), rel=1e-8)  # COULOMB above is rounded
    assert_close(prediction.forces, -slopes(energy, ATOMS.positions), relative=FINITE_DIFFERENCE)


def test_each_block_is_that_of_the_equations():
    potential = potential_of(SECTION)
    w, graph = weights_of(potential), batch_of([ATOMS], cutoff=CUTOFF).graph
    rows = [ELEMENTS.index(z) for z in ATOMS.numbers]
    first = [w["embedding.weight"][row] for row in rows]
    x = torch.from_numpy(np.array(first))
    assert_close(potential.residuals[1](x), np.array([blocks(w, "residuals.1", one, 2) for one in first]))
    assert_close(potential.outputs[2](x), np.array([output(w, 2, one) for one in first]))
    pairs = pairs_of(graph.reverse_edge)
    filters = potential._filters(graph, pairs)
    receivers, senders = graph.edge_index[:, pairs.first].numpy()
    distances = np.linalg.norm(ATOMS.positions[receivers] - ATOMS.positions[senders], axis=1)
    expected = np.array([w["filters.weight"] @ radial(float(r)) for r in distances])
    assert_close(torch.cat(list(filters), dim=1), expected)
    assert_close(potential.interactions[1](x, filters[1], pairs, graph), np.array(interaction(w, 1, first, ATOMS.positions)))
    energies, charges = atomic(w, ATOMS, 0.0)
    outputs = potential(graph)
    assert_close(outputs.energies, energies)
    assert_close(outputs.charges[:, 0], charges)


def test_a_new_network_gives_zero_and_learns_from_there():
    """The last layers start at zero: at first only they get gradients, after a step all others too."""
    torch.manual_seed(0)
    model = EnergyModel(PhysNet(SECTION, ELEMENTS)).double().train()
    graph = batch_of([ATOMS], reach=model.reach).graph
    assert (model(graph).energy == 0).all()
    weights = list(model.parameters())
    for _ in range(4):
        prediction = model(graph)
        loss = prediction.energy.sum() - 1.0 + (prediction.forces - 1.0).square().sum() + prediction.partial_charges[0]
        gradients = torch.autograd.grad(loss, weights)
        torch._foreach_add_([weight.data for weight in weights], gradients, alpha=-0.01)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.abs().max() > 0] == []


def test_without_charges_there_is_only_the_energy():
    section = SECTION.model_validate({**SECTION.model_dump(), "partial_charges": False})
    potential = PhysNet(section, ELEMENTS)
    assert potential.outputs[0].last.weight.shape == (1, 5)
    assert potential(batch_of([ATOMS], cutoff=CUTOFF, dtype=torch.float32).graph).charges.shape == (len(ATOMS), 0)
