"""Symmetry functions and their Jacobian, in C and in torch, are those of the formula by autograd. 0.5 s, and 1 s to compile."""

import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster
from torch import Tensor

from modelforge.nn.descriptors.native_symmetry import NativeSlopes, is_native
from modelforge.nn.descriptors.symmetry_functions import SymmetrySlopes, symmetry_functions
from modelforge.nn.native import library
from modelforge.potentials.ani import ANI, ANISection

CASES = {
    "several": [cluster(7, (1, 8), seed=1), Atoms("O"), cluster(5, (1, 8), seed=2), Atoms("OH", [[0, 0, 0], [0, 0, 4.5]])],
    "no triples": [Atoms("HH", [[0, 0, 0], [0, 0, 0.8]])],
    "no edges": [Atoms("O")],
}


@pytest.fixture(params=["C", "torch"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(library.SWITCH, "1" if request.param == "C" else "0")
    if request.param == "C" and not is_native(torch.empty(0, dtype=torch.float64), ANISection(name="ani").symmetry):
        pytest.skip("there is no C compiler here")
    return request.param


def both(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """The edge vectors, and the symmetry functions of them in both ways."""
    potential: ANI = ANISection(name="ani", widths={}, other_widths=(5, 4)).build((1, 8)).double()
    graph = batch_of(CASES[case], reach=potential.reach).graph
    vectors = graph.edge_vectors.double().requires_grad_()
    return vectors, potential._features_of(vectors, graph), potential._aev(vectors, potential._surroundings(graph))


@pytest.mark.usefixtures("language")
@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_of_all_kinds_are_those_of_the_formula(case: str):
    """Forces, their gradient by what is above (which trains them), their slope (which a Hessian has), and one more."""
    vectors, *values = both(case)
    random = torch.Generator().manual_seed(3)
    results = []
    by_values = torch.randn(values[0].shape, dtype=torch.float64, generator=random).requires_grad_()
    directions = torch.randn(vectors.shape, dtype=torch.float64, generator=random)
    for value in values:
        (pulled,) = torch.autograd.grad(value, vectors, by_values, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, by_values, directions, retain_graph=True)
        curved, tracked = torch.autograd.grad(pulled, (vectors, by_values), directions, create_graph=True)
        (third,) = torch.autograd.grad(tracked, vectors, by_values.detach())
        results.append((value, pulled, pushed, curved, third))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert case != "several" or min(float(result.detach().abs().max()) for result in results[0]) > 0.1


def dense(dtype: torch.dtype, constants: str = "ani2x") -> tuple[NativeSlopes, Tensor, SymmetrySlopes]:
    """Of atoms with many triples: in C, then values and slopes in torch."""
    potential = ANISection(name="ani", constants=constants, widths={}, other_widths=(5, 4, 3)).build((1, 6, 8)).to(dtype)
    graph = batch_of([cluster(15, (1, 6, 8), seed=4), cluster(9, (6, 8), seed=5)], reach=potential.reach).graph
    vectors, symmetry = graph.edge_vectors.to(dtype), potential.constants.symmetry
    assert graph.triples.shape[1] > 20 * graph.num_atoms
    if not is_native(vectors, symmetry):
        pytest.skip("there is no C compiler here")
    native_slopes = NativeSlopes(vectors, potential._senders(graph), symmetry)
    return native_slopes, *symmetry_functions(vectors.double(), potential._surroundings(graph), symmetry)


def results(slopes: NativeSlopes | SymmetrySlopes, values: Tensor, num_edges: int) -> list[Tensor]:
    """Values, J^T g and J v of the same random numbers."""
    random = torch.Generator().manual_seed(6)
    numbers = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in (values.shape, (num_edges, 3))]
    by_values, directions = (number.to(values.dtype) for number in numbers)
    return [values, slopes.pulled(by_values), slopes.pushed(directions)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("constants", ["ani2x", "ani1x"])
def test_both_languages_agree_to_the_last_digits(constants: str, dtype: torch.dtype, tolerance: float):
    in_c, values, in_torch = dense(dtype, constants)
    num_edges = in_torch.distance.shape[0]
    of_c, of_torch = results(in_c, in_c.values(), num_edges), results(in_torch, values, num_edges)
    for got, expected in zip(of_c, of_torch, strict=True):
        assert got.dtype == dtype
        assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_the_number_of_threads_changes_no_bit():
    in_c, _, in_torch = dense(torch.float32)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(results(in_c, in_c.values(), in_torch.distance.shape[0]))
    torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
