"""Stress against energies of strained cells: sign, unit and volume."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from modelforge.atoms.units import GIGAPASCAL
from modelforge.data.audit.audit import audit
from modelforge.data.audit.sampling import ensembles
from modelforge.data.audit.stress import stress_slopes
from modelforge.data.structures import Structures


@pytest.fixture(scope="module")
def copper(build) -> Structures:
    """Primitive cells of copper under strain; ASE's stress is positive under tension."""
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(25):
        frame = bulk("Cu", a=3.6)
        strain = generator.normal(size=(3, 3)) * 0.02
        frame.set_cell(frame.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        frame.calc = EMT()
        frames.append(frame)
    return build(frames)


@pytest.fixture(scope="module")
def carbon(read_shared) -> Structures:
    """Graphite under pressure, whose file gives virials in eV."""
    return read_shared("formats/carbon_reduced_100.xyz", forces_key="force", virial_key="virial")


def volumes(structures: Structures) -> np.ndarray:
    return np.abs(np.linalg.det(structures.cell))[:, None, None]


@pytest.mark.parametrize("name", ["copper", "carbon"])
def test_energies_of_strained_cells_follow_their_stress(name: str, request):
    structures: Structures = request.getfixturevalue(name)
    slopes = stress_slopes(ensembles(structures, None))
    assert slopes is not None
    assert slopes.stress == pytest.approx(1.0, abs=0.03)  # third orders of strains up to 0.1
    assert audit(structures).findings == ()


@pytest.mark.parametrize("name", ["copper", "carbon"])
def test_turned_cells_have_the_same_slope(name: str, request):
    """Each cell is turned on its own, with its stress and forces."""
    structures: Structures = request.getfixturevalue(name)
    generator = np.random.default_rng(1)
    turns = np.linalg.qr(generator.normal(size=(len(structures), 3, 3)))[0]
    turns *= np.linalg.det(turns)[:, None, None]
    of_atoms = np.repeat(turns, structures.num_atoms, axis=0)
    turned = replace(
        structures,
        cell=structures.cell @ turns,
        stress=np.swapaxes(turns, 1, 2) @ structures.stress @ turns,
        positions=np.einsum("ai,aij->aj", structures.positions, of_atoms),
        forces=np.einsum("ai,aij->aj", structures.forces, of_atoms),
    )
    slopes = [stress_slopes(ensembles(some, None)) for some in (structures, turned)]
    assert slopes[0] is not None
    assert slopes[1] is not None
    assert slopes[1].stress == pytest.approx(slopes[0].stress, rel=1e-6)


MISTAKES = {  # factor of the stress, key and text of what must be said
    "compression positive": (-1.0, "dataset.stress_convention", '"compression_positive"'),
    "GPa": (1 / GIGAPASCAL, "dataset.stress_unit", 'set dataset.stress_unit = "GPa"'),
    "kbar": (10 / GIGAPASCAL, "dataset.stress_unit", 'set dataset.stress_unit = "kbar"'),
    "VASP's kbar": (-10 / GIGAPASCAL, "dataset.stress_unit", '"compression_positive"'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["copper", "carbon"])
def test_wrong_stresses_are_found_and_named(name: str, mistake: str, request):
    structures: Structures = request.getfixturevalue(name)
    factor, key, text = MISTAKES[mistake]
    (finding,) = audit(replace(structures, stress=structures.stress * factor)).findings
    assert (finding.severity, finding.key) == ("stop", key)
    assert text in finding.message


@pytest.mark.parametrize(("sign", "text"), [(-1, "dataset.virial_key instead of"), (1, "divide them by the volume")])
@pytest.mark.parametrize("name", ["copper", "carbon"])
def test_virials_that_pass_for_stresses_are_found(name: str, sign: int, text: str, request):
    structures: Structures = request.getfixturevalue(name)
    (finding,) = audit(replace(structures, stress=sign * structures.stress * volumes(structures))).findings
    assert (finding.severity, finding.key) == ("stop", "dataset.virial_key")
    assert text in finding.message


def test_wrong_energies_are_not_blamed_on_the_stress(carbon: Structures):
    findings = audit(replace(carbon, energy=carbon.energy * 23.0605)).findings
    assert [finding.key for finding in findings] == ["dataset.energy_unit"]


@pytest.mark.parametrize("factor", [1 / GIGAPASCAL, 10 / GIGAPASCAL, -10 / GIGAPASCAL, None])
def test_far_too_large_stresses_of_relaxed_crystals_are_noticed(read_shared, factor: float | None):
    """None of them resembles another, so only the magnitude can be judged, and no sign; None stands for virials."""
    crystals = read_shared("periodic/alexandria-random-1k.xyz", stress_key="stress").take(np.arange(0, 1000, 4))
    wrong = crystals.stress * (volumes(crystals) if factor is None else factor)
    (finding,) = audit(replace(crystals, stress=wrong)).findings
    assert finding.key == "dataset.stress_unit"
    assert audit(crystals).findings == ()


def test_strained_cells_without_agreement_give_no_answer(copper: Structures):
    shuffled = np.random.default_rng(0).permutation(copper.energy)
    slopes = stress_slopes(ensembles(replace(copper, energy=shuffled), None))
    assert slopes is not None
    assert np.isnan(slopes.stress)
