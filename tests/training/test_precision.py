"""Precision: what a run and its product compute with, that it is measured, and which devices and choices are refused."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled, structures_of
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.atoms.self_energies import SelfEnergies
from modelforge.calculator import ModelforgeCalculator
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.model_file import TrainedPotential, load_potential, save_potential
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.section import Section
from modelforge.training.eager_step import EagerStep, scales_of
from modelforge.training.loss import LossSection, weights_of
from modelforge.training.precision import autocast, difference_in_words, force_difference, matmul_precision
from modelforge.training.runtime import Precision, RuntimeSection, accelerator_of, device_note
from modelforge.training.section import TrainingSection
from modelforge.training.trainer import build_trainer

CUTOFF = 3.5
SMALL = {"cutoff": CUTOFF, "num_features": 16, "num_filters": 16, "num_layers": 2, "num_radial": 8, "avg_num_neighbors": 5.0}
POTENTIALS: tuple[type[Section], ...] = get_args(get_args(PotentialSection)[0])
ATOMS = [labelled(cluster(8, (1, 6, 8), seed=0), seed=0), labelled(crystal(6, (1, 6, 8), seed=1), seed=1)]


def name_of(section: type[Section]) -> str:
    return str(get_args(section.model_fields["name"].annotation)[0])


@pytest.fixture(params=POTENTIALS, ids=name_of)
def model(request) -> EnergyModel:
    options = {name: value for name, value in SMALL.items() if name in request.param.model_fields}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = EnergyModel(request.param(name=name_of(request.param), **options).build((1, 6, 8)), scale=1.3).float()
        for weight in built.parameters():
            if weight.ndim > 1 and not weight.any():  # some begin with no forces at all
                torch.nn.init.xavier_uniform_(weight)
    return built


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    return batch_of(ATOMS, cutoff=CUTOFF, dtype=dtype)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Every test leaves what it found."""
    before = torch.get_float32_matmul_precision()
    yield
    assert torch.get_float32_matmul_precision() == before
    assert not torch.are_deterministic_algorithms_enabled()


# Settings of torch


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_the_precision_of_products_is_set_inside_and_put_back_after(name):
    def fails() -> None:
        with matmul_precision(name):
            seen.append(torch.get_float32_matmul_precision())
            raise ZeroDivisionError

    seen: list[str] = []
    with matmul_precision("high"):
        with pytest.raises(ZeroDivisionError):
            fails()
        assert torch.get_float32_matmul_precision() == "high"
    assert seen == [name]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
    ],
)
def test_only_mixed_precisions_have_products_in_half_precision(precision: Precision, expected: torch.dtype):
    with autocast(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


# The difference to float64


@pytest.mark.parametrize(
    ("precision", "smallest", "largest"),
    [("32-true", 1e-9, 1e-5), ("bf16-mixed", 1e-4, 5e-2)],
)
def test_the_difference_to_double_precision_is_that_of_the_numbers(
    model, precision: Precision, smallest: float, largest: float
):
    """Relative to the forces, float32 has 7 digits and bfloat16 about 2."""
    difference = force_difference(model, batch(), precision=precision)
    assert smallest < difference.forces_rms / difference.forces_size < largest
    assert difference.forces_rms < difference.forces_largest
    assert 0 < difference.energy_largest < largest * 1e4


def test_double_precision_differs_from_itself_by_nothing(model):
    difference = force_difference(model.double(), batch(torch.float64), precision="64-true")
    assert (difference.forces_rms, difference.forces_largest, difference.energy_largest) == (0.0, 0.0, 0.0)


def test_the_difference_is_that_of_energies_per_atom_and_components_of_forces(model):
    sample = batch()
    difference = force_difference(model, sample, precision="32-true")
    exact = batch().graph
    exact = replace(exact, edge_vectors=exact.edge_vectors.double(), volume=exact.volume.double())
    model.eval()
    single, double = model(sample.graph), model.double()(exact)
    forces = (single.forces.double() - double.forces).numpy()
    energy = (single.energy.double() - double.energy).numpy() / np.array([8, 6])
    assert difference.forces_rms == pytest.approx(1e3 * np.sqrt(np.mean(forces**2)))
    assert difference.forces_largest == pytest.approx(1e3 * np.abs(forces).max())
    assert difference.forces_size == pytest.approx(1e3 * np.sqrt(np.mean(double.forces.numpy() ** 2)))
    assert difference.energy_largest == pytest.approx(1e3 * np.abs(energy).max())


def test_measuring_leaves_the_model_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    force_difference(model, batch(), precision="bf16-mixed", matmul="medium")
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_the_difference_is_measured_with_the_products_of_the_run(model, monkeypatch):
    seen: list[str] = []
    real = EnergyModel.with_penalties

    def with_penalties(self: EnergyModel, *arguments: Any, **options: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return real(self, *arguments, **options)

    monkeypatch.setattr(EnergyModel, "with_penalties", with_penalties)
    force_difference(model, batch(), precision="32-true", matmul="medium")
    assert seen == ["medium", "highest"]


def test_the_difference_is_a_line_of_the_log(model):
    difference = force_difference(model, batch(), precision="bf16-mixed")
    line = difference_in_words(difference)
    assert line.startswith(f"precision bf16-mixed: forces differ from float64 by {difference.forces_rms:.2g} meV/A (rms), ")
    assert line.endswith(f"energies by at most {difference.energy_largest:.2g} meV/atom")
    rounded = difference_in_words(replace(difference, matmul_precision="high"))
    assert rounded.startswith("precision bf16-mixed, matmul_precision high: forces")


# Training in half precision


@pytest.mark.parametrize("loss", [LossSection(), LossSection(forces_weight=0.0)], ids=["energy and forces", "energy"])
def test_half_precision_trains_as_single_precision_does(model, loss):
    single, half = (losses_of(copy.deepcopy(model), loss, precision) for precision in ("32-true", "bf16-mixed"))
    assert half[-1] < 0.95 * half[0]
    assert abs(half[-1] - single[-1]) < 0.05 * half[0]


def losses_of(model: EnergyModel, loss: LossSection, precision: Precision) -> list[float]:
    """Of a few steps, whose results are in single precision."""
    sample, device = batch(), torch.device("cpu")
    scales = scales_of(model, loss, torch.tensor(list(weights_of(loss).values())), sample.label_counts)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(30):
        with autocast(precision, device):
            result = EagerStep(model, loss)(sample, scales)
        assert {result.loss.dtype, result.sums.dtype, result.prediction.forces.dtype, result.prediction.energy.dtype} == {
            torch.float32
        }
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.loss.detach()))
    return losses


def gradients_of(model: EnergyModel, precision: Precision) -> Tensor:
    sample, loss = batch(), LossSection()
    scales = scales_of(model, loss, torch.tensor(list(weights_of(loss).values())), sample.label_counts)
    with autocast(precision, torch.device("cpu")):
        result = EagerStep(model.train(), loss)(sample, scales)
    weights = list(model.parameters())
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(result.loss, weights, allow_unused=True, materialize_grads=True)]
    )


def test_gradients_in_half_precision_point_where_those_of_single_precision_do(model):
    half, single = gradients_of(model, "bf16-mixed").double(), gradients_of(model, "32-true").double()
    assert 0.99 < float(torch.nn.functional.cosine_similarity(half, single, dim=0)) < 1 - 1e-7


# Devices and choices


@pytest.mark.parametrize("name", ["mps", "tpu"])
def test_devices_without_double_precision_are_no_choice(name):
    with pytest.raises(ValidationError, match="accelerator"):
        RuntimeSection(accelerator=name)


@pytest.fixture
def on_a_mac(monkeypatch) -> None:
    """A machine with an MPS device, as torch and Lightning see it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for package in ("lightning_fabric", "pytorch_lightning"):
        monkeypatch.setattr(f"{package}.accelerators.mps.MPSAccelerator.is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("on_a_mac")
def test_auto_passes_over_a_device_without_double_precision_and_says_so(tmp_path):
    trainer = build_trainer(RuntimeSection(), TrainingSection(), folder=str(tmp_path))
    assert trainer.strategy.root_device.type == "cpu"
    assert device_note(RuntimeSection()) == "this Mac's GPU (MPS) is not used, as it has no float64; the run takes the CPU"
    assert device_note(RuntimeSection(accelerator="cpu")) is None


@pytest.mark.usefixtures("on_a_mac")
def test_gpu_never_means_a_device_without_double_precision(tmp_path):
    assert accelerator_of(RuntimeSection(accelerator="gpu")) == "cuda"
    with pytest.raises(UserError, match="runtime: Lightning cannot build"):
        build_trainer(RuntimeSection(accelerator="gpu"), TrainingSection(), folder=str(tmp_path))


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert accelerator_of(RuntimeSection()) == "cuda"
    assert accelerator_of(RuntimeSection(accelerator="cpu")) == "cpu"
    assert device_note(RuntimeSection()) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_float16_is_refused_where_lightning_would_train_in_bfloat16(tmp_path):
    with pytest.raises(UserError, match=r'^runtime\.precision: must not be "16-mixed" where there is no CUDA GPU'):
        build_trainer(RuntimeSection(precision="16-mixed"), TrainingSection(), folder=str(tmp_path))


@pytest.mark.parametrize(("accelerator", "expected"), [("cpu", False), ("cuda", True)])
def test_deterministic_operations_are_asked_for_on_a_gpu(monkeypatch, tmp_path, accelerator, expected):
    """A stand-in for the Trainer tells what it was given: one for a GPU cannot be built everywhere."""
    given: dict[str, Any] = {}
    trainer = SimpleNamespace(strategy=None, _signal_connector=SimpleNamespace())
    monkeypatch.setattr(pl, "Trainer", lambda **options: given.update(options) or trainer)
    build_trainer(RuntimeSection(accelerator=accelerator, deterministic=True), TrainingSection(), folder=str(tmp_path))
    assert given["deterministic"] is expected


# The product


def trained(**options: Any) -> TrainedPotential:
    section = SchNetSection(name="schnet", cutoff=CUTOFF, num_features=4, num_layers=1, num_radial=5)
    return TrainedPotential(
        model=EnergyModel(section.build((1, 6, 8))).eval().requires_grad_(False),
        potential=section,
        dataset=ExtendedXYZ(name="extxyz", path="train.xyz"),
        self_energies=SelfEnergies({1: -1.0, 6: -2.0, 8: -3.0}, (1, 6, 8), np.zeros((0, 3))),
        shifts={},
        experiment="",
        weights="best epoch 1, raw",
        **{"training_precision": "32-true", "matmul_precision": "highest", **options},
    )


@pytest.fixture
def in_force(monkeypatch) -> list[str]:
    """The precision of products, and the dtype of one, at each prediction."""
    seen: list[str] = []
    real = EnergyModel.with_penalties

    def with_penalties(self: EnergyModel, *arguments: Any, **options: Any) -> Any:
        seen.append(f"{torch.get_float32_matmul_precision()} {(torch.ones(2, 2) @ torch.ones(2, 2)).dtype}")
        return real(self, *arguments, **options)

    monkeypatch.setattr(EnergyModel, "with_penalties", with_penalties)
    return seen


def test_the_product_keeps_the_arithmetic_of_its_training(tmp_path):
    save_potential(tmp_path / "x.safetensors", trained(training_precision="bf16-mixed", matmul_precision="high"))
    loaded = load_potential(tmp_path / "x.safetensors")
    assert (loaded.training_precision, loaded.matmul_precision) == ("bf16-mixed", "high")


def test_a_product_that_does_not_say_has_exact_products(tmp_path):
    path = tmp_path / "x.safetensors"
    save_potential(path, trained(matmul_precision="high"))
    rewrite(path, remove=("matmul_precision", "training_precision"))
    loaded = load_potential(path)
    assert (loaded.training_precision, loaded.matmul_precision) == (None, "highest")


def test_a_product_of_another_version_with_other_precisions_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_potential(path, trained())
    rewrite(path, matmul_precision="lowest")
    with pytest.raises(UserError, match="written by a version of modelforge that this one does not understand"):
        load_potential(path)


def rewrite(path: Path, *, remove: tuple[str, ...] = (), **change: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in remove}
    save_file(load_file(path), path, metadata={**metadata, **change})


@pytest.mark.parametrize("choice", ["highest", "high"])
def test_predictions_and_test_errors_are_those_of_the_product(tmp_path, in_force, choice):
    """In the numbers of its weights and with its products, whatever the training ran in."""
    potential = trained(training_precision="bf16-mixed", matmul_precision=choice)
    evaluate(potential, structures_of(ATOMS))
    save_potential(tmp_path / "x.safetensors", potential)
    ModelforgeCalculator(tmp_path / "x.safetensors").get_potential_energy(Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]]))
    assert in_force == [f"{choice} torch.float32"] * 2


def test_an_evaluation_says_what_the_training_and_the_products_were(model):
    notes = evaluate(trained(training_precision="bf16-mixed", matmul_precision="high"), structures_of(ATOMS)).notes
    assert notes == (
        "trained with precision bf16-mixed; predicted, and so tested, in float32 throughout",
        'products of float32 matrices are rounded as in the training (matmul_precision "high")',
    )
    for training_precision in ("32-true", None):
        assert evaluate(trained(training_precision=training_precision), structures_of(ATOMS)).notes == ()
