"""What of an ANI network cannot be imported is told; what can is compared with NeuroChem and TorchANI in test_golden_ani.py."""

import math
from typing import Any

import numpy as np
import pytest

from modelforge.atoms.units import ENERGY_IN_EV
from modelforge.errors import UserError
from modelforge.importing.torchani import columns_of, imported

SPECIES = ("H", "O", "N")
NUM_RADIAL, NUM_SHELLS, NUM_ANGLES = 2, 2, 1
NUM_IN = 3 * NUM_RADIAL + 6 * NUM_SHELLS * NUM_ANGLES
HYPER: dict[str, Any] = {
    "species": list(SPECIES),
    "Rcr": 5.0,
    "Rca": 3.0,
    "EtaR": 16.0,
    "ShfR": [1.0, 3.0],
    "EtaA": 8.0,
    "Zeta": 32.0,
    "ShfA": [1.0, 2.0],
    "ShfZ": [math.pi / 2],
    "celu_alpha": 0.1,
    "self_energies_hartree": [-0.5, -75.0, -54.0],
}

SELF_ENERGIES = {"self_energies": {"H": -0.5, "O": -75.0, "N": -54.0}}


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made = {}
    for symbol in SPECIES:
        for layer, (num_in, num_out) in enumerate(((NUM_IN, 4), (4, 3), (3, 1))):
            made[f"{symbol}.{layer}.weight"] = random.normal(size=(num_out, num_in))
            made[f"{symbol}.{layer}.bias"] = random.normal(size=num_out)
    return made


def test_options_units_and_self_energies_are_taken_over():
    made = imported(without(HYPER, "self_energies_hartree") | SELF_ENERGIES | {"energy_unit": "eV"}, weights())
    assert made.elements == (1, 7, 8)
    assert made.self_energies == {1: -0.5, 7: -54.0, 8: -75.0}
    assert made.scale == 1.0
    assert made.section.widths == dict.fromkeys(SPECIES, (4, 3))
    assert imported(HYPER, weights()).scale == pytest.approx(27.211386, abs=1e-6)


def test_self_energies_in_hartree_stay_so_for_a_network_in_another_unit():
    made = imported(HYPER | {"energy_unit": "kcal/mol"}, weights())
    hartree = ENERGY_IN_EV["hartree"]
    assert made.self_energies == {1: -0.5 * hartree, 7: -54.0 * hartree, 8: -75.0 * hartree}
    assert made.scale == ENERGY_IN_EV["kcal/mol"]


def test_columns_are_those_of_the_same_elements_and_pairs():
    """Their order is H O N: pairs HH HO HN OO ON NN; ours by number: HH HN HO NN NO OO."""
    columns = columns_of((1, 8, 7), (1, 7, 8), num_radial=2, num_angular=1)
    assert columns == [0, 1, 4, 5, 2, 3, *(6 + place for place in (0, 2, 1, 5, 4, 3))]


def without(names: dict[str, Any], removed: str) -> dict[str, Any]:
    return {name: array for name, array in names.items() if name != removed}


@pytest.mark.parametrize(
    ("hyper", "arrays", "message"),
    [
        ({"ShfR": [1.0, 2.9]}, {}, "hyper.ShfR: must be in equal steps, 1, 3 (got 1, 2.9)"),
        ({"ShfA": [0.9, 1.95]}, {}, "hyper.ShfA: must be in equal steps, 1, 2 (got 0.9, 1.95)"),
        ({"ShfZ": [1.0]}, {}, "hyper.ShfZ: must be in equal steps, 1.5708 (got 1)"),
        ({"celu_alpha": 1.0}, {}, "hyper.celu_alpha: must be 0.1 (got 1)"),
        ({"species": ["H", "H", "N"]}, {}, "must name each element once"),
        ({"elements": ["H", "C"]}, {}, "the network has no C"),
        ({"self_energies_hartree": [-0.5]}, {}, "must be one number for each of species"),
        ({"self_energies": {"H": 1.0, "O": 1.0, "N": 1.0}}, {}, "without self_energies beside it"),
        ({}, {"H.2.weight": np.ones((2, 3)), "H.2.bias": np.ones(2)}, "the last layer must have one output"),
        ({}, {"H.0.weight": np.ones((4, 7))}, "must have the shape (4, 18) (has (4, 7))"),
        ({}, {"S.0.weight": np.ones((4, 18))}, "w/S.0.weight: no part of an ANI network"),
    ],
)
def test_what_cannot_be_imported_is_told(hyper: dict[str, Any], arrays: dict[str, np.ndarray], message: str):
    with pytest.raises(UserError) as error:
        imported(HYPER | hyper, weights() | arrays)
    assert message in str(error.value)


def test_a_network_without_weights_of_an_element_is_told():
    arrays = {name: array for name, array in weights().items() if not name.startswith("O.")}
    with pytest.raises(UserError, match=r"w/O.0.weight: missing"):
        imported(HYPER, arrays)


def test_networks_of_different_depth_are_told():
    arrays = without(without(weights(), "O.2.weight"), "O.2.bias") | {"O.1.weight": np.ones((1, 4)), "O.1.bias": np.ones(1)}
    with pytest.raises(UserError, match="as many layers"):
        imported(HYPER, arrays)
