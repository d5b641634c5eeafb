"""The first thing that is not finite is found afterwards, by step and by name."""

import pytest
import torch

from modelforge.training import fault_record
from modelforge.training.fault_record import FaultRecord

GOOD = torch.tensor([1.0, 2.0])
FORCES_GONE = torch.tensor([1.0, float("nan")])
ALL_GONE = torch.tensor([float("inf"), float("nan")])


def record() -> FaultRecord:
    return FaultRecord(["energy", "forces"], torch.zeros(()))


def test_without_a_fault_there_is_none():
    found = record()
    for step in range(5):
        found.note_terms(step, GOOD)
        found.note_norm(torch.tensor(3.0))
    assert found.first_fault() is None


def test_the_first_faulty_term_is_named_whatever_came_after():
    found = record()
    for step, terms in enumerate([GOOD, GOOD, FORCES_GONE, ALL_GONE, ALL_GONE], start=100):
        found.note_terms(step, terms)
    assert found.first_fault() == (102, "the forces term of the loss", True)


def test_a_gradient_that_is_not_finite_is_found_before_the_loss_that_it_ruins():
    found = record()
    found.note_terms(0, GOOD)
    found.note_norm(torch.tensor(float("inf")))
    found.note_terms(1, ALL_GONE)
    assert found.first_fault() == (0, "the gradient", False)


def test_several_terms_are_named_together():
    found = record()
    found.note_terms(0, ALL_GONE)
    assert found.first_fault() == (0, "the energy and the forces term of the loss", True)


def test_old_steps_are_forgotten_and_their_rows_used_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fault_record, "STEPS", 4)
    found = record()
    found.note_terms(0, FORCES_GONE)
    for step in range(1, 6):
        found.note_terms(step, GOOD)
    assert found.first_fault() is None
    found.note_terms(6, FORCES_GONE)
    assert found.first_fault() == (6, "the forces term of the loss", True)


def test_a_resumed_run_begins_anew():
    found = record()
    found.note_terms(7, FORCES_GONE)
    found.note_terms(3, GOOD)
    assert found.first_fault() is None
