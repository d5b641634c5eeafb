"""Allegro networks of other sizes than the golden files, and what cannot be imported. About 1 s.

`written/allegro_*.npz` were written beside nequip-allegro 0.8.3: random weights; energies and forces are its own. One has
degrees up to 3, three layers, weights of paths for all channels together and a linear readout; the other has no harmonics but
the first, whose single path lacks an axis, linear networks in the place of deep ones, and another radial basis.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import read, structures_of

from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.import_model import trained_potential
from modelforge.importing.allegro import imported
from modelforge.importing.imported import ImportedPotential

RELATIVE = 1e-10  # of the largest value
WRITTEN = Path(__file__).parent / "written"
COUPLINGS = "w/model.func.allegro.tps.1.w3j"
Arrays = dict[str, np.ndarray]


@pytest.fixture
def golden() -> Arrays:
    return read(WRITTEN / "allegro_l3_shared_paths.npz")


def found_in(golden: Arrays, **hyper: Any) -> ImportedPotential:
    weights = {name[2:]: array for name, array in golden.items() if name.startswith("w/")}
    return imported({**json.loads(str(golden["hyper"])), **hyper}, weights)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("file", ["allegro_l3_shared_paths", "allegro_l0"])
def test_networks_of_other_sizes_give_the_energies_and_forces_of_allegro(file: str) -> None:
    golden = read(WRITTEN / f"{file}.npz")
    evaluation = evaluate(trained_potential(found_in(golden), origin="x", dtype=torch.float64), structures_of(golden))
    assert_same(evaluation.energy, golden["energy"])
    assert_same(evaluation.forces, golden["forces"])


def test_scales_and_shifts_may_be_in_hyper_alone(golden: Arrays) -> None:
    from_weights = found_in(golden)
    rest = {name: array for name, array in golden.items() if "scale_shift" not in name}
    from_hyper = found_in(rest)
    assert from_hyper.self_energies == pytest.approx(from_weights.self_energies, rel=1e-12)
    torch.testing.assert_close(from_hyper.state["element_scales"], from_weights.state["element_scales"])


def test_coefficients_of_another_convention_are_refused(golden: Arrays) -> None:
    with pytest.raises(UserError, match=r"tps\.1\.w3j: must be the coefficients of e3nn 0\.6"):
        found_in(golden | {COUPLINGS: -golden[COUPLINGS]})


def test_tensors_of_one_parity_have_other_paths(golden: Arrays) -> None:
    with pytest.raises(
        UserError, match=r"tps\.0\.w3j: must be the coefficients of e3nn 0\.6 for the paths that hyper describes"
    ):
        found_in(golden, parity=False)


def test_hyper_parameters_may_be_those_of_a_checkpoint(golden: Arrays) -> None:
    """Which has the class, numbers by the names of types, and what matters to the training alone."""
    hyper = json.loads(str(golden["hyper"]))
    scales = dict(zip(hyper["type_names"], hyper["per_type_energy_scales"], strict=True))
    told = {"model": "allegro.model.AllegroModel", "per_type_energy_scales": scales, "seed": 1, "model_dtype": "float64"}
    rest = {name: array for name, array in golden.items() if "scale_shift" not in name}
    found, expected = found_in(rest, **told, per_type_energy_shifts=-1.5, pair_potential=None), found_in(golden)
    assert found.section == expected.section
    torch.testing.assert_close(found.state["element_scales"], expected.state["element_scales"])
    assert found.self_energies == dict.fromkeys((1, 6, 8, 14), -1.5)


def test_parts_that_this_package_lacks_are_refused(golden: Arrays) -> None:
    with pytest.raises(UserError, match=r"w/model\.func\.pair_potential\.strength: no part of an Allegro"):
        found_in(golden | {"w/model.func.pair_potential.strength": np.ones(1)})
    with pytest.raises(UserError, match=r"hyper\.per_edge_type_cutoff: networks with one cannot be imported"):
        found_in(golden, per_edge_type_cutoff={"H": 3.0})
    with pytest.raises(UserError, match=r"_rmax_recip: networks with a cutoff for each pair of types cannot be imported"):
        found_in(golden | {"w/model.func.edge_norm._rmax_recip": np.full(16, 0.25)})
    with pytest.raises(UserError, match=r"hyper\.pair_potential: networks with one cannot be imported \(got .*ZBL.*\)"):
        found_in(golden, pair_potential={"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal"})


def test_another_embedding_is_refused(golden: Arrays) -> None:
    other = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 8}
    with pytest.raises(UserError, match=r"hyper\.radial_chemical_embed: must have allegro\.nn\.TwoBodyBesselScalarEmbed"):
        found_in(golden, radial_chemical_embed=other)


def test_an_unknown_option_is_named_with_its_table_whose_options_are_listed(golden: Arrays) -> None:
    embedding = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_besels": 8}
    with pytest.raises(UserError) as caught:
        found_in(golden, radial_chemical_embed=embedding)
    assert str(caught.value) == (
        "hyper.radial_chemical_embed.num_besels: no option that can be imported (did you mean 'num_bessels'?); remove it if it "
        "changes nothing (known: _target_, num_bessels, bessel_trainable, polynomial_cutoff_p)"
    )


def test_an_odd_number_of_scalars_is_refused(golden: Arrays) -> None:
    """Half of them are of the receiver."""
    with pytest.raises(UserError, match=r"hyper\.num_scalar_features: must be a multiple of 2 \(got 5\)"):
        found_in(golden, num_scalar_features=5)
