"""PhysNet against its equations written out atom by atom in numpy: each block, energies, charges and forces (float64)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import NO_CONSTANTS, batch_of, cluster, labelled, structures_of
from numpy.typing import NDArray
from tolerances import EXACT_SUM, FINITE_DIFFERENCE, STEP
from traced_programs import traced_step

from modelforge.atoms.graph import Batch
from modelforge.data.batching.batches import structure_table
from modelforge.data.batching.order import shared_batch
from modelforge.nn.neighbours.pairs import pairs_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.physnet import PhysNet, PhysNetSection, excess
from modelforge.training.eager_step import EagerStep, scales_of
from modelforge.training.loss import LossSection
from modelforge.training.loss import weights_of as terms_of
from modelforge.training.step import CompiledStep

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


def penalty(w: Weights, atoms: Atoms) -> Array:
    """What each atom gives: the square of each module's energy beside the sum of it and that of the module before."""
    x = [w["embedding.weight"][ELEMENTS.index(z)] for z in atoms.numbers]
    found, before = np.zeros(len(atoms)), np.zeros(len(atoms))
    for t in range(NUM_MODULES):
        x = [
            blocks(w, f"residuals.{t}", one, RESIDUALS["num_atomic_residuals"]) for one in interaction(w, t, x, atoms.positions)
        ]
        energies = np.array([output(w, t, one)[0] for one in x])
        if t:
            found += energies**2 / (energies**2 + before**2 + 1e-7)
        before = energies
    return found


OTHERS = [
    labelled(atoms, seed=n) for n, atoms in enumerate((ATOMS, cluster(4, ELEMENTS, seed=5), cluster(9, ELEMENTS, seed=6)))
]
LOSS = LossSection(forces_weight=10.0)
TERM_WEIGHTS = torch.tensor([1.0, 10.0], dtype=torch.float64)


def loss_of(model: EnergyModel, batch: Batch) -> torch.Tensor:
    return EagerStep(model, LOSS)(batch, scales_of(model, LOSS, TERM_WEIGHTS, batch.label_counts)).loss


def beside_the_terms(step: EagerStep | CompiledStep, batch: Batch) -> float:
    """What the loss has besides its terms."""
    loss = step.loss if isinstance(step, EagerStep) else step.eager.loss
    scales = scales_of(step.model, loss, TERM_WEIGHTS[: len(terms_of(loss))], batch.label_counts)
    of_terms = torch.cat([scales[:-1], torch.zeros(1, dtype=torch.float64)])
    return float(step(batch, scales).loss.detach() - step(batch, of_terms).loss.detach())


def test_the_loss_has_the_penalty_of_the_equations():
    """As a mean over atoms, those of structures with another weight as often as that says."""
    potential = potential_of(SECTION)
    model = EnergyModel(potential).double().train()
    batch = batch_of(OTHERS, reach=model.reach)
    batch = replace(batch, weight=torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64))
    expected = np.concatenate([penalty(weights_of(potential), atoms) for atoms in OTHERS])
    assert_close(model.with_penalties(batch.graph, forces=False, stress=False)[1][:, 0], 0.01 * expected)
    weights = np.repeat([1.0, 3.0, 0.5], [len(atoms) for atoms in OTHERS])
    assert beside_the_terms(EagerStep(model, LOSS), batch) == pytest.approx(0.01 * np.mean(weights * expected), rel=1e-9)


def test_parts_of_a_batch_have_together_the_gradient_of_the_whole():
    """Three processes, of which one has only a stand-in, and two batches that accumulate."""
    model = EnergyModel(potential_of(SECTION)).double().train()
    table = structure_table(structures_of(OTHERS), reach=model.reach, self_energies=NO_CONSTANTS, dtype=torch.float64)
    whole, weights = torch.arange(3), list(model.parameters())
    counts = table.num_labels(whole)
    shares = [shared_batch(table, some, counts, rank=rank, num_processes=3) for some in whole.split(2) for rank in range(3)]
    assert sum(int(share.indices[0]) == -1 for share in shares) == 3
    parts = torch.autograd.grad(sum(loss_of(model, share) for share in shares), weights, allow_unused=True)
    expected = torch.autograd.grad(loss_of(model, table.batch(whole)), weights, allow_unused=True)
    for got, want in zip(parts, expected, strict=True):
        assert_close(got, want.numpy())


def test_a_compiled_step_has_the_penalty():
    small = SECTION.model_dump() | dict.fromkeys(RESIDUALS, 0) | {"num_layers": 2}
    model = EnergyModel(potential_of(PhysNetSection.model_validate(small))).double().train()
    batch = batch_of(OTHERS, reach=model.reach)
    energies = LossSection(forces_weight=0.0)  # less to compile
    compiled = traced_step(model, energies, batch, scales_of(model, energies, TERM_WEIGHTS[:1], batch.label_counts))
    for some in (batch, batch_of(OTHERS[:2], reach=model.reach)):
        expected = beside_the_terms(compiled.eager, some)
        assert expected > 1e-4
        assert beside_the_terms(compiled, some) == pytest.approx(expected, rel=1e-9)
    assert compiled.failure is None, "an eager result in the place of a compiled one agrees with anything"


def test_a_weight_of_zero_leaves_the_penalty_out():
    model = EnergyModel(PhysNet(SECTION.model_copy(update={"hierarchy_weight": 0.0}), ELEMENTS)).train()
    batch = batch_of(OTHERS, reach=model.reach, dtype=torch.float32)
    assert model.with_penalties(batch.graph, forces=False, stress=False)[1].shape == (batch.graph.num_atoms, 0)
    assert scales_of(model, LOSS, TERM_WEIGHTS.float(), batch.label_counts).shape == (2,)


def test_the_penalty_of_outputs_that_are_zero_has_no_slope():
    energies = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(excess(energies).sum(), energies)
    assert (slope == 0).all()


def test_a_new_network_gives_zero_and_learns_from_there():
    """The last layers start at zero: at first only they get gradients, after a step all others too."""
    torch.manual_seed(0)
    model = EnergyModel(PhysNet(SECTION, ELEMENTS)).double().train()
    graph = batch_of([ATOMS], reach=model.reach).graph
    assert (model(graph).energy == 0).all(), "without a Coulomb energy"
    weights = list(model.parameters())
    for _ in range(4):
        prediction = model(graph)
        loss = prediction.energy.sum() - 1.0 + (prediction.forces - 1.0).square().sum() + prediction.partial_charges[0]
        gradients = torch.autograd.grad(loss, weights)
        torch._foreach_add_([weight.data for weight in weights], gradients, alpha=-0.01)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.abs().max() > 0] == []


def test_charges_are_learned_from_energies_alone_through_the_coulomb_energy():
    """The Coulomb energy has no slope by charges that are all zero: so they are not at first, as an untrained network's are."""
    torch.manual_seed(0)
    section = SECTION.model_validate({**SECTION.model_dump(), "coulomb": {"name": "damped"}})
    model = EnergyModel(PhysNet(section, ELEMENTS)).double().train()
    prediction = model(batch_of([ATOMS], reach=model.reach).graph)
    assert 1e-4 < prediction.partial_charges.detach().abs().max() < 0.5
    (gradient,) = torch.autograd.grad(prediction.energy.sum(), model.potential.outputs[0].last.weight)
    assert (gradient[1] != 0).all()


def test_without_charges_there_is_only_the_energy():
    section = SECTION.model_validate({**SECTION.model_dump(), "partial_charges": False})
    potential = PhysNet(section, ELEMENTS)
    assert potential.outputs[0].last.weight.shape == (1, 5)
    assert potential(batch_of([ATOMS], cutoff=CUTOFF, dtype=torch.float32).graph).charges.shape == (len(ATOMS), 0)
