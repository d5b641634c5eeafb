"""What counts as an improvement, which validation is owed, and when a job's end is near."""

import time

import pytest

from modelforge.training.deadline import LEAST_SECONDS, Deadline
from modelforge.training.progress import Progress


def test_small_improvements_are_the_best_but_do_not_count():
    progress = Progress()
    found = [(progress.scored(loss, step=step, threshold=0.1), progress.validations_without_improvement)
             for step, loss in enumerate((10.0, 9.5, 8.9, 9.0, 8.0))]  # fmt: skip
    assert found == [(True, 0), (True, 1), (True, 2), (False, 3), (True, 0)]
    assert (progress.best_loss, progress.validated_step) == (8.0, 4)


def test_a_run_owes_a_validation_at_its_beginning_and_when_it_was_cut_in_one():
    progress = Progress()
    assert progress.owes_validation
    progress.is_validating = True
    progress.scored(1.0, step=0, threshold=0.0)
    assert not progress.owes_validation
    progress.is_validating = True
    assert progress.owes_validation


def test_a_second_stage_compares_only_its_own_losses():
    progress = Progress(best_loss=0.1, validations_without_improvement=5)
    progress.begin_second_stage()
    assert progress.scored(40.0, step=80, threshold=0.001)
    assert progress.validations_without_improvement == 0


def test_a_validation_that_is_not_waited_for_may_be_the_best_and_changes_no_patience():
    progress = Progress(best_loss=1.0, validations_without_improvement=2)
    assert not progress.scored(2.0, step=3, threshold=None)
    assert progress.scored(0.5, step=4, threshold=None)
    assert (progress.validations_without_improvement, progress.best_loss) == (2, 0.5)


@pytest.mark.parametrize(("seconds_left", "is_near"), [(LEAST_SECONDS + 5, False), (LEAST_SECONDS - 5, True)])
def test_a_deadline_is_near_while_there_is_time_to_save(seconds_left: float, is_near: bool):
    deadline = Deadline(time.time() + seconds_left)
    deadline.is_near()
    assert deadline.is_near() is is_near


def test_a_deadline_allows_for_slow_saves():
    deadline = Deadline(time.time() + LEAST_SECONDS + 30)
    assert not deadline.is_near()
    deadline.has_saved(11.0)
    assert deadline.is_near()


def test_without_an_end_no_deadline_is_near():
    assert not Deadline(None).is_near()
