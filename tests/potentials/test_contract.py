"""What physics and the house ask of every potential; a new member of the union is tested without a line here.

Each potential is built small with its default options, once more for every other value of each choice that it has, and once
more with each of the things that any potential can carry.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from made_structures import batch_of, cluster, crystal, structures_of
from scipy.spatial.transform import Rotation
from tolerances import CUTOFF_MARGIN, EXACT_SUM, FINITE_DIFFERENCE, JUMP, SHARED_CHARGE, SINGLE_PRECISION, STEP
from torch.utils._python_dispatch import TorchDispatchMode

from modelforge.atoms.graph import AtomicGraph, Labels, Prediction, Reach, tensors_of
from modelforge.data.batching.batches import structure_table
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.potential import PotentialFields
from modelforge.training.loss import LossSection, term_sums, term_values

CUTOFF = 3.5
SMALL = {"cutoff": CUTOFF, "num_features": 8, "num_filters": 6, "num_layers": 2, "num_radial": 5}
SMALL |= {"widths": {}, "other_widths": (8, 6, 7)}
SMALL |= {"num_vectors": 3, "hidden_widths": ((8,), (8, 6), (6,)), "num_outputs": 6, "readout_widths": (6,)}
SMALL |= {"num_references": 4}
SMALL |= {"max_ell": 3, "num_channels": 4, "num_bessel": 5, "radial_hidden": (6,), "readout_hidden": 3}
SMALL |= {"avg_num_neighbors": 5.0}
SMALL |= {"num_scalar_features": 8, "num_tensor_features": 3, "scalar_embed_hidden": (6,), "mlp_hidden": (9, 3)}
OWN = {"allegro": {"readout_hidden": (5,), "num_layers": 3}}  # parity matters from three layers on
ELEMENTS = (1, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)  # eleven, a size that nothing else in a small potential has

CARRIED = (
    {"forces": "direct"},
    {"partial_charges": True, "charge_embedding": True, "spin_embedding": True},
    {"partial_charges": True, "coulomb": {"name": "damped", "length": 1.9 * CUTOFF, "cutoff": CUTOFF}},
)

Member = tuple[type[PotentialFields], dict[str, Any]]


def members() -> Iterator[Member]:
    union = get_args(PotentialSection)[0]
    for section in get_args(union) or (union,):
        fields = section.model_fields
        usual = {name: value for name, value in SMALL.items() if name in fields}
        usual["name"] = get_args(fields["name"].annotation)[0]
        usual |= OWN.get(usual["name"], {})
        yield section, usual
        yield from ((section, usual | carried) for carried in CARRIED)
        for name, field in fields.items():
            if name != "name" and name not in PotentialFields.model_fields:
                yield from ((section, {**usual, name: value}) for value in other_choices(field.annotation, field.default))


def other_choices(annotation: object, default: object) -> list[object]:
    if annotation is bool:
        return [not default]
    return [value for value in get_args(annotation) if value != default] if get_origin(annotation) is Literal else []


def name_of(member: Member) -> str:
    _, options = member
    choices = [f"{key}={value}" for key, value in options.items() if key not in SMALL and key != "name"]
    return "-".join([options["name"], *choices])


def build(member: Member, *, elements: tuple[int, ...] = ELEMENTS) -> EnergyModel:
    """A model with all weights random, biases too, so that nothing is zero by initialisation."""
    section, options = member
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = EnergyModel(section(**options).build(elements), scale=1.7)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return model.double().eval()


@pytest.fixture(scope="module", params=list(members()), ids=name_of)
def member(request) -> Member:
    return request.param


@pytest.fixture(scope="module")
def model(member) -> EnergyModel:
    return build(member)


def shares_out_charges(model: EnergyModel) -> bool:
    """Whether an atom's energy depends on how the total charge is shared out over its structure, however far that reaches."""
    return model.coulomb is not None or model.potential.has_charges


def sum_of_charges(model: EnergyModel) -> float:
    """How well structures add up whose parts have the same charges: networks may share them out by a sum + epsilon."""
    return SHARED_CHARGE if model.potential.has_charges else EXACT_SUM


MOLECULE = cluster(7, ELEMENTS[:4], seed=3)
CRYSTAL = crystal(5, ELEMENTS[:4], seed=4)


def predict(model: EnergyModel, *all_atoms: Atoms) -> Prediction:
    return model(batch_of(all_atoms, reach=model.reach, dtype=model.scale.dtype).graph, stress=True)


def assert_close(got: torch.Tensor, expected: torch.Tensor | np.ndarray, *, relative: float = EXACT_SUM) -> None:
    expected = torch.as_tensor(expected)
    largest = float(expected.abs().max())
    assert largest > 1e-5, "the reference is zero, so this comparison could not fail"
    assert float((got - expected).abs().max()) <= relative * largest


def moved(atoms: Atoms, positions: np.ndarray) -> Atoms:
    atoms = atoms.copy()
    atoms.positions = positions
    return atoms


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


# Symmetries


@pytest.mark.parametrize("atoms", [MOLECULE, CRYSTAL], ids=["molecule", "crystal"])
def test_the_order_of_atoms_means_nothing(model, atoms):
    order = np.random.default_rng(0).permutation(len(atoms))
    one, other = predict(model, atoms), predict(model, atoms[order])
    assert_close(other.energy, one.energy)
    assert_close(other.forces, one.forces[order])


@pytest.mark.parametrize("atoms", [MOLECULE, CRYSTAL], ids=["molecule", "crystal"])
def test_a_translation_changes_nothing(model, atoms):
    one, other = predict(model, atoms), predict(model, moved(atoms, atoms.positions + np.array([3.1, -20.7, 0.4])))
    assert_close(other.energy, one.energy)
    assert_close(other.forces, one.forces, relative=10 * EXACT_SUM)


@pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
def test_forces_and_stress_turn_with_the_structure(model, determinant):
    turn = determinant * Rotation.random(random_state=5).as_matrix()
    turned = [Atoms(a.numbers, a.positions @ turn.T, cell=a.cell @ turn.T, pbc=a.pbc) for a in (MOLECULE, CRYSTAL)]
    one, other = predict(model, MOLECULE, CRYSTAL), predict(model, *turned)
    assert_close(other.energy, one.energy)
    assert_close(other.forces, one.forces.numpy() @ turn.T)
    assert_close(other.stress[1], turn @ one.stress[1].numpy() @ turn.T)


def test_a_supercell_has_twice_the_energy_and_the_same_forces_and_stress(model):
    one, two = predict(model, CRYSTAL), predict(model, CRYSTAL.repeat((2, 1, 1)))
    relative = sum_of_charges(model)
    assert_close(two.energy, 2 * one.energy, relative=relative)
    assert_close(two.forces, torch.cat([one.forces, one.forces]), relative=relative)
    assert_close(two.stress, one.stress, relative=relative)


def test_atoms_may_be_moved_by_lattice_vectors(model):
    jumps = np.random.default_rng(6).integers(-3, 4, size=(len(CRYSTAL), 3))
    one, other = predict(model, CRYSTAL), predict(model, moved(CRYSTAL, CRYSTAL.positions + jumps @ CRYSTAL.cell.array))
    assert_close(other.energy, one.energy)
    assert_close(other.forces, one.forces, relative=10 * EXACT_SUM)


def test_a_potential_reads_the_weights_of_the_right_element(member, model):
    """The same potential with its elements in another order, and every tensor with an axis of elements reordered likewise."""
    order = np.random.default_rng(7).permutation(len(ELEMENTS))
    other = build(member, elements=tuple(ELEMENTS[place] for place in order))
    state, of_fewer = model.state_dict(), build(member, elements=ELEMENTS[:-1]).state_dict()
    for name, tensor in state.items():
        is_of_elements = (np.array(tensor.shape) == len(ELEMENTS)) & (
            np.array(of_fewer.get(name, tensor).shape) < len(ELEMENTS)
        )
        for axis in np.flatnonzero(is_of_elements).tolist():
            state[name] = state[name].index_select(axis, torch.as_tensor(order))
    other.load_state_dict(state)
    atoms = cluster(12, ELEMENTS, seed=8)
    assert len(set(atoms.numbers)) > 5
    assert_close(predict(other, atoms).energy, predict(model, atoms).energy)
    assert_close(predict(other, atoms).forces, predict(model, atoms).forces)


def test_elements_differ(model):
    other = MOLECULE.copy()
    other.numbers[0] = 53
    energies = predict(model, MOLECULE, other).energy
    assert abs(float(energies[0] - energies[1])) > 1e-4


# Derivatives


@pytest.mark.parametrize("atoms", [MOLECULE, CRYSTAL], ids=["molecule", "crystal"])
def test_forces_are_minus_the_slope_of_the_energy(model, atoms):
    if not model.is_conservative:
        assert model.potential.section.forces == "direct"
        return
    steps = STEP * np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3)
    energies = [predict(model, *(moved(atoms, atoms.positions + s * step) for step in steps)).energy for s in (1, -1)]
    slope = (energies[0] - energies[1]).reshape(-1, 3) / (2 * STEP)
    assert_close(predict(model, atoms).forces, -slope, relative=FINITE_DIFFERENCE)


def test_stress_is_the_slope_of_the_energy_by_strain_per_volume(model):
    strains = [
        0.5 * (np.eye(3)[:, [a]] @ np.eye(3)[[b]] + np.eye(3)[:, [b]] @ np.eye(3)[[a]]) for a in range(3) for b in range(3)
    ]
    energies = [predict(model, *(strained(CRYSTAL, s * STEP * strain) for strain in strains)).energy for s in (1, -1)]
    slope = (energies[0] - energies[1]).reshape(3, 3) / (2 * STEP)
    assert_close(predict(model, CRYSTAL).stress[0], slope / CRYSTAL.get_volume(), relative=FINITE_DIFFERENCE)


def test_stress_is_missing_where_there_is_no_volume(model):
    slab = CRYSTAL.copy()
    slab.pbc = (True, True, False)
    stress = predict(model, MOLECULE, slab, CRYSTAL).stress
    assert stress[:2].isnan().all()
    assert stress[2].isfinite().all()


def test_what_is_not_asked_for_is_missing_and_not_zero(model):
    graph = batch_of([MOLECULE, CRYSTAL], reach=model.reach).graph
    energy_only, with_forces = model(graph, forces=False), model(graph)
    assert energy_only.forces.isnan().all()
    assert energy_only.stress.isnan().all()
    assert with_forces.stress.isnan().all()
    assert_close(energy_only.energy, with_forces.energy)


# Batches


def test_a_batch_gives_what_its_structures_give_alone(model):
    all_atoms = [MOLECULE, CRYSTAL, Atoms("O"), cluster(3, ELEMENTS, seed=9), CRYSTAL.repeat((1, 2, 1))]
    together, alone = predict(model, *all_atoms), [predict(model, atoms) for atoms in all_atoms]
    assert_close(together.energy, torch.cat([one.energy for one in alone]))
    assert_close(together.forces, torch.cat([one.forces for one in alone]))
    assert_close(together.stress[[1, 4]], torch.cat([alone[1].stress, alone[4].stress]))


def test_molecules_far_apart_in_one_structure_add_up(model):
    """Of charges that are shared out over the structure, each of two equal molecules gets its own."""
    far = MOLECULE if shares_out_charges(model) else cluster(4, ELEMENTS, seed=10)
    both = MOLECULE + moved(far, far.positions + 200.0)
    alone = predict(model, MOLECULE, far)
    relative = sum_of_charges(model)
    assert_close(predict(model, both).energy, alone.energy.sum(dim=0, keepdim=True), relative=relative)
    relative = max(relative, 1e3 * EXACT_SUM)  # positions of 200 angstrom
    assert_close(predict(model, both).forces, alone.forces, relative=relative)


def test_an_isolated_atom_has_an_energy_and_no_force(model):
    prediction = predict(model, Atoms("C", positions=[[1.0, 2.0, 3.0]]))
    assert prediction.energy.isfinite().all()
    assert (prediction.forces == 0).all()


def test_a_batch_without_any_edge_has_energies_and_no_forces(model):
    pair = "OO" if shares_out_charges(model) else "OH"
    alone = [Atoms("C"), Atoms("H"), Atoms(pair, positions=[[0, 0, 0], [0, 0, 50]])]
    batch = batch_of(alone, reach=model.reach)
    assert batch.graph.num_edges == 0
    prediction = model(batch.graph, stress=True)
    assert (prediction.forces == 0).all()
    carbon, hydrogen, both = prediction.energy.tolist()
    oxygen = float(predict(model, Atoms("O")).energy)
    assert both == pytest.approx(oxygen + (oxygen if pair == "OO" else hydrogen), rel=sum_of_charges(model))
    assert carbon != hydrogen or carbon == 0.0  # or nothing but the self-energies, which are not here


def test_an_empty_crystal_has_no_stress(model):
    sparse = Atoms("C", cell=[20, 20, 20], pbc=True)
    assert (predict(model, sparse).stress == 0).all()


# The cutoff


def lengthened(reach: Reach, by: float) -> Reach:
    """A reach with longer edges of each kind that it has."""
    cutoffs = {name: getattr(reach, name) for name in ("cutoff", "triples_cutoff", "far_cutoff")}
    return replace(reach, **{name: cutoff + by for name, cutoff in cutoffs.items() if cutoff})


def trimer(distance: float) -> Atoms:
    """O and C with H on the other side of C; the distance is that of O and C."""
    return Atoms("OCH", positions=[[0, 0, 0], [0, 0, distance], [0.3, 0.9, distance + 0.4]])


def test_energy_does_not_jump_at_the_cutoff_in_value_and_slope(model):
    near, before, after, far = (predict(model, trimer(CUTOFF + shift)) for shift in (-1.0, -CUTOFF_MARGIN, CUTOFF_MARGIN, 1.0))
    interaction, force = float((near.energy - far.energy).abs()), float((near.forces - far.forces).abs().max())
    assert interaction > 1e-4
    assert abs(float(before.energy - after.energy)) < JUMP * interaction
    assert float((before.forces - after.forces).abs().max()) < 100 * JUMP * force


def test_edges_at_and_beyond_the_cutoff_do_nothing(model):
    """Also where a graph was made for a longer cutoff."""
    atoms = cluster(12, ELEMENTS, seed=11)
    longer, exact = (model(batch_of([atoms], reach=lengthened(model.reach, by)).graph) for by in (1.5, 0.0))
    assert_close(longer.energy, exact.energy)
    assert_close(longer.forces, exact.forces)
    at_cutoff = Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF]])
    graph = batch_of([at_cutoff], reach=lengthened(model.reach, 0.1)).graph
    assert graph.num_edges == 2
    assert model(graph).forces.abs().max() < EXACT_SUM


# Gradients of the weights

PERFECT_CRYSTAL = bulk("C", "diamond", a=3.57)
PERFECT_CRYSTAL.numbers[:] = (6, 14)
HARD_CASES = {
    "isolated atom": [Atoms("C")],
    "dimer at the cutoff": [Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF]])],
    "dimer just inside": [Atoms("CO", positions=[[0, 0, 0], [0, 0, CUTOFF * (1 - 1e-12)]])],
    "line of atoms": [Atoms("OCO", positions=[[0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]])],
    "perfect crystal": [PERFECT_CRYSTAL],
    "atoms nearly in one place": [Atoms("CO", positions=[[0, 0, 0], [0, 0, 0.1]])],
    "no edges among others": [Atoms("H"), MOLECULE, Atoms("O", cell=[20, 20, 20], pbc=True), CRYSTAL],
    "no edges at all": [Atoms("H"), Atoms("O")],
}


def weight_gradients(model: EnergyModel, graph: AtomicGraph, labels: Labels, loss: LossSection) -> list[torch.Tensor]:
    prediction = model.train()(graph, forces=loss.forces_weight > 0, stress=loss.stress_weight > 0)
    total = term_values(term_sums(loss, prediction, labels, graph)).sum()
    weights = list(model.parameters())
    gradients = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    model.eval()
    return list(gradients)


def zero_labels(graph: AtomicGraph) -> Labels:
    vectors = graph.edge_vectors
    stress = torch.where(graph.volume.isfinite()[:, None, None], vectors.new_zeros(graph.num_structures, 3, 3), torch.nan)
    return Labels(vectors.new_zeros(graph.num_structures), vectors.new_zeros(graph.num_atoms, 3), stress)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", HARD_CASES)
def test_second_derivatives_are_finite(member, case, dtype):
    model = build(member).to(dtype)
    graph = batch_of(HARD_CASES[case], reach=model.reach, dtype=dtype).graph
    loss = LossSection(energy_weight=0, stress_weight=1.0 if graph.volume.isfinite().any() else 0.0)
    for gradient in weight_gradients(model, graph, zero_labels(graph), loss):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("function", ["mse", "mae", "huber"])
def test_gradients_are_finite_where_the_residual_is_zero(member, function):
    model = build(member)
    graph = batch_of([MOLECULE, CRYSTAL, Atoms("H")], reach=model.reach).graph
    labels = Labels(*(tensor.detach() for tensor in tensors_of(model.train()(graph, stress=True))))
    loss = LossSection(function=function, stress_weight=1.0)
    for gradient in weight_gradients(model, graph, labels, loss):
        assert gradient.isfinite().all()


def test_weight_gradients_of_a_loss_on_forces_are_its_slopes(member):
    """Along random directions of all weights, by central differences."""
    model = build(member)
    batch = batch_of([MOLECULE, CRYSTAL], reach=model.reach)
    labels = replace(zero_labels(batch.graph))
    loss = LossSection(energy_weight=1.0, forces_weight=3.0, stress_weight=2.0)
    gradients = weight_gradients(model, batch.graph, labels, loss)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in model.parameters()]

    def value(step: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), directions, alpha=step)
        prediction = model(batch.graph, stress=True)
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), directions, alpha=step)
        return float(term_values(term_sums(loss, prediction, labels, batch.graph)).sum())

    step = 1e-5
    slope = (value(step) - value(-step)) / (2 * step)
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert expected == pytest.approx(slope, rel=100 * FINITE_DIFFERENCE)


# Precision


def test_single_precision_is_close_to_double(member, model):
    single = predict(build(member).float(), MOLECULE, CRYSTAL)
    double = predict(model, MOLECULE, CRYSTAL)
    assert single.energy.dtype == torch.float32
    for got, expected in ((single.energy, double.energy), (single.forces, double.forces), (single.stress[1], double.stress[1])):
        assert_close(got.double(), expected, relative=SINGLE_PRECISION)


# What makes geometry out of edge vectors, and sums over edges; both spellings of each sum.
OF_GEOMETRY = ("linalg_vector_norm", "sqrt", "rsqrt", "sin", "cos", "exp", "_embedding_bag", "_embedding_bag_forward_only")


class HalfPrecision(TorchDispatchMode):
    """Names of the operations that give half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        if any(isinstance(one, torch.Tensor) and one.dtype in (torch.bfloat16, torch.float16) for one in results):
            self.seen.add(operation.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_geometry_and_sums_are_never_in_half_precision(member, half):
    """Under autocast the layers are, and nothing else of what a potential computes."""
    model = build(member).float()
    graph = batch_of([MOLECULE, CRYSTAL], reach=model.reach, dtype=torch.float32).graph
    with torch.autocast("cpu", dtype=half), torch.no_grad(), HalfPrecision() as found:
        outputs = model.potential(graph)
        assert outputs.energies.dtype == outputs.vectors.dtype == outputs.charges.dtype == torch.float32
    assert {"mm", "addmm", "grouped_product"} & found.seen, "autocast did nothing, so nothing could be wrong"
    assert found.seen.isdisjoint(OF_GEOMETRY)


@pytest.mark.parametrize("case", ["isolated atom", "line of atoms", "perfect crystal", "no edges among others"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_gradients_in_half_precision_are_finite(member, half, case):
    """Also of vector features that vanish by symmetry: in float16 an epsilon of 1e-8 is zero."""
    model = build(member).float()
    graph = batch_of(HARD_CASES[case], reach=model.reach, dtype=torch.float32).graph
    with torch.autocast("cpu", dtype=half):
        gradients = weight_gradients(model, graph, zero_labels(graph), LossSection(forces_weight=1.0))
    for gradient in gradients:
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


def test_the_same_graph_gives_the_same_bits(model):
    structures = structures_of([MOLECULE, CRYSTAL])
    table = structure_table(structures, reach=model.reach, self_energies=np.zeros(119), dtype=torch.float64)
    one, other = (model(table.batch(torch.tensor([0, 1])).graph, stress=True) for _ in range(2))
    assert torch.equal(one.energy, other.energy)
    assert torch.equal(one.forces, other.forces)
    assert torch.equal(one.stress[1], other.stress[1])
