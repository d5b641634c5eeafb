"""The product basis against MACE's arrays, the sum that defines it, and its symmetries; values and two derivatives."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import read
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from modelforge.nn.elements.grouped_products import row_groups
from modelforge.nn.equivariant.irreps import blocks, natural_irrep
from modelforge.nn.equivariant.polynomial_rows import RowsAsProducts
from modelforge.nn.equivariant.polynomial_slopes import is_native
from modelforge.nn.equivariant.product_basis import coupling_matrices, num_couplings
from modelforge.nn.equivariant.spherical_harmonics import SphericalHarmonics
from modelforge.nn.equivariant.symmetric_contraction import MOST_ELEMENTS, SymmetricContraction, weight_name
from modelforge.nn.native.library import SWITCH

RELATIVE = 1e-12
COLUMNS = torch.tensor([0, 3, 3, 0, 3, 2, 0])  # elements of atoms; of element 1 there is none
NUM_CHANNELS = 2
CASES = [
    (1, (0,), 1),
    (1, (0, 1), 3),
    (2, (1,), 2),
    (2, (0, 2), 3),
    (3, (0, 1, 2), 3),
    (3, (2, 0), 2),
    (1, (1, 0), 4),
    (1, (2,), 2),
]


def contraction(l_in: int, outputs: tuple[int, ...], correlation: int, *, num_elements: int = 4) -> SymmetricContraction:
    torch.manual_seed(0)
    options = {"correlation": correlation, "num_elements": num_elements, "num_channels": NUM_CHANNELS}
    return SymmetricContraction(l_in, outputs, **options).double()


def applied(layer: SymmetricContraction, features: Tensor, columns: Tensor) -> Tensor:
    num_elements = next(iter(layer.weights.values())).shape[0]
    values: Tensor = layer(features, columns, row_groups(columns, num_groups=num_elements))
    return values


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(layer: SymmetricContraction, features: Tensor, columns: Tensor, *, degree: int, correlation: int) -> Tensor:
    """B of one degree as MACE computes it: the last factor first, then one by one (Horner)."""
    l_in = round(features.shape[1] ** 0.5) - 1
    result = features.new_zeros(())
    for order in range(correlation, 0, -1):
        matrices = coupling_matrices(l_in, degree, order)
        if matrices.shape[-1]:  # no single component of degree 1 is one of degree 2
            weights = layer.weights[weight_name(degree, order)][columns]
            result = result + torch.einsum("...p,npc->nc...", matrices, weights)
        result = torch.einsum("nc...i,nic->nc...", result, features)
    return result.transpose(1, 2)


def uneven(tensor: Tensor) -> Tensor:
    """Numbers between -1 and 1 for an atom (M, C), without a random generator: those cannot be traced."""
    _, num_components, num_channels = tensor.shape
    return torch.cos(1.7 * torch.arange(num_components * num_channels, dtype=tensor.dtype)).view(num_components, num_channels)


def derivatives(function: Callable[[Tensor], Tensor], weights: list[Tensor], features: Tensor) -> list[Tensor]:
    """Values, forces of a function of them, and the slopes of a loss of both by features and weights."""
    features = features.clone().requires_grad_()
    values = function(features)
    energy = (torch.sin(values) * uneven(values)).sum()
    (forces,) = torch.autograd.grad(energy, features, create_graph=True)
    loss = (torch.tanh(forces) * uneven(forces)).sum() + torch.cos(energy)
    return [values, forces, *torch.autograd.grad(loss, [features, *weights])]


def assert_close(found: list[Tensor], expected: list[Tensor], relative: float = RELATIVE) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= relative * other.abs().max()


@pytest.mark.parametrize(("l_in", "outputs", "correlation"), CASES)
def test_values_and_derivatives_are_those_of_the_definition(l_in: int, outputs: tuple[int, ...], correlation: int) -> None:
    layer = contraction(l_in, outputs, correlation)
    features, weights = random(len(COLUMNS), (l_in + 1) ** 2, NUM_CHANNELS), list(layer.weights.values())

    def defined(x: Tensor) -> Tensor:
        return torch.cat([by_definition(layer, x, COLUMNS, degree=d, correlation=correlation) for d in outputs], dim=1)

    found = derivatives(lambda x: applied(layer, x, COLUMNS), weights, features)
    assert_close(found, derivatives(defined, weights, features))


@pytest.mark.parametrize("language", ["C", "torch"])
@pytest.mark.parametrize("num_elements", [4, 11])
@pytest.mark.parametrize(("l_in", "outputs", "correlation"), [(1, (0,), 1), (3, (1, 0), 3), (2, (0, 1), 2), (1, (1, 0), 4)])
def test_what_a_compiler_sees_gives_the_same(
    l_in: int, outputs: tuple[int, ...], correlation: int, num_elements: int, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the slopes of coefficients in C, or as torch has them."""
    monkeypatch.setenv(SWITCH, "1" if language == "C" else "0")
    if language == "C" and not is_native(random(1, 1, NUM_CHANNELS)):
        pytest.skip("there is no C compiler here")
    layer = contraction(l_in, outputs, correlation, num_elements=num_elements)
    features, weights = random(len(COLUMNS), (l_in + 1) ** 2, NUM_CHANNELS), [w.detach() for w in layer.weights.values()]

    def step(features: Tensor, columns: Tensor, *weights: Tensor) -> list[Tensor]:
        fresh = [weight.detach().requires_grad_() for weight in weights]
        return derivatives(lambda x: with_weights(layer, x, columns, fresh), fresh, features)

    stand_ins = of_any_number_of_atoms([features, COLUMNS], weights)
    traced = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*stand_ins)
    uses_products = any("grouped_product" in str(node.target) for node in traced.graph.nodes)
    assert uses_products == (num_elements > MOST_ELEMENTS)
    uses_c = any("polynomial_slopes" in str(node.target) for node in traced.graph.nodes)
    assert uses_c == (language == "C" and not uses_products)
    for num_atoms in (len(COLUMNS), 4):
        inputs = (features[:num_atoms], COLUMNS[:num_atoms], *weights)
        assert_close(traced(*inputs), step(*inputs))


def of_any_number_of_atoms(of_atoms: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Tensors without data; the first axis of those of atoms may have any size."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    found = []
    for tensor in [*of_atoms, *others]:
        sizes = [DimDynamic.STATIC] * tensor.ndim
        if len(found) < len(of_atoms):
            sizes[0] = DimDynamic.DYNAMIC
        found.append(mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)))
    return found


def with_weights(layer: SymmetricContraction, features: Tensor, columns: Tensor, weights: Sequence[Tensor]) -> Tensor:
    named = {f"weights.{name}": weight for name, weight in zip(layer.weights, weights, strict=True)}
    groups = row_groups(columns, num_groups=weights[0].shape[0])
    values: Tensor = torch.func.functional_call(layer, named, (features, columns, groups))
    return values


def test_gradients_are_those_of_finite_differences() -> None:
    layer, columns = contraction(1, (0, 1), 3), COLUMNS[:2]
    inputs = [random(2, 4, NUM_CHANNELS), *(weights.detach() for weights in layer.weights.values())]

    def function(features: Tensor, *weights: Tensor) -> Tensor:
        return with_weights(layer, features, columns, weights)

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in inputs], fast_mode=True)
    assert torch.autograd.gradgradcheck(function, [tensor.requires_grad_() for tensor in inputs], fast_mode=True)


def test_third_derivatives_are_right_too() -> None:
    layer = contraction(1, (0, 1), 3)
    features = random(3, 4, NUM_CHANNELS)

    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = features.clone().requires_grad_()
        value = torch.sin(function(x)).sum()
        for seed in range(3):
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            value = (slope * random(*slope.shape, seed=seed)).sum()
        return value

    def defined(x: Tensor) -> Tensor:
        return torch.cat([by_definition(layer, x, COLUMNS[:3], degree=d, correlation=3) for d in (0, 1)], dim=1)

    assert_close([third(lambda x: applied(layer, x, COLUMNS[:3]))], [third(defined)])


def test_forces_compute_no_slopes_of_weights_and_a_training_step_does_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, slopes = [], RowsAsProducts.slopes_of_coefficients

    def counted(rows: RowsAsProducts, gradient: Tensor, x: Tensor) -> list[Tensor]:
        calls.append(gradient.shape)
        return slopes(rows, gradient, x)

    monkeypatch.setattr(RowsAsProducts, "slopes_of_coefficients", counted)
    layer, features = contraction(2, (0, 1), 3), random(len(COLUMNS), 9, NUM_CHANNELS).requires_grad_()
    energy = applied(layer, features * 1.0, COLUMNS).square().sum()
    (forces,) = torch.autograd.grad(energy, features, create_graph=True)
    assert not calls
    (energy + forces.square().sum()).backward()
    assert len(calls) == 1


def turned(components: Tensor, degrees: tuple[int, ...], turn: Tensor) -> Tensor:
    """Components (N, M, C) of these degrees, one after the other, after a rotation or a reflection."""
    vectors = random(40, 3, seed=9)
    parts = []
    for degree, block in zip(degrees, blocks([natural_irrep(degree) for degree in degrees]), strict=True):
        own = slice(degree**2, (degree + 1) ** 2)
        before, after = (SphericalHarmonics(degree)(v)[:, own] for v in (vectors, vectors @ turn.T))
        parts.append(torch.einsum("ab,nac->nbc", torch.linalg.lstsq(before, after).solution, components[:, block]))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_outputs_turn_with_the_inputs(sign: int) -> None:
    layer, features = contraction(3, (0, 1, 2), 3), random(len(COLUMNS), 16, NUM_CHANNELS)
    turn = sign * torch.as_tensor(Rotation.random(random_state=2).as_matrix())
    before, after = (applied(layer, x, COLUMNS) for x in (features, turned(features, (0, 1, 2, 3), turn)))
    assert_close([after], [turned(before, (0, 1, 2), turn)], 10 * RELATIVE)


def test_single_precision_and_no_atoms() -> None:
    layer, features = contraction(2, (0, 1), 3), random(len(COLUMNS), 9, NUM_CHANNELS)
    expected = applied(layer, features, COLUMNS)
    layer = layer.float()
    found = applied(layer, features.float(), COLUMNS)
    assert found.dtype == torch.float32
    assert_close([found.double()], [expected], 1e-5)
    assert applied(layer, features[:0].float(), COLUMNS[:0]).shape == (0, 4, NUM_CHANNELS)


def test_the_precision_is_that_of_the_weights_also_before_any_cast() -> None:
    layer = SymmetricContraction(1, (0,), correlation=2, num_elements=4, num_channels=NUM_CHANNELS)
    assert applied(layer, random(len(COLUMNS), 4, NUM_CHANNELS), COLUMNS).dtype == torch.float32


@pytest.mark.parametrize("order", [1, 2, 3])
def test_couplings_are_counted_as_they_are_built(order: int) -> None:
    for l_in, degree in itertools.product(range(4), range(4)):
        assert num_couplings(l_in, degree, order) == coupling_matrices(l_in, degree, order).shape[-1]


@pytest.mark.parametrize("file", ["mace_L0_nu2", "mace_L1_nu2_plainfirst", "mace_L1_nu3"])
def test_coupling_matrices_are_those_of_mace_up_to_signs_of_columns(shared_data: Path, file: str) -> None:
    golden = read(shared_data / "golden" / f"{file}.npz")
    keys = [key for key in golden if "products.0" in key and "U_matrix" in key]
    assert keys
    for key in keys:
        degree, order = int(key.split(".")[4]), int(key[-1])
        expected = golden[key] if degree else golden[key][None]
        found = coupling_matrices(round(expected.shape[1] ** 0.5) - 1, degree, order).numpy()
        flipped = signs_of_columns(found, expected)
        assert np.abs(found * flipped - expected).max() < 1e-13
        assert (flipped < 0).sum() == (6 if (degree, order) == (1, 3) else 0)  # e3nn 0.4.4 has other signs there


def signs_of_columns(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    signs: np.ndarray = np.sign((found * expected).reshape(-1, found.shape[-1]).sum(axis=0))
    return signs


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("file", ["mace_L0_nu2", "mace_L1_nu2_plainfirst", "mace_L1_nu3"])
def test_products_are_those_of_mace(shared_data: Path, file: str, layer: int) -> None:
    """The product block of MACE is the contraction, a linear layer for each degree, and the self-connection."""
    golden = read(shared_data / "golden" / f"{file}.npz")
    atoms = np.cumsum([0, *golden["n_atoms"]])[golden["debug_structure"] :][:2]
    columns = torch.as_tensor(np.searchsorted(golden["atomic_numbers_order"], golden["atomic_numbers"][slice(*atoms)]))
    features = torch.as_tensor(golden[f"debug/interactions.{layer}.0"]).transpose(1, 2)  # (N, n, C)
    found = applied(contraction_of(golden, f"w/products.{layer}."), features, columns)
    linear = torch.as_tensor(golden[f"w/products.{layer}.linear.weight"]).view(-1, features.shape[2], features.shape[2])
    degrees = range(len(linear))
    parts = [found[:, d**2 : (d + 1) ** 2].transpose(1, 2) for d in degrees]  # (N, C, 2l + 1)
    mixed = [torch.einsum("ncm,cd->ndm", part, linear[d]) / features.shape[2] ** 0.5 for d, part in enumerate(parts)]
    result = torch.cat([part.flatten(1) for part in mixed], dim=1)
    connection = golden.get(f"debug/interactions.{layer}.1")
    expected = torch.as_tensor(golden[f"debug/products.{layer}"])
    assert_close([result if connection is None else result + torch.as_tensor(connection)], [expected])


def contraction_of(golden: dict[str, np.ndarray], prefix: str) -> SymmetricContraction:
    """With the weights of MACE, whose signs follow those of its coupling matrices."""
    prefix = f"{prefix}symmetric_contractions.contractions."
    degrees = sorted({int(key.removeprefix(prefix)[0]) for key in golden if key.startswith(prefix)})
    correlation = max(int(key[-1]) for key in golden if key.startswith(f"{prefix}0.U_matrix"))
    num_elements, _, num_channels = golden[f"{prefix}0.weights_max"].shape
    l_in = round(golden[f"{prefix}0.U_matrix_1"].shape[-2] ** 0.5) - 1
    layer = SymmetricContraction(
        l_in, degrees, correlation=correlation, num_elements=num_elements, num_channels=num_channels
    ).double()
    for degree, order in itertools.product(degrees, range(1, correlation + 1)):
        matrices = golden[f"{prefix}{degree}.U_matrix_{order}"]
        signs = signs_of_columns(coupling_matrices(l_in, degree, order).numpy(), matrices if degree else matrices[None])
        name = "weights_max" if order == correlation else f"weights.{correlation - 1 - order}"
        weights = golden[f"{prefix}{degree}.{name}"] * signs[:, None]
        layer.weights[weight_name(degree, order)].data.copy_(torch.as_tensor(weights))
    return layer


def test_weights_are_as_many_as_published() -> None:
    """U of l = 0, 1, 2 for harmonics up to degree 3 and correlation 3: 28, 58 and 73 for each element and channel."""
    for outputs, expected in (((0,), 28), ((0, 1), 28 + 58), ((0, 1, 2), 28 + 58 + 73)):
        layer = SymmetricContraction(3, outputs, correlation=3, num_elements=3, num_channels=5)
        assert sum(weights.numel() for weights in layer.parameters()) == 15 * expected
        assert list(layer.state_dict()) == [f"weights.{weight_name(d, order)}" for d in outputs for order in (1, 2, 3)]
