"""What is peculiar to ANI: options that go together, and symmetry functions at their limits. 0.1 s."""

from typing import Any

import pytest
import torch
from ase import Atoms
from made_structures import batch_of
from pydantic import ValidationError

from modelforge.potentials.ani import ANISection, angular_terms, outer_products

SMALL: dict[str, Any] = {"name": "ani", "widths": {}, "other_widths": (5, 4), "num_radial": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 3.0}, "angular_cutoff: must not exceed the cutoff of 3.0 (got 3.5)"),
        ({"first_shift": 3.5}, "first_shift: must be less than the angular cutoff of 3.5 (got 3.5)"),
        ({"widths": {"Xx": (5, 4)}}, "widths: must name elements by their symbols (got Xx)"),
        ({"widths": {"H": (5, 4), "O": (5,)}}, "widths.O: must be 2 widths, as many as in other_widths (got 1)"),
    ],
)
def test_options_that_do_not_go_together_are_told(options: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message.replace("(", r"\(").replace(")", r"\)")):
        ANISection(**SMALL | options)


def test_a_key_that_is_given_goes_before_that_of_the_published_set():
    published, changed = (ANISection(name="ani", constants="ani1x", **more) for more in ({}, {"zeta": 5.0}))
    assert (published.zeta, published.cutoff) == (32.0, 5.2)
    assert (changed.zeta, changed.cutoff) == (5.0, 5.2)
    assert ANISection(name="ani").zeta == 14.1


def test_each_element_has_its_widths_and_others_the_usual_ones():
    section = ANISection(**SMALL | {"widths": {"O": (7, 6)}})
    networks = section.build((8, 6)).networks.networks
    shapes = {symbol: [tuple(layer.weight.shape) for layer in networks[symbol]][1:] for symbol in networks}
    assert shapes == {"O": [(6, 7), (1, 6)], "C": [(4, 5), (1, 4)]}


def test_an_atom_without_neighbours_has_symmetry_functions_of_exactly_zero():
    potential = ANISection(**SMALL).build((1, 8)).double()
    graph = batch_of([Atoms("O"), Atoms("HH", [[0, 0, 0], [0, 0, 0.8]])], reach=potential.reach).graph
    radial, angular = potential.aev(graph)
    assert (radial[0] == 0).all()
    assert (radial[1:, :3] > 0).any()
    assert (radial[:, 3:] == 0).all()
    assert (angular == 0).all()


@pytest.mark.parametrize("name", ["charge_embedding", "spin_embedding"])
def test_a_neutral_singlet_adds_zeros_and_others_do_not(name: str):
    potential = ANISection(**SMALL | {name: True}).build((1, 8)).double()
    water = Atoms("OHH", [[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6]])
    charged = water.copy()
    charged.info |= {"total_charge": 1.0, "spin_multiplicity": 2.0}
    graph = batch_of([water, charged], reach=potential.reach).graph
    energies = potential(graph).energies
    with torch.no_grad():
        for network in potential.networks.networks.values():
            network[0].weight[:, -1] = 0.0
    without = potential(graph).energies
    assert torch.equal(energies[:3], without[:3])
    assert (energies[3:] != without[3:]).all()


def test_angles_of_0_and_180_degrees_have_finite_second_derivatives():
    cosine = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64, requires_grad=True)
    others = torch.ones(3, dtype=torch.float64)
    for num_angles in (1, 4, 40):
        section = ANISection(**SMALL | {"num_angles": num_angles})
        terms = angular_terms(cosine, others, others, section)
        (slope,) = torch.autograd.grad(terms.sum(), cosine, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), cosine)
        assert terms.shape == (3, 8 * num_angles)
        assert curvature.isfinite().all()
        assert (curvature != 0).all()


def test_atoms_in_one_place_have_finite_forces():
    potential = ANISection(**SMALL).build((1, 8)).double()
    graph = batch_of([Atoms("OHH", [[0, 0, 0], [0, 0, 0], [0, 0.7, 0.6]])], reach=potential.reach).graph
    vectors = graph.edge_vectors.requires_grad_()
    (slope,) = torch.autograd.grad(potential(graph).energies.sum(), vectors)
    assert slope.isfinite().all()


def test_outer_products_are_in_the_order_of_both():
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(outer_products(x, y), torch.einsum("na,nt->nat", x, y).flatten(1))
