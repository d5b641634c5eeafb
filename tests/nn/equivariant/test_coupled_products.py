"""Products of coupled factors are the sums of their equations, with all derivatives, for any number of channels. About 2 s."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from modelforge.nn.equivariant.coupled_products import Couplings, coupled_product, is_native

SIZES = (4, 3, 5, 2)  # paths and components
EQUATIONS = ("pijk,jnu,knu,pu->inu", "pijk,inu,knu,pu->jnu", "pijk,inu,jnu,pu->knu")

if not is_native(torch.zeros(1)):
    pytest.skip("there is no compiler", allow_module_level=True)


def coefficients() -> Tensor:
    """Half of them zero, and all of one path."""
    values = torch.randn(SIZES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values[values.abs() < 0.6] = 0.0
    values[1] = 0.0
    return values


def factors(num_atoms: int, num_channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(size, num_atoms, num_channels, dtype=dtype, requires_grad=True) for size in SIZES[1:]]


@pytest.mark.parametrize("num_channels", [1, 3, 8, 48])
@pytest.mark.parametrize("place", range(3))
def test_a_product_is_the_sum_of_its_equation(place, num_channels):
    weights = torch.randn(SIZES[0], num_channels, dtype=torch.float64)
    others = [factor for number, factor in enumerate(factors(7, num_channels)) if number != place]
    expected = torch.einsum(EQUATIONS[place], coefficients(), *others, weights)
    torch.testing.assert_close(coupled_product(Couplings(coefficients()), place, others, weights), expected)
    single = [tensor.float() for tensor in (*others, weights)]
    found = coupled_product(Couplings(coefficients()), place, single[:2], single[2])
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", range(3))
def test_it_has_derivatives_of_first_and_second_order(place):
    weights = torch.randn(SIZES[0], 2, dtype=torch.float64, requires_grad=True)
    couplings = Couplings(coefficients())
    others = [factor for number, factor in enumerate(factors(3, 2)) if number != place]
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, y, w: coupled_product(couplings, place, [x, y], w), (*others, weights), fast_mode=True)


def test_results_are_the_same_with_any_number_of_threads():
    inputs = (*factors(9, 32, torch.float32)[:2], torch.randn(SIZES[0], 32, requires_grad=True))
    found, num_threads = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            result = coupled_product(Couplings(coefficients()), 2, inputs[:2], inputs[2])
            found.append((result, *torch.autograd.grad(result.square().sum(), inputs)))
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_no_atoms_give_no_results():
    weights = torch.randn(SIZES[0], 4, dtype=torch.float64, requires_grad=True)
    result = coupled_product(Couplings(coefficients()), 1, factors(0, 4)[::2], weights)
    assert result.shape == (SIZES[2], 0, 4)
    (by_weights,) = torch.autograd.grad(result.sum(), weights)
    assert not by_weights.any()
