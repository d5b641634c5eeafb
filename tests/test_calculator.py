"""The ASE calculator of potentials with charges, with inputs besides the atoms, and with direct forces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from made_structures import cluster, crystal

from modelforge.atoms.self_energies import SelfEnergies
from modelforge.calculator import ModelforgeCalculator
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.errors import UserError
from modelforge.model_file import TrainedPotential, save_potential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.painn import PaiNNSection

ELEMENTS = (1, 6, 8)


def saved(folder: Path, *, loss: str = "", **options: object) -> Path:
    """A potential with random weights in a file."""
    section = PaiNNSection(name="painn", cutoff=3.0, num_features=8, num_layers=1, num_radial=4, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EnergyModel(section.build(ELEMENTS)).double()
    trained = TrainedPotential(
        model=model,
        potential=section,
        dataset=ExtendedXYZ(path=("x.xyz",)),
        self_energies=SelfEnergies(dict.fromkeys(ELEMENTS, -10.0), (), np.empty((0, 3))),
        shifts={},
        experiment=f"[training.loss]\n{loss}\n",
        weights="random",
        training_precision="64-true",
        matmul_precision="highest",
    )
    save_potential(folder / "potential.safetensors", trained)
    return folder / "potential.safetensors"


@pytest.fixture
def molecule() -> Atoms:
    return cluster(5, ELEMENTS, seed=0)


def test_charges_add_up_to_the_total_charge_and_give_the_dipole(tmp_path: Path, molecule: Atoms):
    molecule.calc = ModelforgeCalculator(saved(tmp_path, partial_charges=True))
    for total in (0.0, -1.0):
        molecule.info["charge"] = total
        charges = molecule.get_charges()
        assert charges.sum() == pytest.approx(total, abs=1e-12)
        expected = charges @ (molecule.positions - molecule.get_center_of_mass())
        np.testing.assert_allclose(molecule.get_dipole_moment(), expected, rtol=0, atol=1e-12)


def test_a_crystal_has_charges_and_no_dipole(tmp_path: Path):
    atoms = crystal(4, ELEMENTS, seed=0)
    atoms.calc = ModelforgeCalculator(saved(tmp_path, partial_charges=True))
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


def test_a_potential_without_charges_offers_none(tmp_path: Path, molecule: Atoms):
    calculator = ModelforgeCalculator(saved(tmp_path))
    assert calculator.implemented_properties == ["energy", "free_energy", "forces", "stress"]
    molecule.calc = calculator
    with pytest.raises(PropertyNotImplementedError):
        molecule.get_charges()


@pytest.mark.parametrize(
    ("option", "keys"), [("charge_embedding", ("charge", "total_charge")), ("spin_embedding", ("spin", "spin_multiplicity"))]
)
def test_a_changed_input_gives_another_energy_and_the_same_one_is_not_computed_again(
    tmp_path: Path, molecule: Atoms, option: str, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    """ASE itself does not see that `info` has changed."""
    molecule.calc = ModelforgeCalculator(saved(tmp_path, **{option: True}))
    calls = []
    calculate = ModelforgeCalculator.calculate
    monkeypatch.setattr(ModelforgeCalculator, "calculate", lambda *args: calls.append(args) or calculate(*args))
    usual = molecule.get_potential_energy()
    molecule.info[keys[0]] = 3
    changed = molecule.get_potential_energy()
    assert abs(changed - usual) > 1e-4
    assert molecule.get_potential_energy() == changed
    assert len(calls) == 2
    molecule.info[keys[1]] = molecule.info.pop(keys[0])
    assert molecule.get_potential_energy() == changed
    assert len(calls) == 2
    del molecule.info[keys[1]]
    assert molecule.get_potential_energy() == usual


def test_the_calculator_may_be_told_the_inputs(tmp_path: Path, molecule: Atoms):
    path = saved(tmp_path, charge_embedding=True, spin_embedding=True)
    energies = []
    for calculator, info in (
        (ModelforgeCalculator(path, charge=-1, spin_multiplicity=2), {}),
        (ModelforgeCalculator(path), {"charge": -1.0, "spin": np.int64(2)}),
        (ModelforgeCalculator(path, charge=-1), {"charge": -1, "spin": 2}),
        (ModelforgeCalculator(path), {}),
    ):
        molecule.info = info
        molecule.calc = calculator
        energies.append(molecule.get_potential_energy())
    assert energies[0] == energies[1] == energies[2] != energies[3]


@pytest.mark.parametrize(
    ("options", "info", "message"),
    [
        (
            {"charge": 1},
            {"charge": 0},
            'the calculator\'s charge is 1 and atoms.info["charge"] is 0: they must be the same; remove all but one',
        ),
        (
            {},
            {"charge": 1, "total_charge": 2},
            'atoms.info["charge"] is 1 and atoms.info["total_charge"] is 2: they must be the same; remove all but one',
        ),
        ({}, {"charge": "+"}, "atoms.info[\"charge\"]: must be a number (got '+'); correct it, or remove it"),
        (
            {"spin_multiplicity": 2},
            {},
            "spin_multiplicity: the potential does not depend on it (got 2); remove it",
        ),
    ],
)
def test_inputs_that_contradict_each_other_or_mean_nothing_are_mistakes(
    tmp_path: Path, molecule: Atoms, options: dict[str, int], info: dict[str, object], message: str
):
    path = saved(tmp_path, charge_embedding=True)
    molecule.info = info
    with pytest.raises(UserError) as mistake:
        ModelforgeCalculator(path, **options).get_potential_energy(molecule)
    assert str(mistake.value) == message


def test_a_spin_multiplicity_is_a_whole_number(tmp_path: Path, molecule: Atoms):
    molecule.calc = ModelforgeCalculator(saved(tmp_path, spin_embedding=True))
    molecule.info["spin"] = 0
    with pytest.raises(UserError, match="must be the spin multiplicity 2S"):
        molecule.get_potential_energy()


def test_an_energy_that_was_not_trained_is_nan_and_dynamics_and_optimizers_go_on(tmp_path: Path, molecule: Atoms):
    molecule.calc = ModelforgeCalculator(saved(tmp_path, forces="direct", loss="energy_weight = 0.0"))
    assert np.isnan(molecule.get_potential_energy())
    assert np.isfinite(molecule.get_forces()).all()
    before = molecule.positions.copy()
    VelocityVerlet(molecule, timestep=0.1 * units.fs).run(2)
    BFGS(molecule, logfile=None).run(steps=1)
    assert abs(molecule.positions - before).max() > 0
    with pytest.raises(PropertyNotImplementedError):
        molecule.get_stress()


def test_beside_charges_alone_there_is_no_energy_and_no_force(tmp_path: Path, molecule: Atoms):
    loss = "energy_weight = 0.0\nforces_weight = 0.0\ndipole_weight = 1.0"
    molecule.calc = ModelforgeCalculator(saved(tmp_path, partial_charges=True, loss=loss))
    assert abs(molecule.get_dipole_moment()).max() > 0
    for untrained in (molecule.get_potential_energy, molecule.get_forces):
        with pytest.raises(PropertyNotImplementedError):
            untrained()


def test_direct_forces_with_trained_energies_have_both(tmp_path: Path, molecule: Atoms):
    molecule.calc = ModelforgeCalculator(saved(tmp_path, forces="direct"))
    assert np.isfinite(molecule.get_potential_energy())
    assert abs(molecule.get_forces().sum(axis=0)).max() > 1e-6, "they are not those of an energy"


def test_a_charge_that_the_potential_does_not_see_is_told_once(tmp_path: Path, molecule: Atoms):
    molecule.calc = ModelforgeCalculator(saved(tmp_path))
    neutral = molecule.get_potential_energy()
    molecule.info["charge"] = 1
    molecule.rattle(1e-8)
    with pytest.warns(UserWarning, match="a total charge, which this potential does not depend on"):
        assert molecule.get_potential_energy() == pytest.approx(neutral)
    molecule.rattle(1e-8)
    molecule.get_potential_energy()
