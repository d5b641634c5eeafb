"""The averaged weights against a loop, and that they come and go without a trace."""

import numpy as np
import pytest
import torch
from torch import nn

from modelforge.training.weight_average import WeightAverage


def model_with_noise() -> tuple[nn.Module, np.random.Generator]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double(), np.random.default_rng(0)


def disturb(model: nn.Module, rng: np.random.Generator) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.from_numpy(rng.normal(size=weight.shape))


def copies(model: nn.Module) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in model.parameters()]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_a_loop_with_a_decay_that_rises(decay: float):
    model, rng = model_with_noise()
    average = WeightAverage(model, decay)
    expected = copies(model)
    for step in range(1, 60):
        disturb(model, rng)
        average.update()
        keep = min(decay, (1 + step) / (10 + step))
        expected = [keep * old + (1 - keep) * new for old, new in zip(expected, copies(model), strict=True)]
    for got, want in zip(average.weights().values(), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-14)


def test_the_names_are_those_of_the_model():
    model, _ = model_with_noise()
    assert list(WeightAverage(model, 0.9).weights()) == [name for name, _ in model.named_parameters()]


def test_in_place_the_model_has_the_average_and_afterwards_its_own_bits():
    model, rng = model_with_noise()
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        disturb(model, rng)
        average.update()
    raw = copies(model)
    addresses = [weight.data_ptr() for weight in model.parameters()]
    with average.in_place():
        for got, want in zip(copies(model), average.weights().values(), strict=True):
            np.testing.assert_array_equal(got, want.numpy())
    for got, want in zip(copies(model), raw, strict=True):
        np.testing.assert_array_equal(got, want)
    assert [weight.data_ptr() for weight in model.parameters()] == addresses  # the optimizer holds the same tensors


def test_the_raw_weights_come_back_after_an_error():
    model, rng = model_with_noise()
    average = WeightAverage(model, 0.9)
    disturb(model, rng)
    raw = copies(model)

    def fail() -> None:
        with average.in_place():
            raise RuntimeError("in the middle of a validation")

    with pytest.raises(RuntimeError, match="validation"):
        fail()
    for got, want in zip(copies(model), raw, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_decay_of_zero_is_no_average():
    model, rng = model_with_noise()
    average = WeightAverage(model, 0.0)
    disturb(model, rng)
    average.update()
    for got, want in zip(average.weights().values(), copies(model), strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


def test_a_restored_average_goes_on_with_the_same_bits():
    model, rng = model_with_noise()
    whole = WeightAverage(model, 0.99)
    for _ in range(5):
        disturb(model, rng)
        whole.update()
    again = WeightAverage(model, 0.99)
    again.load({name: weight.clone() for name, weight in whole.weights().items()}, 5)
    for _ in range(5):
        disturb(model, rng)
        whole.update()
        again.update()
    for got, want in zip(again.weights().values(), whole.weights().values(), strict=True):
        assert torch.equal(got, want)
