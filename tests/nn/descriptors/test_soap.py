"""The power spectrum against DScribe's numbers and against quadrature, its symmetries and derivatives."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal
from scipy.integrate import quad
from scipy.spatial.transform import Rotation
from scipy.special import spherical_in

from modelforge.atoms.graph import AtomicGraph
from modelforge.nn.descriptors.soap import SOAP, random_structures
from modelforge.nn.descriptors.soap_radial import (
    DIGITS,
    SOAPBasisName,
    as_floats,
    gto_basis,
    gto_functions,
    inverse_root,
    polynomial_functions,
    polynomials,
    radial_series,
)

AS_DSCRIBE = 2e-11  # relative; DScribe's own quadrature and inverse roots are exact to 1e-11
ELEMENTS = (1, 6, 8)
BASES: tuple[SOAPBasisName, ...] = ("gto", "polynomial")
CUTOFF = 3.5


@pytest.fixture(params=BASES)
def basis(request: pytest.FixtureRequest) -> SOAPBasisName:
    return request.param


def soap(basis: SOAPBasisName, *, cutoff: float | None = CUTOFF, l_max: int = 3) -> SOAP:
    options = {"basis_cutoff": CUTOFF, "num_radial": 3, "l_max": l_max, "gaussian_width": 0.5}
    return SOAP(ELEMENTS, **options, radial_basis=basis, cutoff=cutoff)


def graph_of(golden: dict[str, np.ndarray], cutoff: float) -> AtomicGraph:
    ends = np.cumsum(golden["n_atoms"])
    columns = [np.split(golden[key], ends[:-1]) for key in ("atomic_numbers", "positions")]
    pieces = zip(*columns, golden["cell"], golden["pbc"], strict=True)
    return batch_of([Atoms(n, r, cell=cell, pbc=pbc) for n, r, cell, pbc in pieces], cutoff=cutoff).graph


def test_power_spectra_are_those_of_dscribe(shared_data: Path, basis: SOAPBasisName) -> None:
    """Of molecules and of a crystal whose cell is shorter than the cutoff."""
    with np.load(shared_data / "golden" / "soap_acac.npz") as file:
        golden = dict(file)
    hyper = json.loads(str(golden["hyper"]))
    width = hyper["sigma"]
    graph = graph_of(golden, hyper["r_cut"] + width * np.sqrt(2 * np.log(1000)))
    descriptor = SOAP(
        hyper["atomic_numbers"],
        basis_cutoff=hyper["r_cut"],
        num_radial=hyper["n_max"],
        l_max=hyper["l_max"],
        gaussian_width=width,
        radial_basis=basis,
    )
    places = {tuple(row): place for place, row in enumerate(descriptor.feature_index().tolist())}
    order = [places[tuple(row)] for row in golden["feature_index"].tolist()]
    found, expected = descriptor(graph).flatten(1)[:, order].numpy(), golden[f"soap_{basis}"]
    assert found.shape == expected.shape == (50, descriptor.num_features)
    assert np.abs(found - expected).max() < AS_DSCRIBE * np.abs(expected).max()


def test_closed_form_of_gaussians_is_their_integral() -> None:
    cutoff, width, degree, distance = 4.0, 0.4, 2, 1.7
    found = gto_functions(np.array([distance]), num_radial=2, l_max=2, cutoff=cutoff, gaussian_width=width)[0, degree]
    ends = np.array([1.0, cutoff])
    decay = -np.log(1e-3 / ends**degree) / ends**2
    power = degree + 1.5
    overlaps = 0.5 * math.gamma(power) * (decay[:, None] + decay) ** -power
    roots = as_floats(inverse_root(overlaps.tolist()))

    def integrand(r: float, k: int) -> float:
        gaussian = np.exp(-(r**2 + distance**2) / (2 * width**2))
        bessel = spherical_in(degree, r * distance / width**2)
        return float(4 * np.pi * r**2 * r**degree * np.exp(-decay[k] * r**2) * gaussian * bessel)

    expected = [quad(integrand, 0, 8, args=(k,), epsabs=1e-13, epsrel=1e-11)[0] for k in range(2)] @ roots
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("num_radial", [1, 8, 10])
def test_the_series_is_exact_at_all_distances_and_bases(basis: SOAPBasisName, num_radial: int) -> None:
    options = {"num_radial": num_radial, "l_max": 6, "cutoff": 5.0, "gaussian_width": 0.4}
    series = radial_series(basis, **options)
    distance = np.random.default_rng(0).uniform(0.0, 6.5, size=40)
    functions = {"gto": gto_functions, "polynomial": polynomial_functions}[basis]
    expected = functions(distance, **options)
    phases = np.pi * np.outer(distance, np.arange(len(series.coefficients))) / series.length
    for degree in range(7):
        waves = np.sin(phases) if degree % 2 else np.cos(phases)
        found = waves @ series.coefficients[:, degree]
        assert np.abs(found - expected[:, degree]).max() < 1e-11 * np.abs(expected).max()


def test_ten_polynomials_are_orthogonal_to_the_last_digits() -> None:
    """Overlaps of the powers have eigenvalues 1e20 apart: rounded to float64 they would leave no digit of the roots."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    radius = 2.5 * (nodes + 1.0)
    functions = polynomials(radius, num_radial=10, cutoff=5.0)
    products = functions.T @ (functions * (2.5 * weights * radius**2)[:, None])
    assert np.abs(products - np.eye(10)).max() < 1e-12


def test_ten_gaussians_are_orthogonal_where_their_ends_are_close() -> None:
    """At a cutoff of 2 angstrom overlaps have eigenvalues 3e14 apart."""
    degree = 1
    decay, roots = gto_basis(degree, num_radial=10, cutoff=2.0)
    with mpmath.workdps(DIGITS):
        power = degree + mpmath.mpf(1.5)
        overlaps = mpmath.matrix([[mpmath.gamma(power) / 2 * (a + b) ** -power for b in decay] for a in decay])
        products = as_floats(roots * overlaps * roots)
    assert np.abs(products - np.eye(10)).max() < 1e-14
    ends = np.linspace(1.0, 2.0, 10)
    assert [float(value) for value in decay] == pytest.approx(-np.log(1e-3 / ends**degree) / ends**2)


def test_narrow_gaussians_are_integrated_at_as_many_points_as_they_need() -> None:
    """Far from the ends, a Gaussian that is narrow beside the radial functions only takes their value where it stands."""
    width, distance = 0.01, np.array([1.3, 2.9])
    found = polynomial_functions(distance, num_radial=2, l_max=0, cutoff=4.0, gaussian_width=width)[:, 0]
    volume = (2 * np.pi) ** 1.5 * width**3
    expected = volume * polynomials(distance, num_radial=2, cutoff=4.0)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_rotations_and_reflections_change_nothing(basis: SOAPBasisName) -> None:
    atoms, turn = cluster(9, ELEMENTS, seed=1), -Rotation.random(random_state=2).as_matrix()
    turned = Atoms(atoms.numbers, atoms.positions @ turn.T)
    one, other = (soap(basis)(batch_of([each], cutoff=CUTOFF).graph) for each in (atoms, turned))
    assert (one - other).abs().max() < 1e-12 * one.abs().max()


def test_derivatives_are_slopes_once_and_twice(basis: SOAPBasisName) -> None:
    graph = batch_of([Atoms("OCH", positions=[[0, 0, 0], [0.2, 0.1, 1.3], [1.0, 0.3, 1.8]])], cutoff=CUTOFF).graph
    descriptor = soap(basis, l_max=2)

    def spectrum(vectors: torch.Tensor) -> torch.Tensor:
        return descriptor(AtomicGraph(**{**vars(graph), "edge_vectors": vectors})).sum(dim=(0, 2))

    vectors = graph.edge_vectors.clone().requires_grad_()
    assert torch.autograd.gradcheck(spectrum, vectors)
    assert torch.autograd.gradgradcheck(spectrum, vectors)


def test_an_atom_alone_has_the_spectrum_of_its_own_gaussian(basis: SOAPBasisName) -> None:
    spectrum = soap(basis)(batch_of([Atoms("O"), Atoms("H")], cutoff=CUTOFF).graph)
    assert spectrum[:, 1:].abs().max() == 0, "a sphere has no higher degrees"
    index = soap(basis).feature_index()[: spectrum.shape[2]]
    of_oxygen = (index[:, 0] == 8) & (index[:, 2] == 8)
    assert (spectrum[0, 0][of_oxygen] != 0).all()
    assert (spectrum[0, 0][~of_oxygen] == 0).all()


def test_the_order_of_elements_means_nothing(basis: SOAPBasisName) -> None:
    graph = batch_of([crystal(5, ELEMENTS, seed=3)], cutoff=CUTOFF).graph
    options = {"basis_cutoff": CUTOFF, "num_radial": 3, "l_max": 2, "gaussian_width": 0.5, "cutoff": CUTOFF}
    one, other = (SOAP(elements, **options, radial_basis=basis)(graph) for elements in (ELEMENTS, ELEMENTS[::-1]))
    assert torch.equal(one, other)


def test_random_structures_are_always_the_same_and_hold_every_element() -> None:
    one, other = (random_structures((1, 6, 7, 8, 17), cutoff=CUTOFF) for _ in range(2))
    assert torch.equal(one.edge_vectors, other.edge_vectors)
    assert set(one.atomic_numbers.tolist()) == {1, 6, 7, 8, 17}
    assert one.edge_vectors.norm(dim=1).min() > 0.5
    assert one.edge_vectors.norm(dim=1).max() < CUTOFF
