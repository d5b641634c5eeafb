"""Networks of elements give what a loop over the atoms gives, in value and derivatives, eager and traced."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from modelforge.nn.elements.grouped_products import grouped_linear, row_groups
from modelforge.nn.elements.per_element import ElementNetworks

ELEMENTS = (1, 6, 7, 8)
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}
WIDTHS = {1: (6, 4), 6: (5, 3), 7: (3, 3), 8: (2, 5)}
NUMBERS = torch.tensor([6, 1, 8, 1, 1, 6, 1])  # no nitrogen

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # what tracing imports


def networks(widths: dict[int, tuple[int, ...]] = WIDTHS) -> ElementNetworks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ElementNetworks(ELEMENTS, num_in=5, widths=widths, activation=nn.Tanh()).double()
        for weight in made.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return made


def features(num: int = len(NUMBERS)) -> Tensor:
    return torch.randn(num, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_a_loop(made: ElementNetworks, x: Tensor, numbers: Tensor) -> tuple[Tensor, list[Tensor]]:
    energies, hidden = [], []
    for row, number in zip(x, numbers.tolist(), strict=True):
        *first, last = made.networks[SYMBOLS[number]]
        for layer in first:
            row = made.activation(layer(row))
        hidden.append(row)
        energies.append(last(row))
    return torch.cat(energies), hidden


@pytest.mark.parametrize("numbers", [NUMBERS, NUMBERS.flip(0), torch.tensor([7, 7]), torch.tensor([1])], ids=str)
def test_energies_and_last_hidden_layers_are_those_of_a_loop(numbers: Tensor):
    made, x = networks(), features(len(numbers))
    energies, hidden = made(x, numbers)
    expected, expected_hidden = by_a_loop(made, x, numbers)
    torch.testing.assert_close(energies, expected, rtol=0, atol=1e-13)
    assert hidden.shape == (len(numbers), 5)
    for row, expected_row in zip(hidden, expected_hidden, strict=True):
        torch.testing.assert_close(row[: len(expected_row)], expected_row, rtol=0, atol=1e-13)
        assert (row[len(expected_row) :] == 0).all()


def test_equal_widths_are_a_case_like_any_other():
    made, x = networks(dict.fromkeys(ELEMENTS, (4, 3))), features()
    torch.testing.assert_close(made(x, NUMBERS)[0], by_a_loop(made, x, NUMBERS)[0], rtol=0, atol=1e-13)


def energy_of(made: ElementNetworks) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The energies as a function of features and weights."""
    names = [name for name, _ in made.named_parameters()]

    def energy(x: Tensor, *weights: Tensor) -> Tensor:
        energies, hidden = torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (x, NUMBERS))
        return energies + hidden.square().sum(dim=1)

    return energy, [weight.detach().requires_grad_() for weight in made.parameters()]


def test_first_and_second_derivatives_by_features_and_all_weights():
    energy, weights = energy_of(networks())
    x = features().requires_grad_()
    assert torch.autograd.gradcheck(energy, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, (x, *weights), fast_mode=True)


def test_derivatives_are_those_of_a_loop():
    """By the features, and of these by the weights, as forces are trained."""
    made, gradients = networks(), []
    for run in (lambda x: made(x, NUMBERS)[0], lambda x: by_a_loop(made, x, NUMBERS)[0]):
        x = features().requires_grad_()
        (slope,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        by_weights = torch.autograd.grad(slope.pow(3).sum(), list(made.parameters()), allow_unused=True, materialize_grads=True)
        gradients.append([slope, *by_weights])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def products(function: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    return sum(event.count for event in recorded.key_averages() if event.key.startswith("modelforge::grouped"))


def test_only_the_derivatives_that_are_asked_for_are_computed():
    """Forces alone need no derivatives by the weights, and the weights' none by the features."""
    made, x = networks(), features().requires_grad_()
    energies = made(x, NUMBERS)[0].sum()
    assert products(lambda: torch.autograd.grad(energies, x, retain_graph=True)) == 3
    weights = list(made.parameters())
    assert products(lambda: torch.autograd.grad(energies, weights, retain_graph=True)) == 2 + 3 + 3  # rows, weights, biases


def test_a_traced_graph_gives_the_same_with_other_numbers_of_atoms():
    """One graph of values and second derivatives, for sizes that the trace has not seen."""
    made = networks()
    weights = list(made.parameters())

    def step(x: Tensor, numbers: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        energies, _ = made(x, numbers)
        (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
        return [energies, slope, *torch.autograd.grad(slope.square().sum() + energies.sum(), weights)]

    traced = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(features(), NUMBERS)
    for numbers in (NUMBERS, torch.tensor([8, 8, 1, 6, 7, 1, 1, 1, 6, 7, 8]), torch.tensor([7, 6])):
        with torch.no_grad():
            found = traced(features(len(numbers)), numbers)
        for got, expected in zip(found, step(features(len(numbers)), numbers), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_half_precision_reaches_the_hidden_layers_and_not_the_energies():
    made, x = networks().float(), features().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energies, _ = made(x, NUMBERS)
    exact, _ = made(x, NUMBERS)
    assert energies.dtype == torch.float32
    assert 1e-6 < float((energies - exact).detach().abs().max()) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_without_waiting():
    made = networks()
    results = []
    for device in ("cpu", "cuda"):
        made.to(device)
        groups = row_groups(made.column[NUMBERS.to(device)], num_groups=len(ELEMENTS))
        x = features().to(device).requires_grad_()
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            layers = [network[0] for network in made.networks.values()]
            y = grouped_linear(x, [layer.weight for layer in layers], [layer.bias for layer in layers], groups)
            (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            gradients = torch.autograd.grad(slope.pow(3).sum(), [layer.weight for layer in layers])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append([tensor.detach().cpu() for tensor in (y, slope, *gradients)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
