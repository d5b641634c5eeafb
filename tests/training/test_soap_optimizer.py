"""SOAP against a loop over its published formulas, against Adam, on a badly conditioned problem, and saved in the middle."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from modelforge.training.optimizer import AdamSection, AdamWSection, SOAPSection, build_optimizer
from modelforge.training.soap import FLOOR, RESOLUTION, SOAP

SHAPES = [(4, 3), (4, 3), (2, 3, 4), (3, 1, 4), (5,)]
SECTION = SOAPSection(name="soap", learning_rate=0.03, betas=(0.8, 0.9), basis_decay=0.7, basis_interval=3)


class Weights(nn.Module):
    """Random weights of many shapes."""

    def __init__(self, shapes: list[tuple[int, ...]] = SHAPES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes
        )


def set_gradients(model: nn.Module, step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    gradients = [rng.normal(size=weight.shape) * (1.0 + step % 3) for weight in model.parameters()]
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        weight.grad = torch.from_numpy(gradient.copy())
    return gradients


def run(section: SOAPSection | AdamSection | AdamWSection, model: nn.Module, steps: range) -> torch.optim.Optimizer:
    optimizer = build_optimizer(section, model)
    for step in steps:
        set_gradients(model, step)
        optimizer.step()
    return optimizer


def warm_up(optimizer: torch.optim.Optimizer, step: int) -> None:
    """The learning rate rises over 100 steps."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * min(1.0, (step + 1) / 100)


def power_iteration(covariance: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifted = covariance + RESOLUTION * np.trace(covariance) * np.eye(len(covariance))
    order = np.argsort(-np.diag(basis.T @ shifted @ basis), kind="stable")
    return np.linalg.qr(shifted @ basis[:, order])[0], order


class OneWeight:
    """Algorithm 3 of the paper with a floor for divisors, for a tensor of any number of axes, one axis after the other."""

    def __init__(self, shape: tuple[int, ...], largest: int) -> None:
        self.axes = [axis for axis, size in enumerate(shape) if 1 < size <= largest] if len(shape) > 1 else []
        self.mean, self.square, self.count = np.zeros(shape), np.zeros(shape), 0
        self.covariance: dict[int, np.ndarray] = {}
        self.basis: dict[int, np.ndarray] = {}

    def products(self, gradient: np.ndarray, axis: int) -> np.ndarray:
        others = [other for other in range(gradient.ndim) if other != axis]
        return np.tensordot(gradient, gradient, axes=(others, others))

    def turned(self, values: np.ndarray, *, back: bool = False) -> np.ndarray:
        for axis in self.axes:
            matrix = self.basis[axis].T if back else self.basis[axis]
            values = np.moveaxis(np.tensordot(values, matrix, axes=(axis, 0)), -1, axis)
        return values

    def change(self, gradient: np.ndarray) -> np.ndarray:
        if not self.count:
            self.covariance = {axis: self.products(gradient, axis) for axis in self.axes}
            self.basis = {axis: power_iteration(found, np.eye(len(found)))[0] for axis, found in self.covariance.items()}
        self.count += 1
        turned, (beta, beta_of_square) = self.turned(gradient), SECTION.betas
        self.mean = beta * self.mean + (1 - beta) * gradient  # in the axes of the weight, as in the paper
        self.square = beta_of_square * self.square + (1 - beta_of_square) * turned**2
        mean = self.turned(self.mean) / (1 - beta**self.count)
        divisor = np.sqrt(self.square / (1 - beta_of_square**self.count)) + SECTION.epsilon
        change = self.turned(mean / (divisor + (FLOOR * np.sqrt(np.mean(divisor**2)) if self.axes else 0.0)), back=True)
        for axis in self.axes:
            kept = SECTION.basis_decay
            self.covariance[axis] = kept * self.covariance[axis] + (1 - kept) * self.products(gradient, axis)
        if self.count % SECTION.basis_interval == 0:
            for axis in self.axes:
                self.basis[axis], order = power_iteration(self.covariance[axis], self.basis[axis])
                self.square = np.take(self.square, order, axis=axis)
        return change


@pytest.mark.parametrize("largest", [4, 3, 2])
def test_soap_is_its_published_formula(largest: int):
    """Also where some axes of a weight are too long for a basis, the first, the last or all."""
    model = Weights()
    expected = [weight.detach().clone().numpy() for weight in model.parameters()]
    loops = [OneWeight(weight.shape, largest) for weight in model.parameters()]
    optimizer = build_optimizer(SECTION.model_copy(update={"largest_axis": largest}), model)
    for step in range(10):  # three power iterations
        gradients = set_gradients(model, step)
        optimizer.step()
        for weight, loop, gradient in zip(expected, loops, gradients, strict=True):
            weight -= SECTION.learning_rate * loop.change(gradient)
        for weight, value in zip(model.parameters(), expected, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), value, rtol=0, atol=1e-7)  # rounding over epsilon


def test_without_bases_it_is_adamw():
    fields = {"learning_rate": 0.03, "betas": (0.8, 0.9), "weight_decay": 0.1}
    soap, adam = Weights(), Weights()
    run(SOAPSection(name="soap", largest_axis=1, **fields), soap, range(10))
    run(AdamWSection(**fields), adam, range(10))
    torch.testing.assert_close(list(soap.parameters()), list(adam.parameters()), rtol=0, atol=1e-12)


def test_it_finds_a_narrow_valley_that_lies_across_the_axes():
    """|A (W - T) B|^2 with condition 1e6, turned at random: where Adam has come a hundredth of the way, SOAP has arrived."""
    generator = torch.Generator().manual_seed(1)

    def steep(size: int) -> Tensor:
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        return torch.logspace(0, -1.5, size, dtype=torch.float64)[:, None] * turn

    left, right, target = steep(8), steep(6).T, torch.randn(8, 6, generator=generator, dtype=torch.float64)

    def loss_of(section: SOAPSection | AdamSection) -> float:
        model = nn.Linear(6, 8, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = build_optimizer(section, model)
        for step in range(400):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 400)
            optimizer.zero_grad()
            loss = (left @ (model.weight - target) @ right).square().sum()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_of(SOAPSection(name="soap")) < 1e-3 * loss_of(AdamSection())


def test_a_saved_optimizer_goes_on_bit_for_bit():
    whole, model = Weights(), Weights()
    run(SECTION, whole, range(10))
    first = run(SECTION, model, range(5))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build_optimizer(SECTION, model)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(5, 10):
        set_gradients(model, step)
        second.step()
    torch.testing.assert_close(list(model.parameters()), list(whole.parameters()), rtol=0, atol=0)


def test_runs_that_agree_to_rounding_stay_together_in_float32():
    """After 300 steps with gradients that differ by 1e-7: less than 1e-4 of the way apart (AdamW 4e-7, here 1e-5)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 16, generator=generator)
    labels = torch.sin(inputs @ torch.randn(16, 4, generator=generator))

    def weights_of(noise: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4))
        start = parameters_to_vector(model.parameters()).detach()
        optimizer = build_optimizer(SOAPSection(name="soap", learning_rate=5e-3), model)
        members, disturbance = torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)
        for step in range(300):
            warm_up(optimizer, step)
            chosen = torch.randint(0, 200, (8,), generator=members)
            optimizer.zero_grad()
            (model(inputs[chosen]) - labels[chosen]).square().mean().backward()
            for weight in model.parameters():
                assert weight.grad is not None
                weight.grad *= 1 + noise * torch.randn(weight.shape, generator=disturbance)
            optimizer.step()
        return start, parameters_to_vector(model.parameters()).detach()

    (start, plain), (_, disturbed) = weights_of(0.0), weights_of(1e-7)
    assert (plain - disturbed).norm() < 1e-4 * (plain - start).norm()


def test_directions_without_gradients_do_not_walk_with_the_rounding():
    """Gradients of rank 4 of a weight of 64 x 64 in float32: what is not theirs moves by less than a tenth."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q[:, :4] for _ in range(2))
    model = nn.Linear(64, 64, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(SOAPSection(name="soap"), model)
    for step in range(600):
        warm_up(optimizer, step)
        core = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        model.weight.grad = (left @ core @ right.T).float()
        optimizer.step()
    weight = model.weight.detach().double()
    inside = left @ (left.T @ weight @ right) @ right.T
    assert (weight - inside).norm() < 0.1 * inside.norm()


@pytest.mark.parametrize("gradient", [0.0, 1e-30, 1e12])
def test_gradients_of_any_size_give_finite_weights(gradient: float):
    model = Weights([(4, 3), (3, 2, 2)]).float()
    optimizer = build_optimizer(SECTION, model)
    for _ in range(7):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_weights_stay_in_the_steps_in_which_they_have_no_gradient():
    model = Weights([(4, 3), (4, 3)])
    first, second = model.parameters()
    optimizer = build_optimizer(SECTION, model)
    for step in range(8):
        set_gradients(model, step)
        resting, moving = (first, second) if step % 2 else (second, first)
        resting.grad = None
        before, start = resting.detach().clone(), moving.detach().clone()
        optimizer.step()
        torch.testing.assert_close(resting.detach(), before, rtol=0, atol=0)
        assert (moving.detach() != start).all()


def test_weights_of_equal_shape_do_not_see_each_other():
    together, alone = Weights([(4, 3), (4, 3)]), Weights([(4, 3)])
    run(SECTION, together, range(10))
    run(SECTION, alone, range(10))
    torch.testing.assert_close(together.weights[0], alone.weights[0], rtol=0, atol=1e-12)


def test_each_group_has_its_own_learning_rate():
    fields = {"betas": (0.9, 0.9), "epsilon": 1e-8, "basis_decay": 0.9, "basis_interval": 3, "largest_axis": 8}
    model = Weights([(4, 3), (4, 3)])
    resting, moving = (weight.detach().clone() for weight in model.parameters())
    groups = [{"params": [weight], "weight_decay": 0.0} for weight in model.parameters()]
    optimizer = SOAP(groups, lr=0.1, **fields)
    optimizer.param_groups[0]["lr"] = 0.0
    set_gradients(model, 0)
    optimizer.step()
    assert torch.equal(model.weights[0], resting)
    assert (model.weights[1] != moving).all()
