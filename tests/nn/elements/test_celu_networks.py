"""Networks of CELU layers whose derivatives are written out, in C, give what the layers give by autograd. 3 s."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from modelforge.nn.elements import native_networks
from modelforge.nn.elements.celu_networks import celu_energies
from modelforge.nn.elements.per_element import ElementNetworks
from modelforge.nn.native import library

NUMBERS = torch.tensor([6, 1, 8, 1, 1, 6, 1])  # no nitrogen
ALPHA = 0.125  # without rounding in single precision, to which torch rounds its inverse
WIDTHS = {1: (6, 4), 6: (5, 3), 7: (3, 3), 8: (2, 5)}


def networks() -> ElementNetworks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ElementNetworks((1, 6, 7, 8), num_in=5, widths=WIDTHS, activation=nn.CELU(ALPHA)).double()
        for weight in made.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return made


def features() -> Tensor:
    return torch.randn(len(NUMBERS), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.SWITCH, raising=False)
    if not native_networks.is_native(torch.empty(0)):
        pytest.skip("there is no C compiler here")


@pytest.fixture
def made(native_code: None, monkeypatch: pytest.MonkeyPatch) -> ElementNetworks:
    monkeypatch.setattr("modelforge.nn.elements.per_element._is_quick", lambda _: True)
    return networks()


def of_layers(made: ElementNetworks, x: Tensor) -> Tensor:
    return made(x, NUMBERS)[0]


def of_written_out(made: ElementNetworks, x: Tensor) -> Tensor:
    return made.energies(x, NUMBERS)


def test_energies_forces_and_gradients_of_both_are_those_of_the_layers(made: ElementNetworks):
    results = []
    for energies_of in (of_written_out, of_layers):
        x = features()
        energies = energies_of(made, x)
        (slope,) = torch.autograd.grad(energies.square().sum(), x, create_graph=True)
        loss = slope.pow(3).sum() + energies.pow(3).sum()
        results.append([energies, slope, *torch.autograd.grad(loss, list(made.parameters()), allow_unused=True)])
    for got, expected in zip(*results, strict=True):
        expected = torch.zeros_like(got) if expected is None else expected
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_second_and_third_derivatives_by_features_and_weights_are_right(made: ElementNetworks):
    names, weights = zip(*[(name, weight.detach().requires_grad_()) for name, weight in made.named_parameters()], strict=True)

    def energies(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(_Energies(made), {f"made.{n}": w for n, w in zip(names, weights, strict=True)}, x)

    def slopes(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.autograd.grad(energies(x, *weights).square().sum(), x, create_graph=True)[0]

    for function in (energies, slopes):
        assert torch.autograd.gradcheck(function, (features(), *weights), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (features(), *weights), fast_mode=True)


class _Energies(nn.Module):
    def __init__(self, made: ElementNetworks) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return of_written_out(self.made, x)


@pytest.mark.usefixtures("native_code")
def test_training_of_forces_never_comes_to_the_plain_function():
    """It would cost as much again, and nothing of it would be used."""

    def plain(*_: object) -> Tensor:
        raise AssertionError

    made, x = networks(), features()
    weights, biases = made._weights_and_biases()
    group = made.column[NUMBERS]
    energies = celu_energies(x, group, weights, biases, num_layers=3, alpha=ALPHA, plain=plain)
    (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
    torch.autograd.grad(slope.square().sum() + energies.sum(), [*weights, *biases])


@pytest.mark.usefixtures("native_code")
def test_single_precision_is_written_out_and_double_is_not():
    """With the same numbers."""
    made, x = networks(), features()
    expected = made.energies(x, NUMBERS)
    assert "_Energies" not in expected.grad_fn.name()
    got = made.float().energies(x.detach().float().requires_grad_(), NUMBERS)
    assert "_Energies" in got.grad_fn.name()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


Results = list[Tensor]


def of_wide_networks(num_threads: int = 1) -> tuple[Results, Results]:
    """Energies, gradients, and gradients by all weights, of many rows: written out; as of layers, in double precision."""
    random = torch.Generator().manual_seed(2)
    widths = {1: (70, 33), 6: (48, 64), 7: (17, 5), 8: (100, 31)}
    made = ElementNetworks((1, 6, 7, 8), num_in=45, widths=widths, activation=nn.CELU(ALPHA))
    numbers = torch.tensor([1, 6, 7, 8])[torch.multinomial(torch.tensor([0.8, 0.1, 0.09, 0.01]), 300, True, generator=random)]
    features, directions = torch.randn(2, 300, 45, generator=random)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    found = [
        _trained(made, numbers, features, directions),
        _trained(made.double(), numbers, features.double(), directions.double()),
    ]
    torch.set_num_threads(before)
    return found[0], found[1]


def _trained(made: ElementNetworks, numbers: Tensor, features: Tensor, directions: Tensor) -> Results:
    x = features.clone().requires_grad_()
    energies = made.energies(x, numbers)
    (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
    loss = energies.square().sum() + (slope * directions).square().sum()
    found = [energies, slope, *torch.autograd.grad(loss, list(made.parameters()))]
    return [tensor.detach() for tensor in found]


@pytest.mark.usefixtures("native_code")
def test_wide_networks_and_many_rows_are_right_in_single_precision():
    torch.manual_seed(0)
    for got, expected in zip(*of_wide_networks(), strict=True):
        assert float((got - expected).abs().max()) <= 3e-6 * float(expected.abs().max())


def test_the_number_of_threads_changes_no_bit_in_native_code():
    found = []
    for threads in (1, 3):
        torch.manual_seed(0)
        found.append(of_wide_networks(threads)[0])
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.usefixtures("native_code")
def test_a_feature_that_is_not_a_number_spoils_its_energy_and_no_other():
    made, x = networks().float(), features().detach().float()
    x[2, 1] = torch.nan
    assert torch.isnan(made.energies(x.requires_grad_(), NUMBERS)).tolist() == [n == 2 for n in range(len(NUMBERS))]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # what tracing imports
def test_a_traced_graph_of_native_code_gives_the_same_with_other_rows():
    made = networks().float()
    if not native_networks.is_native(torch.empty(0)):
        pytest.skip("there is no C compiler here")

    def step(x: Tensor, numbers: Tensor) -> Results:
        return _trained(made, numbers, x, torch.ones_like(x))

    traced = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(features().detach().float(), NUMBERS)
    names = {str(node.target) for node in traced.graph.nodes}
    assert {"modelforge.celu_networks.default", "modelforge.celu_networks_weights.default"} <= names
    numbers, x = torch.tensor([8, 8, 1, 6, 7, 1, 1, 1, 6, 7, 8]), torch.randn(11, 5, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = traced(x, numbers)
    for got, expected in zip(found, step(x, numbers), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
