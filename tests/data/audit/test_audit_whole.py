"""The whole audit: figures that go into a file, short lines, and time."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from modelforge.data.audit.audit import audit
from modelforge.data.structures import Structures, concatenate


def test_figures_are_plain_numbers(ethanolamine: Structures):
    figures = audit(ethanolamine).figures
    assert json.loads(json.dumps(figures.to_json(), allow_nan=False)) == figures.to_json()
    assert figures.num_structures == 480
    assert figures.shortest_distance_place == f"{ethanolamine.place(51)} atoms 2 and 5"
    assert figures.stress_median is None


def test_figures_of_chosen_structures_are_those_of_these_alone(ethanolamine: Structures):
    chosen = np.arange(30, 200, 2)
    assert audit(ethanolamine, chosen).figures == audit(ethanolamine.take(chosen)).figures


def test_figures_do_not_depend_on_the_size_of_portions(ethanolamine: Structures, monkeypatch: pytest.MonkeyPatch):
    expected = audit(ethanolamine).figures
    monkeypatch.setattr("modelforge.data.audit.sampling.MAX_ATOMS_AT_ONCE", 100)
    assert audit(ethanolamine).figures == expected
    assert audit(ethanolamine, np.arange(len(ethanolamine))).figures == expected


def test_lines_are_few_and_short(ethanolamine: Structures, read_shared):
    crystals = read_shared("periodic/alexandria-random-1k.xyz", stress_key="stress").slice(0, 50)
    for structures in (ethanolamine, crystals):
        lines = audit(structures).lines()
        assert 2 <= len(lines) <= 6
        assert all(len(line) < 240 for line in lines)


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_missing_labels_are_no_mistake(ethanolamine: Structures, label: str):
    unlabelled = replace(ethanolamine, **{label: np.full_like(getattr(ethanolamine, label), np.nan)})
    audited = audit(unlabelled)
    assert audited.findings == ()
    assert (audited.figures.slope is None) == (label != "stress")


def test_structures_without_any_label_can_be_audited(ethanolamine: Structures):
    bare = Structures(
        ethanolamine.num_atoms, ethanolamine.atomic_numbers, ethanolamine.positions, ethanolamine.cell, ethanolamine.periodic
    )
    assert audit(bare).findings == ()


def test_one_structure_can_be_audited(ethanolamine: Structures):
    assert audit(ethanolamine.slice(3, 4)).findings == ()


def test_no_structure_can_be_audited(ethanolamine: Structures):
    assert audit(ethanolamine, np.zeros(0, dtype=np.int64)).findings == ()


def test_mixed_right_data_stop_nothing(ethanolamine: Structures, acac: Structures, ethanol: Structures, read_shared):
    """Molecules, liquids, crystals and free atoms of five methods in one set: energies may be far, which is a note."""
    water = read_shared("periodic/water_64_molecules.xyz")
    crystals = read_shared("periodic/alexandria-random-1k.xyz", stress_key="stress").slice(0, 200)
    atoms = read_shared("acac/isolated_atoms.xyz")
    audited = audit(concatenate([acac, ethanol, water, crystals, ethanolamine, atoms]))
    assert [finding.severity for finding in audited.findings] in ([], ["note"])
    assert audited.figures.slope == pytest.approx(1.0, abs=0.1)


def test_five_hundred_molecules_take_less_than_half_a_second(acac: Structures):
    audit(acac)
    begin = time.process_time()
    audit(acac)
    assert time.process_time() - begin < 0.5
