"""What each format makes of units, energies beside the network, and constants in single precision.

`written/schnetpack_painn_bessel.npz` was written beside SchNetPack 2.1.1 as the README says: a small PaiNN with random weights,
Bessel functions, shared filters, `AddOffsets`, float32 weights and a cutoff that float32 rounds; energy and forces are
SchNetPack's own in float64, kcal/mol.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import read

from modelforge.atoms.units import BOHR, ENERGY_IN_EV
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.evaluate import evaluate
from modelforge.import_model import trained_potential
from modelforge.importing import allegro, mace, nequip, schnetpack, torchmdnet
from modelforge.importing.imported import ImportedPotential
from modelforge.importing.registry import FORMATS

RELATIVE = 1e-10  # of the largest value
WRITTEN = Path(__file__).parent / "written" / "schnetpack_painn_bessel.npz"
Arrays = dict[str, np.ndarray]


def arrays_of(golden: Arrays) -> Arrays:
    return {name[2:]: array for name, array in golden.items() if name.startswith("w/")}


def imported(golden: Arrays, module: Callable[..., ImportedPotential], **hyper: object) -> ImportedPotential:
    return module({**json.loads(str(golden["hyper"])), **hyper}, arrays_of(golden))


def structures_of(golden: Arrays) -> Structures:
    num_atoms = golden["n_atoms"]
    num = len(num_atoms)
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=golden["atomic_numbers"],
        positions=golden["positions"].astype(float),
        cell=golden["cell"],
        periodic=golden["pbc"],
        energy=np.full(num, np.nan),
        forces=np.full((int(num_atoms.sum()), 3), np.nan),
        stress=np.full((num, 3, 3), np.nan),
        group=np.arange(num),
        subset=np.zeros(num, dtype=int),
        file=np.zeros(num, dtype=int),
        index_in_file=np.arange(num),
    )


def test_a_file_written_as_the_readme_says_gives_the_energies_and_forces_of_schnetpack() -> None:
    golden = read(WRITTEN)
    found = imported(golden, schnetpack.imported, energy_unit="kcal/mol", elements=["H", "C", "O"])
    evaluation = evaluate(trained_potential(found, origin="x", dtype=torch.float64), structures_of(golden))
    unit = ENERGY_IN_EV["kcal/mol"]
    np.testing.assert_allclose(evaluation.energy, unit * golden["energy"], rtol=RELATIVE)
    forces = unit * golden["forces"]
    assert np.abs(evaluation.forces - forces).max() < RELATIVE * np.abs(forces).max()


IN_BOHR = {
    "schnetpack Gaussian": ("golden/schnet_random.npz", schnetpack.imported),
    "schnetpack Bessel": (WRITTEN, schnetpack.imported),
    "torchmdnet": ("golden/tensornet_random_o3.npz", torchmdnet.imported),
    "nequip": (WRITTEN.parent / "nequip_l2_one_scale.npz", nequip.imported),
    "nequip with a scale for each type": (WRITTEN.parent / "nequip_l3.npz", nequip.imported),
    "allegro": (WRITTEN.parent / "allegro_l3_shared_paths.npz", allegro.imported),
    "mace": (WRITTEN.parent / "mace_three_layers.npz", mace.imported),
}


@pytest.mark.parametrize(("file", "module"), IN_BOHR.values(), ids=IN_BOHR)
def test_a_network_of_bohr_has_the_same_energies_for_the_same_numbers_in_bohr(
    file: str | Path, module: Callable[..., ImportedPotential], shared_data: Path
) -> None:
    golden = read(shared_data / file)
    of_angstrom, of_bohr = (
        trained_potential(imported(golden, module, length_unit=unit), origin="x", dtype=torch.float64)
        for unit in ("Ang", "bohr")
    )
    structures = structures_of(golden)
    larger = replace(structures, positions=structures.positions * BOHR, cell=structures.cell * BOHR)
    expected, found = evaluate(of_angstrom, structures), evaluate(of_bohr, larger)
    assert of_bohr.cutoff == pytest.approx(BOHR * of_angstrom.cutoff)
    # frequencies and first weights in single precision are multiplied and rounded again
    tolerance = 1e-6 if file == WRITTEN else RELATIVE
    np.testing.assert_allclose(found.energy, expected.energy, rtol=tolerance)
    assert np.abs(found.forces * BOHR - expected.forces).max() < tolerance * np.abs(expected.forces).max()


def test_offsets_become_self_energies_in_ev() -> None:
    golden = read(WRITTEN)
    found = imported(golden, schnetpack.imported, energy_unit="hartree", elements=["O", "H"])
    mean, table = golden["w/postprocessors.1.mean"][0], golden["w/postprocessors.1.atomref"]
    assert found.elements == (1, 8)
    expected = {z: ENERGY_IN_EV["hartree"] * float(mean + table[z]) for z in (1, 8)}
    assert found.self_energies == pytest.approx(expected, rel=1e-14)
    assert found.scale == ENERGY_IN_EV["hartree"]


def test_a_scale_that_nobody_names_is_refused() -> None:
    """The name does not say whether it is for the energy or for the forces."""
    golden = read(WRITTEN) | {"w/postprocessors.2.scale": np.array([1.5])}
    with pytest.raises(UserError, match=r"w/postprocessors.2.scale: no part of painn"):
        imported(golden, schnetpack.imported)


def test_a_second_offset_is_refused() -> None:
    golden = read(WRITTEN)
    more = {f"w/postprocessors.2.{name}": golden[f"w/postprocessors.1.{name}"] for name in ("mean", "atomref")}
    with pytest.raises(UserError, match=r"w/postprocessors.2.mean: must be the only AddOffsets"):
        imported(golden | more, schnetpack.imported)


def test_constants_of_the_radial_functions_are_those_of_the_file(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "painn_ethanol_1.npz")
    found = imported(golden, schnetpack.imported, elements=["H"])
    assert found.state["radial_basis.widths"].numpy().tolist() == golden["w/representation.radial_basis.widths"].tolist()
    exact = 5.0 / 19
    assert found.state["radial_basis.widths"][0].double() != exact


def test_an_atomref_prior_becomes_the_self_energies(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    table = np.linspace(-9.0, -1.0, 20)[:, None]
    more = {"w/prior_model.0.atomref.weight": table, "w/prior_model.0.initial_atomref": np.zeros((20, 1))}
    found = imported(golden | more | {"w/std": np.array(2.5)}, torchmdnet.imported, elements=["H", "O"])
    assert found.self_energies == {1: table[1, 0], 8: table[8, 0]}
    assert found.scale == 2.5
    with pytest.raises(UserError, match="must not give mean_per_atom or self_energies beside the weights of prior_model"):
        imported(golden | more, torchmdnet.imported, mean_per_atom=1.0)


def test_means_that_were_trained_do_not_tell_the_cutoff(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    name = "w/representation_model.distance_expansion.means"
    trained = golden[name] + 0.01 * np.random.default_rng(0).normal(size=golden[name].shape)
    found = imported(golden | {name: trained}, torchmdnet.imported)
    assert found.section.cutoff == 4.5
    assert found.state["radial_basis.centres"].tolist() == trained.tolist()


ROWLESS = {  # file, weights whose rows are counted, format
    "torchani": ("ani1x_weights_0", "w/C.1.weight"),
    "aimnet": ("aimnet2_random", "w/afv.weight"),
    "sake": ("sake_random", "w/params/d0/edge_model/kernel/means"),
}


@pytest.mark.parametrize("name", ROWLESS)
@pytest.mark.parametrize("array", [np.array(1.0), np.zeros((0, 3))], ids=["number", "empty"])
def test_weights_without_rows_are_told(name: str, array: np.ndarray, shared_data: Path) -> None:
    file, weight = ROWLESS[name]
    golden = read(shared_data / "golden" / f"{file}.npz") | {weight: array}
    with pytest.raises(UserError, match=f"{weight.removeprefix('w/params/')}: must have rows"):
        imported(golden, FORMATS[name])


def test_a_box_of_the_network_is_left_out_and_that_is_told(shared_data: Path) -> None:
    golden = read(shared_data / "golden" / "tensornet_random_o3.npz")
    box = "w/representation_model.distance.box"
    told = "its box is not taken over: structures bring their own cells"
    assert told in imported(golden | {box: np.eye(3)}, torchmdnet.imported).notes
    assert told not in imported(golden | {box: np.zeros((3, 3))}, torchmdnet.imported).notes


def test_every_format_has_a_name() -> None:
    assert set(FORMATS) == {"schnetpack", "torchani", "torchmdnet", "aimnet", "sake", "nequip", "allegro", "mace"}
