"""Absolute scales, which units that are wrong together change: lengths, stiffness of bonds, total energies."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.units import fs, invcm

from modelforge.atoms.units import BOHR, ENERGY_IN_EV, HARTREE
from modelforge.data.audit.audit import audit
from modelforge.data.audit.scales import BINDING, FREE_ATOMS, length_ratio, stiffness, total_energies
from modelforge.data.structures import Structures

SILENT = {  # file, options
    "acac/train_300K.xyz": {},
    "acac/test_MD_300K.xyz": {},
    "acac/isolated_atoms.xyz": {},
    "formats/ethanol_reduced_100.xyz": {"energy_unit": "kcal/mol"},
    "formats/qm9_reduced_100.xyz": {"energy_unit": "hartree", "energy_key": "U0"},
    "formats/carbon_reduced_100.xyz": {"forces_key": "force", "virial_key": "virial"},
    "formats/small_aspirin_with_charge_spin.xyz": {},
    "formats/spice_small_with_charges.xyz": {},
    "periodic/water_64_molecules.xyz": {},
    "periodic/alexandria-random-1k.xyz": {"stress_key": "stress"},
}


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_said_about_right_data(name: str, read_shared):
    assert audit(read_shared(name, **SILENT[name])).findings == ()


def test_nothing_is_said_about_the_bundled_data(ethanolamine: Structures):
    assert audit(ethanolamine).findings == ()


def test_small_random_parts_of_right_data_are_not_accused(ethanolamine: Structures, acac: Structures, ethanol: Structures):
    """Few structures leave a large error, which is no reason to speak."""
    generator = np.random.default_rng(7)
    for structures in (ethanolamine, acac, ethanol):
        for size in (8, 20, 50):
            for _ in range(5):
                assert audit(structures, generator.permutation(len(structures))[:size]).findings == ()


def test_ethanol_of_md17_read_as_ev_is_known_to_be_in_kcal_per_mol(read_shared):
    (finding,) = audit(read_shared("formats/ethanol_reduced_100.xyz")).findings
    assert (finding.severity, finding.key) == ("stop", "dataset.energy_unit")
    assert finding.message.endswith('set dataset.energy_unit = "kcal/mol"')


def test_qm9_read_as_ev_is_known_to_be_in_hartree(read_shared):
    (finding,) = audit(read_shared("formats/qm9_reduced_100.xyz", energy_key="U0")).findings
    assert (finding.severity, finding.key) == ("stop", "dataset.energy_unit")
    assert finding.message.endswith('set dataset.energy_unit = "hartree"')


TOGETHER = {  # factors of energies, forces and lengths, and what must be set
    "positions in bohr": (1, 1, 1 / BOHR, ['length_unit = "bohr"', 'forces_unit = "eV/angstrom"']),
    "eV and bohr": (1, BOHR, 1 / BOHR, ['length_unit = "bohr"']),
    "atomic units": (1 / HARTREE, BOHR / HARTREE, 1 / BOHR, ['energy_unit = "hartree"', 'length_unit = "bohr"']),
    "positions in nm": (1, 1, 0.1, ['length_unit = "nm"', 'forces_unit = "eV/angstrom"']),
    "kJ/mol and nm": (1 / ENERGY_IN_EV["kJ/mol"], 10 / ENERGY_IN_EV["kJ/mol"], 0.1, ['"kJ/mol"', '"nm"']),
    "kcal/mol": (1 / ENERGY_IN_EV["kcal/mol"], 1 / ENERGY_IN_EV["kcal/mol"], 1, ['energy_unit = "kcal/mol"']),
    "hartree": (1 / HARTREE, 1 / HARTREE, 1, ['energy_unit = "hartree"']),
}


@pytest.mark.parametrize("units", TOGETHER)
@pytest.mark.parametrize("name", ["acac", "ethanolamine"])
def test_units_that_are_wrong_together_are_found(name: str, units: str, request):
    """Energies and forces stay consistent in most of them, so that the slope alone would say nothing."""
    structures: Structures = request.getfixturevalue(name)
    of_energy, of_forces, of_length, remedies = TOGETHER[units]
    wrong = replace(
        structures,
        energy=structures.energy * of_energy,
        forces=structures.forces * of_forces,
        positions=structures.positions * of_length,
    )
    (finding,) = audit(wrong).findings
    assert finding.severity == "stop"
    for remedy in remedies:
        assert remedy in finding.message


def test_the_stiffness_of_a_harmonic_bond_is_its_force_constant(build):
    """Hydrogen on a spring to an oxygen atom: 3,700 1/cm and the reduced mass give the constant that counts as usual."""
    mass = 15.999 * 1.008 / (15.999 + 1.008)
    frequency = 3700 * invcm / (0.6582119569 * fs)  # energy over hbar, which is that many eV fs
    constant = mass * frequency**2
    lengths = np.random.default_rng(0).normal(0.96, 0.03, size=100)
    structures = build([Atoms("OH", positions=[[0, 0, 0], [0, 0, length]]) for length in lengths])
    pull = -constant * (lengths - 0.96)
    forces = np.zeros((100, 2, 3))
    forces[:, 1, 2], forces[:, 0, 2] = pull, -pull
    found = stiffness(replace(structures, forces=forces.reshape(-1, 3)), length_scale=1.0)
    assert found is not None
    assert found.ratio == pytest.approx(1.0, abs=0.05)  # "usual" is a round number
    assert found.num_bonds == 100


def test_bonds_that_push_are_noticed_without_energies(ethanolamine: Structures):
    wrong = replace(ethanolamine, forces=-ethanolamine.forces, energy=np.full(len(ethanolamine), np.nan))
    (finding,) = audit(wrong).findings
    assert (finding.severity, finding.key) == ("stop", "dataset.forces_key")


def test_neighbours_are_at_the_sum_of_their_covalent_radii(build):
    """N2: 1.42 angstrom by the radii of Cordero (2008), 0.71 each; helium, which binds nothing, does not count."""
    structures = build([Atoms("N2He2", positions=[[0, 0, 0], [0, 0, 1.42], [0, 0, 4.0], [0, 0, 4.9]])])
    assert length_ratio(structures, shortest=0.9) == pytest.approx(1.0)


def test_energies_of_free_atoms_and_their_binding_have_the_ratio_one(build):
    structures = build([Atoms("OH2", positions=np.eye(3))])
    energy = (FREE_ATOMS[7] + 2 * FREE_ATOMS[0]) * HARTREE * BINDING
    found = total_energies(replace(structures, energy=np.array([energy])))
    assert found is not None
    assert found.ratio == pytest.approx(1.0)


def test_free_atoms_have_known_energies():
    """Hydrogen is exact; 2.903724 (helium, Pekeris 1959); each further electron binds, and each element more than the last."""
    assert FREE_ATOMS[0] == -0.5
    assert FREE_ATOMS[1] == pytest.approx(-2.903724, abs=1e-3)
    assert len(FREE_ATOMS) == 36
    assert (np.diff(FREE_ATOMS) < 0).all()
    charge = np.arange(1.0, 37.0)
    # Thomas and Fermi's energy with the corrections of Scott and of Schwinger (Englert 1988), without shells
    statistical = -0.768745 * charge ** (7 / 3) + 0.5 * charge**2 - 0.269900 * charge ** (5 / 3)
    assert np.asarray(FREE_ATOMS)[4:] == pytest.approx(statistical[4:], rel=0.02)  # shells matter less and less


def test_elements_beyond_the_table_give_no_ratio(build):
    assert total_energies(replace(build([Atoms("I2", positions=np.eye(3)[:2])]), energy=np.array([-1.0]))) is None
