"""Weights of structures: what each one gives to the loss is multiplied, what the sums are divided by is not. S structures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled
from torch import Tensor
from toy_experiment import TOML, water
from traced_programs import traced_step

from modelforge.assembly import run_batches
from modelforge.atoms.graph import Batch, Prediction
from modelforge.data.prepare import prepare
from modelforge.experiment import load
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection, term_sums
from modelforge.training.metrics import ErrorSums, errors
from modelforge.training.step import TOLERANCE, largest_difference

CUTOFF, RELATIVE = 3.0, 1e-12
ATOMS = [
    labelled(cluster(4, (1, 6, 8), seed=0), seed=1),
    labelled(crystal(3, (1, 6), seed=2), seed=3),
    labelled(Atoms("O"), seed=4),
    labelled(crystal(2, (6, 8), seed=5), seed=6),
]
NUM = len(ATOMS)
TERMS = {
    "energy": LossSection(energy_weight=1, forces_weight=0),
    "energy per atom, mae": LossSection(energy_weight=1, forces_weight=0, function="mae", energy_error="per_atom"),
    "forces, mean over structures": LossSection(energy_weight=0, forces_weight=1),
    "forces, mean over components": LossSection(energy_weight=0, forces_weight=1, forces_mean="component"),
    "forces, huber": LossSection(energy_weight=0, forces_weight=1, function="huber"),
    "stress": LossSection(energy_weight=0, forces_weight=0, stress_weight=1),
}
ALL = LossSection(stress_weight=0.1)
TERM_WEIGHTS = torch.tensor([1.0, 100.0, 0.1], dtype=torch.float64)


def made_batch(*, weight: list[float] | None = None) -> Batch:
    batch = batch_of(ATOMS, cutoff=CUTOFF)
    return replace(batch, weight=torch.tensor(weight, dtype=torch.float64)) if weight else batch


def prediction_for(batch: Batch) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    labels = (batch.labels.energy, batch.labels.forces, batch.labels.stress)
    return Prediction(*(torch.randn(like.shape, generator=generator, dtype=like.dtype) for like in labels))


def sums_of(section: LossSection, weight: list[float]) -> Tensor:
    """Numerator and denominator of the one term."""
    batch = made_batch()
    weights = torch.tensor(weight, dtype=torch.float64)
    return term_sums(section, prediction_for(batch), batch.labels, batch.graph, weights)[0]


def only(structure: int, value: float = 1.0) -> list[float]:
    return [value if place == structure else 0.0 for place in range(NUM)]


def small_model() -> EnergyModel:
    section = SchNetSection(name="schnet", cutoff=CUTOFF, num_features=4, num_layers=1, num_radial=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyModel(section.build((1, 6, 8)), scale=1.3).double().train()


@pytest.mark.parametrize("section", TERMS.values(), ids=TERMS)
def test_a_doubled_weight_adds_the_share_of_its_structure_once_more(section: LossSection) -> None:
    plain = sums_of(section, [1.0] * NUM)
    shares = [sums_of(section, only(structure)) for structure in range(NUM)]
    assert sum(share[0] for share in shares) == pytest.approx(float(plain[0]), rel=RELATIVE)
    for structure, share in enumerate(shares):
        doubled = sums_of(section, [2.0 if place == structure else 1.0 for place in range(NUM)])
        assert float(doubled[0]) == pytest.approx(float(plain[0] + share[0]), rel=RELATIVE)
        assert doubled[1] == share[1] == plain[1], "divisors count labels, not weights"
    assert sum(share[0] > 0 for share in shares) == (2 if section.stress_weight else NUM)


def test_the_shares_are_the_terms_written_out() -> None:
    batch = made_batch()
    prediction = prediction_for(batch)
    weight, sizes = [0.5, 2.0, 3.0, 0.25], [len(atoms) for atoms in ATOMS]
    energy = (prediction.energy - batch.labels.energy).square() / torch.tensor(sizes)
    forces = [part.square().mean() for part in (prediction.forces - batch.labels.forces).split(sizes)]
    for section, values in ((TERMS["energy"], energy), (TERMS["forces, mean over structures"], forces)):
        expected = sum(w * float(value) for w, value in zip(weight, values, strict=True)) / NUM
        numerator, denominator = sums_of(section, weight).tolist()
        assert numerator / denominator == pytest.approx(expected, rel=RELATIVE)
    errors_squared = [part.square().sum() for part in (prediction.forces - batch.labels.forces).split(sizes)]
    expected = sum(w * float(value) for w, value in zip(weight, errors_squared, strict=True)) / (3 * sum(sizes))
    numerator, denominator = sums_of(TERMS["forces, mean over components"], weight).tolist()
    assert numerator / denominator == pytest.approx(expected, rel=RELATIVE)


def test_without_weights_each_structure_counts_once() -> None:
    batch = made_batch()
    prediction = prediction_for(batch)
    ones = torch.ones(NUM, dtype=torch.float64)
    for section in TERMS.values():
        torch.testing.assert_close(
            term_sums(section, prediction, batch.labels, batch.graph),
            term_sums(section, prediction, batch.labels, batch.graph, ones),
            rtol=0,
            atol=0,
        )


def gradients(batch: Batch) -> Tensor:
    model = small_model()
    result = EagerStep(model, ALL)(batch, TERM_WEIGHTS)
    found = torch.autograd.grad(result.loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def test_a_structure_of_weight_0_leaves_no_trace_in_the_gradient() -> None:
    batch = made_batch(weight=[1.0, 0.0, 1.0, 1.0])
    atoms = batch.graph.structure_index == 1
    wrong = replace(
        batch.labels,
        energy=batch.labels.energy + 1000.0 * torch.tensor(only(1)),
        forces=torch.where(atoms[:, None], batch.labels.forces + 100.0, batch.labels.forces),
        stress=batch.labels.stress + torch.tensor(only(1))[:, None, None],
    )
    plain = gradients(batch)
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradients(replace(batch, labels=wrong)), plain, rtol=RELATIVE, atol=0)
    assert not torch.allclose(gradients(made_batch()), plain)


def test_all_weights_0_give_no_gradient_at_all() -> None:
    assert not gradients(made_batch(weight=[0.0] * NUM)).any()


def test_gradients_of_single_structures_add_up() -> None:
    weight = [0.5, 2.0, 3.0, 0.25]
    parts = [gradients(made_batch(weight=only(place, value))) for place, value in enumerate(weight)]
    torch.testing.assert_close(sum(parts), gradients(made_batch(weight=weight)), rtol=1e-9, atol=1e-12)


def test_the_compiled_step_weighs_structures_like_the_eager_one() -> None:
    """It is compiled with weights of 1 and must read those of each batch."""
    compiled = traced_step(small_model(), ALL, made_batch(), TERM_WEIGHTS)
    for weight in ([1.0] * NUM, [0.5, 2.0, 3.0, 0.25], [0.0, 1.0, 0.0, 7.0]):
        assert largest_difference(compiled, made_batch(weight=weight), TERM_WEIGHTS) < TOLERANCE[torch.float64]
    plain, weighted = (
        compiled(made_batch(weight=weight), TERM_WEIGHTS).loss for weight in ([1.0] * NUM, [0.5, 2.0, 3.0, 0.25])
    )
    assert float(plain.detach()) != pytest.approx(float(weighted.detach()), rel=1e-3)
    assert compiled.failure is None


def test_metrics_do_not_depend_on_weights() -> None:
    """They say how large errors are, whatever they count in training."""
    found = []
    for weight in ([1.0] * NUM, [0.5, 0.0, 3.0, 100.0]):
        batch = made_batch(weight=weight)
        sums = ErrorSums(1, over_processes=False)
        sums.update(prediction_for(batch), batch)
        found.append(errors(sums))
    assert found[0] == found[1]
    assert found[0]["num_structures"] == NUM


def test_weights_of_the_file_times_those_of_subsets_reach_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subsets, weights = ("ice", "liquid", "ice", "gas"), (1.0, 2.0, 0.5, 1.0)
    texts = [
        water(number, header=f"config_type={subsets[number % 4]} config_weight={weights[number % 4]} n={number}")
        for number in range(8)
    ]
    Path("water.xyz").write_text("".join(texts))
    extra = 'weight_key = "config_weight"\nsubset_weights = { ice = 3.0, liquid = 0.0 }\n[dataset.split]'
    Path("x.toml").write_text(TOML.replace("[dataset.split]", extra))
    experiment = load(Path("x.toml")).experiment
    data = prepare(experiment.dataset, weights={"energy": 1.0, "forces": 1.0})
    batches = run_batches(experiment, data)
    for each in (batches.training(0, batches.steps_per_epoch), batches.validation()):
        for batch in each:
            expected = [{0: 3.0, 1: 0.0, 2: 1.5, 3: 1.0}[index % 4] for index in batch.indices.tolist()]
            assert batch.weight.tolist() == expected
            assert batch.weight.dtype == torch.float32
