"""The slope of energies against forces: 1 where both belong together, a known factor or sign where they do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from modelforge.atoms.units import BOHR, ENERGY_IN_EV, HARTREE
from modelforge.data.audit.audit import audit
from modelforge.data.audit.declared_units import DeclaredUnits
from modelforge.data.audit.energy_forces import energy_force_slope, median_slope
from modelforge.data.audit.pair_functions import predict_energies
from modelforge.data.audit.sampling import ensembles
from modelforge.data.structures import Structures, concatenate

SETS = ("acac", "ethanol", "ethanolamine")
KCAL, KJ = ENERGY_IN_EV["kcal/mol"], ENERGY_IN_EV["kJ/mol"]
SLOPE_ERROR = 0.12  # of 87 to 540 pairs: the trapezoidal rule is wrong by up to that much at 0.2 angstrom


@pytest.mark.parametrize("name", [*SETS, "acac test set"])
def test_energies_of_thermal_ensembles_follow_their_forces(name: str, request, read_shared):
    structures = read_shared("acac/test_MD_300K.xyz") if name == "acac test set" else request.getfixturevalue(name)
    slope = energy_force_slope(ensembles(structures, None), length_scale=1.0)
    assert slope is not None
    assert slope.value == pytest.approx(1.0, abs=SLOPE_ERROR)
    assert slope.estimator == "near-identical pairs"


MISTAKES = {  # energies times, forces times, key and text of what must be said
    "gradients as forces": (1, -1, "dataset.forces_key", "dataset.gradient_key"),
    "energies negated": (-1, 1, "dataset.energy_key", "sign"),
    "energies in hartree": (1 / HARTREE, 1, "dataset.energy_unit", '"hartree"'),
    "energies in kcal/mol": (1 / KCAL, 1, "dataset.energy_unit", '"kcal/mol"'),
    "energies in kJ/mol": (1 / KJ, 1, "dataset.energy_unit", '"kJ/mol"'),
    "energies in meV": (1000, 1, "dataset.energy_unit", '"meV"'),
    "forces in hartree/bohr": (1, BOHR / HARTREE, "dataset.forces_unit", '"hartree/bohr"'),
    "forces in hartree/angstrom": (1, 1 / HARTREE, "dataset.forces_unit", '"hartree/angstrom"'),
    "forces in kcal/mol/angstrom": (1, 1 / KCAL, "dataset.forces_unit", '"kcal/mol/angstrom"'),
    "forces in kJ/mol/angstrom": (1, 1 / KJ, "dataset.forces_unit", '"kJ/mol/angstrom"'),
    "forces in kJ/mol/nm": (1, 10 / KJ, "dataset.forces_unit", '"kJ/mol/nm"'),
    "forces in eV/nm": (1, 10, "dataset.forces_unit", '"eV/nm"'),
    "forces in eV/bohr": (1, BOHR, "dataset.forces_unit", "eV/bohr"),
    "energies times 27.2": (HARTREE, 1, "dataset.energy_unit", "eV per hartree"),
    "energies times 1/23.06": (KCAL, 1, "dataset.energy_unit", "the inverse of kcal/mol per eV"),
    "energies times 1/96.5": (KJ, 1, "dataset.energy_unit", "the inverse of kJ/mol per eV"),
    "energies times 0.529": (BOHR, 1, "dataset.energy_unit", "the inverse of bohr per angstrom"),
    "energies times 1.89": (1 / BOHR, 1, "dataset.energy_unit", "bohr per angstrom"),
    "energies times 51.4": (HARTREE / BOHR, 1, "dataset.energy_unit", "eV/angstrom per hartree/bohr"),
    "gradients in hartree/bohr": (1, -BOHR / HARTREE, "dataset.forces_unit", '"hartree/bohr"'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["acac", "ethanol"])
def test_each_wrong_factor_is_found_and_named(name: str, mistake: str, request):
    structures: Structures = request.getfixturevalue(name)
    of_energy, of_forces, key, text = MISTAKES[mistake]
    wrong = replace(structures, energy=structures.energy * of_energy, forces=structures.forces * of_forces)
    findings = {finding.key: finding for finding in audit(wrong).findings}
    assert findings[key].severity == "stop"
    assert text in findings[key].message
    if of_forces > 0 and of_energy > 0:
        assert len(findings) == 1


@pytest.mark.parametrize("name", SETS)
def test_energies_per_atom_are_found(name: str, request):
    structures: Structures = request.getfixturevalue(name)
    (finding,) = audit(replace(structures, energy=structures.energy / structures.num_atoms)).findings
    assert finding.key == "dataset.energy_key"
    assert "per atom" in finding.message


def test_the_remedy_starts_from_the_declared_units(acac: Structures):
    """A file in eV that was declared to be in hartree: its labels arrive 27.2 times too large."""
    wrong = replace(acac, energy=acac.energy * HARTREE, forces=acac.forces * HARTREE)
    (finding,) = audit(wrong, declared=DeclaredUnits(energy="hartree")).findings
    assert finding.message.endswith('set dataset.energy_unit = "eV"')


def spice(path: Path, *, sign: int) -> Structures:
    """Conformers of SPICE, their gradients times a sign as forces."""
    parts = []
    with h5py.File(path) as file:
        for group in file.values():
            num, num_atoms, _ = group["conformations"].shape
            parts.append(
                Structures(
                    num_atoms=np.full(num, num_atoms),
                    atomic_numbers=np.tile(np.asarray(group["atomic_numbers"], dtype=np.uint8), num),
                    positions=np.asarray(group["conformations"], dtype=float).reshape(-1, 3) * BOHR,
                    cell=np.zeros((num, 3, 3)),
                    periodic=np.zeros((num, 3), dtype=bool),
                    energy=np.asarray(group["dft_total_energy"]) * HARTREE,
                    forces=sign * np.asarray(group["dft_total_gradient"], dtype=float).reshape(-1, 3) * HARTREE / BOHR,
                )
            )
    return concatenate(parts)


def test_the_gradients_of_spice_are_no_forces(shared_data: Path):
    path = shared_data / "formats/SPICE-1.1.4_n2.hdf5"
    assert audit(spice(path, sign=-1)).findings == ()
    (finding,) = audit(spice(path, sign=1)).findings
    assert (finding.severity, finding.key) == ("stop", "dataset.forces_key")


@pytest.mark.parametrize("sign", [-1, 1])
def test_pair_functions_fitted_to_forces_predict_the_energies_of_conformers(shared_data: Path, sign: int):
    conformers = spice(shared_data / "formats/SPICE-1.1.4_n2.hdf5", sign=sign)
    found = predict_energies(ensembles(conformers, None), length_scale=1.0)
    assert found is not None
    assert np.corrcoef(found.predicted, found.energy)[0, 1] == pytest.approx(-0.94 * sign, abs=0.03)
    assert np.std(found.energy) / np.std(found.predicted) == pytest.approx(1.0, abs=0.2)


def test_pair_functions_recover_the_energies_of_a_pair_potential(build: Callable[..., Structures]):
    """Clusters of argon far from each other, with Lennard-Jones forces: energies differ by what the forces say."""
    generator = np.random.default_rng(3)
    frames = []
    for _ in range(60):
        positions = 3.0 * np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3)
        frame = Atoms("Ar8", positions=positions + generator.uniform(-0.4, 0.4, size=(8, 3)))
        frame.calc = LennardJones(sigma=2.6, epsilon=0.1, rc=20.0)
        frames.append(frame)
    slope = energy_force_slope(ensembles(build(frames), None), length_scale=1.0)
    assert slope is not None
    assert slope.estimator == "pair functions"
    assert slope.value == pytest.approx(1.0, abs=0.1)


def test_a_rigid_motion_does_not_change_the_slope(ethanolamine: Structures):
    """Each molecule is turned and shifted on its own, with its forces."""
    generator = np.random.default_rng(0)
    positions, forces = ethanolamine.positions.copy(), ethanolamine.forces.copy()
    for begin, end in zip(ethanolamine.offsets[:-1], ethanolamine.offsets[1:], strict=True):
        turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        turn *= np.linalg.det(turn)
        positions[begin:end] = positions[begin:end] @ turn + generator.normal(size=3)
        forces[begin:end] = forces[begin:end] @ turn
    moved = replace(ethanolamine, positions=positions, forces=forces)
    slopes = [energy_force_slope(ensembles(some, None), length_scale=1.0) for some in (ethanolamine, moved)]
    assert slopes[0] is not None
    assert slopes[1] is not None
    assert slopes[1].value == pytest.approx(slopes[0].value, rel=1e-6)


def test_crystals_with_atoms_across_the_border_are_neighbours(build: Callable[..., Structures]):
    """Frames of one cell, each with its atoms wrapped into the cell or not."""
    generator = np.random.default_rng(0)
    frames = []
    for seed in range(24):
        frame = Atoms(
            "Cu4", scaled_positions=[[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], cell=[3.6] * 3, pbc=True
        )
        frame.rattle(0.03, rng=generator)
        frame.calc = EMT()
        if seed % 2:
            frame.wrap()
        frames.append(frame)
    slope = energy_force_slope(ensembles(build(frames), None), length_scale=1.0)
    assert slope is not None
    assert slope.value == pytest.approx(1.0, abs=0.1)


def test_unrelated_energies_give_no_answer(ethanolamine: Structures):
    shuffled = np.random.default_rng(0).permutation(ethanolamine.energy[:240])
    first = ethanolamine.slice(0, 240)
    assert energy_force_slope(ensembles(replace(first, energy=shuffled), None), length_scale=1.0) is None


def test_relaxed_crystals_of_different_compositions_give_no_answer(read_shared):
    crystals = read_shared("periodic/alexandria-random-1k.xyz", stress_key="stress")
    assert energy_force_slope(ensembles(crystals, None), length_scale=1.0) is None


def test_a_few_wrong_labels_do_not_change_the_slope(ethanolamine: Structures):
    energy = ethanolamine.energy.copy()
    energy[::20] += 100.0
    slope = energy_force_slope(ensembles(replace(ethanolamine, energy=energy), None), length_scale=1.0)
    assert slope is not None
    assert slope.value == pytest.approx(1.0, abs=SLOPE_ERROR)


def test_the_median_slope_minimises_absolute_deviations():
    generator = np.random.default_rng(1)
    x = generator.normal(size=51)
    y = 2.0 * x + generator.standard_cauchy(size=51)
    found = median_slope(x, y)
    others = np.linspace(found - 1, found + 1, 2001)
    losses = np.abs(y - others[:, None] * x).sum(axis=1)
    assert np.abs(y - found * x).sum() <= losses.min() + 1e-9


def test_sets_of_small_molecules_are_judged_together(build: Callable[..., Structures]):
    frames = []
    for seed in range(60):
        frame = molecule(("H2O", "CH4", "CH3OH", "NH3")[seed % 4])
        frame.rattle(0.03, seed=seed)
        frame.calc = EMT()
        frames.append(frame)
    slope = energy_force_slope(ensembles(build(frames), None), length_scale=1.0)
    assert slope is not None
    assert slope.value == pytest.approx(1.0, abs=0.1)
