"""Batched products of matrices of groups: against one product a column, and both ways to compute them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modelforge.nn.elements.grouped_matrices import (
    outer,
    outer_on_cpu,
    outer_on_gpu,
    product,
    product_on_cpu,
    product_on_gpu,
)

ENDS = torch.tensor([3, 3, 7])  # of the second group there is no column
GROUPS = torch.tensor([0, 0, 0, 2, 2, 2, 2])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("transposed", [False, True])
def test_each_column_meets_the_matrix_of_its_group(transposed: bool) -> None:
    weights, columns = random(3, 2, 4, 5), random(2, 4 if transposed else 5, 7)
    matrices = weights.mT if transposed else weights
    expected = torch.einsum("nboi,bin->bon", matrices[GROUPS], columns)
    for function in (product_on_cpu, product_on_gpu):  # what is for a GPU runs on tensors of the CPU as well
        torch.testing.assert_close(function(weights, columns, ENDS, transposed), expected)


def test_outer_products_are_summed_over_the_columns_of_a_group() -> None:
    left, right = random(2, 4, 7), random(2, 5, 7) + 1.0
    one_hot = torch.nn.functional.one_hot(GROUPS, 3).double()
    expected = torch.einsum("bon,bin,ng->gboi", left, right, one_hot)
    for function in (outer_on_cpu, outer_on_gpu):
        torch.testing.assert_close(function(left, right, ENDS), expected)


def test_they_can_be_differentiated_twice() -> None:
    weights, columns, left = random(3, 1, 2, 2), random(1, 2, 7), random(1, 2, 7) + 1.0
    inputs = [tensor.requires_grad_() for tensor in (weights, columns)]
    assert torch.autograd.gradcheck(lambda w, x: product(w, x, ENDS), inputs)
    assert torch.autograd.gradgradcheck(lambda w, x: product(w, x, ENDS), inputs)
    assert torch.autograd.gradgradcheck(lambda y, x: outer(y, x, ENDS), [left.requires_grad_(), columns])


class _Operators(TorchDispatchMode):
    """The names of ours that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith("modelforge::"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("wanted", "name"), [(0, "batched_grouped_outer"), (1, "batched_grouped_product")])
def test_a_product_computes_only_the_gradient_that_is_asked_for(wanted: int, name: str) -> None:
    leaves = [random(*shape).requires_grad_() for shape in ((3, 1, 2, 2), (1, 2, 7))]
    weights, columns = (leaf * 1.0 for leaf in leaves)
    result = product(weights, columns, ENDS)
    with _Operators() as found:
        torch.autograd.grad(result.sum(), leaves[wanted])
    assert found.names == [f"modelforge::{name}"]


@pytest.mark.parametrize("wanted", [0, 1])
def test_an_outer_product_computes_only_the_gradient_that_is_asked_for(wanted: int) -> None:
    leaves = [random(1, 2, 7).requires_grad_(), (random(1, 2, 7) + 1.0).requires_grad_()]
    left, right = (leaf * 1.0 for leaf in leaves)
    result = outer(left, right, ENDS).square().sum()
    expected = torch.autograd.grad(result, leaves, retain_graph=True)[wanted]
    with _Operators() as found:
        (slope,) = torch.autograd.grad(result, leaves[wanted])
    assert found.names == ["modelforge::batched_grouped_product"]
    assert torch.equal(slope, expected)
