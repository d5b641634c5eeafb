"""How long a run is still going to take, as it says itself."""

import pytest

from modelforge.training import display
from modelforge.training.display import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the pace sees; set its only element."""
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    return now


def test_a_first_step_that_waited_for_the_compiler_says_nothing_of_the_rest(clock: list[float]) -> None:
    pace = Pace(step=0, total_steps=1000)
    assert pace.left() == "time left not known yet"
    clock[0] = 100.0
    assert pace.step_done(1) == 100.0
    assert pace.left() == "time left not known yet"
    for step in range(2, 12):
        clock[0] += 0.5
        assert pace.step_done(step) is None
    assert pace.left() == "8 min 14 s left"  # 989 steps of half a second


def test_at_the_end_nothing_is_left(clock: list[float]) -> None:
    pace = Pace(step=4, total_steps=5)
    clock[0] = 2.0
    pace.step_done(5)
    assert pace.left() == "0 s left"
