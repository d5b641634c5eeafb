"""Weights that change in the course of a run, against their closed forms, and what a second stage makes of them."""

import pytest
from pydantic import ValidationError

from modelforge.section import SectionError
from modelforge.training.learning_rate import ConstantRate
from modelforge.training.loss import LossSection, weights_of
from modelforge.training.loss_weights import ConstantWeight, LinearWeight, StepWeight, largest_weight, weight_at
from modelforge.training.second_stage import SecondStage
from modelforge.training.section import TrainingSection

END = float("inf")


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (ConstantWeight(), (0.0, 3.5, END), (7.0, 7.0, 7.0)),
        (LinearWeight(end_epoch=4), (0.0, 1.0, 2.0, 4.0, 9.0, END), (0.0, 1.75, 3.5, 7.0, 7.0, 7.0)),
        (LinearWeight(start=10, begin_epoch=2, end_epoch=4), (0.0, 2.0, 3.0, 4.0, END), (10.0, 10.0, 8.5, 7.0, 7.0)),
        (StepWeight(start=1, epoch=3), (0.0, 2.99, 3.0, END), (1.0, 1.0, 7.0, 7.0)),
    ],
    ids=["constant", "from zero", "falling", "step"],
)
def test_a_weight_follows_its_schedule(schedule, epochs, expected):
    assert [weight_at(schedule, 7.0, epoch) for epoch in epochs] == pytest.approx(expected, rel=1e-12)
    assert largest_weight(schedule, 7.0) == max(expected)


def test_a_ramp_that_ends_where_it_begins_is_refused():
    with pytest.raises(ValidationError, match=r"must be above begin_epoch, 5 \(got 5\)"):
        LinearWeight(begin_epoch=5, end_epoch=5)


def test_a_term_that_begins_or_ends_at_zero_is_trained():
    section = LossSection(
        energy_weight=0, energy_schedule=StepWeight(start=2, epoch=3), forces_schedule=LinearWeight(end_epoch=2)
    )
    assert weights_of(section) == {"energy": 2.0, "forces": 100.0}
    assert section.needs_derivatives


def test_the_widest_loss_has_all_terms_of_both_stages():
    training = TrainingSection(
        loss=LossSection(energy_weight=1, forces_weight=0, forces_schedule=LinearWeight(start=30, end_epoch=9)),
        second_stage=SecondStage(start_epoch=5, energy_weight=1000, stress_weight=3),
    )
    assert weights_of(training.widest_loss) == {"energy": 1000.0, "forces": 30.0, "stress": 3.0}
    assert training.weights_at(0.0, is_second_stage=False) == [1.0, 30.0, 0.0]
    assert training.weights_at(3.0, is_second_stage=False) == pytest.approx([1.0, 20.0, 0.0])
    assert training.weights_at(3.0, is_second_stage=True) == [1000.0, 0.0, 3.0]  # the switch ends the schedules
    assert training.weights_at(END, is_second_stage=True) == [1000.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ({"second_stage": {"learning_rate": 0.1}}, "learning_rate", "has no effect without start_epoch"),
        ({"second_stage": {"start_epoch": 500}}, "second_stage.start_epoch", "must be below max_epochs, 500"),
        (
            {"second_stage": {"start_epoch": 5, "energy_weight": 0, "forces_weight": 0}},
            "second_stage.energy_weight",
            "all weights of the second stage are 0",
        ),
    ],
)
def test_a_second_stage_that_means_nothing_is_refused(fields, key, message):
    with pytest.raises((ValidationError, SectionError)) as caught:
        TrainingSection.model_validate(fields)
    assert f"{key}: {message}" in str(caught.value)


def test_without_a_second_stage_its_weights_do_not_count():
    training = TrainingSection(lr_scheduler=ConstantRate())
    assert training.weights_at(END, is_second_stage=False) == [1.0, 100.0]
