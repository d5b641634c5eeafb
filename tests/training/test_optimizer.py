"""Learning rates against closed forms and torch's scheduler, clipping against torch and a loop, weight decay."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from modelforge.training.clipping import Clipping, FixedNorm, NoClipping, RunningNorm
from modelforge.training.learning_rate import (
    AnySchedule,
    ConstantRate,
    CosineDecay,
    ExponentialDecay,
    LearningRate,
    ReduceOnPlateau,
    StaircaseDecay,
    schedule_factor,
)
from modelforge.training.optimizer import AdamSection, AdamWSection, build_optimizer

RELATIVE = 1e-12
FULL_RATE = 0.02


def rate_of(section: AnySchedule, *, total_steps: int = 1000, steps_per_epoch: float = 10) -> LearningRate:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=FULL_RATE)
    return LearningRate(section, optimizer, steps_per_epoch=steps_per_epoch, total_steps=total_steps)


def rate_at(rate: LearningRate, step: int) -> float:
    rate.set_for(step)
    return float(rate.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("section", "closed_form"),
    [
        (ConstantRate(warmup_steps=0), lambda _step: 1.0),
        (ExponentialDecay(warmup_steps=0, factor=0.3, decay_epochs=4), lambda step: 0.3 ** (step / 40)),
        (StaircaseDecay(warmup_steps=0, factor=0.3, decay_epochs=4), lambda step: 0.3 ** (step // 40)),
        (
            CosineDecay(warmup_steps=0, final_fraction=0.1),
            lambda step: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 1000)),
        ),
        (ReduceOnPlateau(warmup_steps=0), lambda _step: 1.0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_schedules_are_their_closed_forms(section: AnySchedule, closed_form):
    rate = rate_of(section)
    for step in (0, 1, 39, 40, 41, 500, 999):
        assert rate_at(rate, step) == pytest.approx(FULL_RATE * closed_form(step), rel=RELATIVE)


@pytest.mark.parametrize("section_of", [ConstantRate, ExponentialDecay, StaircaseDecay, CosineDecay, ReduceOnPlateau])
def test_the_warm_up_is_a_straight_line_that_ends_at_the_schedule(section_of):
    warm, cold = section_of(warmup_steps=9), section_of(warmup_steps=0)
    for step in range(30):
        ratio = schedule_factor(warm, step, steps_per_epoch=10, total_steps=100) / schedule_factor(
            cold, step, steps_per_epoch=10, total_steps=100
        )
        assert ratio == pytest.approx(min(1.0, (step + 1) / 10), rel=RELATIVE)


def test_the_cosine_ends_at_its_final_fraction_and_stays_there():
    rate = rate_of(CosineDecay(warmup_steps=0, final_fraction=0.1), total_steps=50)
    assert rate_at(rate, 50) == pytest.approx(0.1 * FULL_RATE, rel=RELATIVE)
    assert rate_at(rate, 70) == pytest.approx(0.1 * FULL_RATE, rel=RELATIVE)


def test_a_plateau_falls_as_torch_lets_it_fall():
    """torch waits for one validation more than its patience says."""
    section = ReduceOnPlateau(warmup_steps=0, factor=0.4, patience=3, threshold=0.05, min_learning_rate=1e-4)
    rate = rate_of(section)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=FULL_RATE)
    theirs = ReduceLROnPlateau(reference, factor=0.4, patience=2, threshold=0.05, min_lr=1e-4, eps=0)
    losses = np.abs(np.random.default_rng(0).normal(size=80)) * np.linspace(1.0, 0.5, 80)
    rates = []
    for step, loss in enumerate(losses.tolist(), start=1):
        rate.after_validation(loss, step)
        theirs.step(loss)
        rates.append(rate_at(rate, step))
        assert rates[-1] == pytest.approx(reference.param_groups[0]["lr"], rel=RELATIVE)
    assert len(set(rates)) > 3


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_the_rate_falls_after_exactly_patience_validations_without_improvement(patience: int):
    rate = rate_of(ReduceOnPlateau(warmup_steps=0, patience=patience))
    rate.after_validation(1.0, 1)
    for _ in range(2):
        before = rate_at(rate, 1)
        for count in range(1, patience + 1):
            assert rate_at(rate, 1) == before
            rate.after_validation(1.0, 1 + count)
        assert rate_at(rate, 1) == pytest.approx(before / 2, rel=RELATIVE)


def test_an_improvement_below_the_threshold_does_not_count():
    rate = rate_of(ReduceOnPlateau(warmup_steps=0, patience=2, threshold=0.01))
    for loss in (1.0, 0.995, 0.991):
        rate.after_validation(loss, 1)
    assert rate_at(rate, 1) == pytest.approx(FULL_RATE / 2, rel=RELATIVE)


def test_no_validation_counts_during_the_warm_up():
    rate = rate_of(ReduceOnPlateau(warmup_steps=5, patience=1))
    for step in range(1, 6):
        rate.after_validation(float(step), step)
    assert rate_at(rate, 100) == FULL_RATE
    rate.after_validation(1.0, 6)
    rate.after_validation(1.0, 7)
    assert rate_at(rate, 100) == pytest.approx(FULL_RATE / 2, rel=RELATIVE)


def test_the_rate_does_not_fall_below_its_minimum_and_says_so():
    rate = rate_of(ReduceOnPlateau(warmup_steps=0, patience=1, min_learning_rate=FULL_RATE / 3))
    assert rate.in_words() == "plateau 0/1 at 0.1 %, next lr 1.0e-02"
    said = []
    for _ in range(6):
        rate.after_validation(1.0, 1)
        said.append(rate.in_words())
    assert said[1] == "lr falls to 1.0e-02, plateau 0/1 at 0.1 %, next lr 6.7e-03"
    assert said[2] == "lr falls to 6.7e-03, lr at its minimum"
    assert rate_at(rate, 1) == pytest.approx(FULL_RATE / 3, rel=RELATIVE)
    assert rate.in_words() == "lr at its minimum"


def test_a_restored_plateau_goes_on_as_if_nothing_had_happened():
    section = ReduceOnPlateau(warmup_steps=0, patience=3, factor=0.7)
    losses = np.abs(np.random.default_rng(1).normal(size=60)).tolist()
    for pause in (0, 1, 7, 20):
        whole, first, second = (rate_of(section) for _ in range(3))
        for loss in losses[:pause]:
            first.after_validation(loss, 1)
        second.load_state_dict(first.state_dict())
        for loss in losses[:pause]:
            whole.after_validation(loss, 1)
        for loss in losses[pause:]:
            whole.after_validation(loss, 1)
            second.after_validation(loss, 1)
            assert rate_at(second, 1) == rate_at(whole, 1)


# Clipping


def random_gradients(seed: int, size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), ())]


def norm_of(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_a_fixed_norm_clips_as_torch_does(size: float):
    ours, theirs = random_gradients(0, size), random_gradients(0, size)
    Clipping(FixedNorm(limit=2.0))(ours)
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in theirs]
    for weight, gradient in zip(weights, theirs, strict=True):
        weight.grad = gradient
    nn.utils.clip_grad_norm_(weights, 2.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm


def test_a_running_norm_clips_at_a_multiple_of_the_mean_of_what_it_let_through():
    clip = Clipping(RunningNorm(factor=2.0))
    total = weight = 0.0
    sizes = [1.0, 1.1, 0.9, 50.0, 1.0, 1e4, 0.0, 3.0, 1.0]
    num_clipped = 0
    for seed, size in enumerate(sizes):
        gradients = random_gradients(seed, size)
        before = norm_of(gradients)
        limit = 2.0 * total / weight if weight else before
        clip(gradients)
        assert norm_of(gradients) == pytest.approx(min(before, limit), rel=1e-9)
        num_clipped += before > limit
        total, weight = 0.98 * total + 0.02 * min(before, limit), 0.98 * weight + 0.02
    assert num_clipped >= 2


def test_clipping_keeps_the_direction():
    gradients = random_gradients(0, 10.0)
    expected = [gradient / norm_of(gradients) for gradient in gradients]
    Clipping(FixedNorm(limit=1.0))(gradients)
    torch.testing.assert_close(gradients, expected)


def test_zero_gradients_and_no_clipping_stay_as_they_are():
    zeros = [torch.zeros(3), torch.zeros(2, 2)]
    Clipping(RunningNorm())(zeros)
    assert all((gradient == 0).all() for gradient in zeros)
    gradients = random_gradients(0, 1e6)
    Clipping(NoClipping())(gradients)
    torch.testing.assert_close(gradients, random_gradients(0, 1e6), rtol=0, atol=0)


# Optimizers


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(AdamWSection(weight_decay=0.1, learning_rate=0.5), model)
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for weight, old in zip(model.parameters(), before, strict=True):
        expected = old * (1 - 0.5 * 0.1) if weight.ndim > 1 else old
        torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(
    "section", [AdamSection(), AdamWSection(), AdamSection(amsgrad=True)], ids=["adam", "adamw", "amsgrad"]
)
def test_adam_is_its_published_formula(section: AdamSection | AdamWSection):
    """Kingma and Ba, algorithm 1; with amsgrad the largest mean square so far."""
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = build_optimizer(section, model)
    weight = model.weight.detach().clone().numpy()
    mean, square, largest = np.zeros_like(weight), np.zeros_like(weight), np.zeros_like(weight)
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        gradient = rng.normal(size=weight.shape) * 10.0 ** (2 - step)
        model.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        largest = np.maximum(largest, square) if section.amsgrad else square
        weight -= 1e-3 * (mean / (1 - 0.9**step)) / (np.sqrt(largest / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-10, atol=0)
