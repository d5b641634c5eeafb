"""`rehearse`: all that a run will ever do, once, in seconds, on a copy of its model and on all of its processes."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from modelforge.errors import RunFailure, UserError
from modelforge.rehearsal.ending import remove_traces, tested_few, write_checkpoint, write_product, write_report
from modelforge.rehearsal.heaviest_batches import sum_gradients, train_heaviest, validate_heaviest
from modelforge.rehearsal.rehearsal import Rehearsal, RehearsalFailed, is_out_of_memory, peak_memory
from modelforge.training.metrics import errors
from modelforge.training.optimizer import build_optimizer
from modelforge.training.step import in_a_line

Result = TypeVar("Result")


def rehearse(run: Rehearsal) -> tuple[str, ...]:
    """Lines for the log of the first process; `UserError` or `RehearsalFailed`, on all processes, if anything would fail.

    Every process calls it when the model is on its device, before the first step. It leaves the random streams, the model and
    the run folder as they were.
    """
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        heaviest, kept = _parts(run)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)  # the peak of a run is that of its own steps
    if not run.is_first:
        return ()
    seconds = time.perf_counter() - begun
    return (f"rehearsal ({seconds:.1f} s): {heaviest}; validation, test and report work; {kept}",)


def _parts(run: Rehearsal) -> tuple[str, str]:
    """Everything in the order of the run; in words what a batch takes, and what the run folder takes."""
    model = copy.deepcopy(run.trained.model)
    optimizer = build_optimizer(run.experiment.training.optimizer, model)
    heaviest = _on_all(run, "heaviest training batch", lambda: train_heaviest(run, model, optimizer))
    _on_all(run, "sum of gradients over processes", lambda: sum_gradients(run, model))
    model.load_state_dict(run.trained.model.state_dict())  # a step at the full rate, which was not warmed up, proves nothing
    sums = _on_all(run, "heaviest validation batch", lambda: validate_heaviest(run, model))
    _on_all(run, "sum of errors over processes", lambda: errors(sums))
    kept = _on_all(run, "checkpoint", lambda: write_checkpoint(run, model, optimizer) if run.is_first else "")
    try:
        _on_all(run, "saved potential", lambda: write_product(run, model) if run.is_first else None)
        metrics = _on_all(run, "test", lambda: tested_few(run))
        _on_all(run, "report", lambda: write_report(run, metrics) if run.is_first else None)
    finally:
        if run.is_first:
            remove_traces(run)
    return heaviest, kept


def _on_all(run: Rehearsal, part: str, work: Callable[[], Result]) -> Result:
    """What the work gives on this process, once it is done on all: none goes on, and waits, where another has failed."""
    failure: UserError | RehearsalFailed | None = None
    try:
        with _failures_told(run, part):
            result = work()
    except (UserError, RehearsalFailed) as error:
        failure = error
    num_failed = int(run.sum_over_processes(torch.tensor(float(failure is not None), device=run.device)))
    if failure is not None:
        raise failure
    if num_failed:
        raise UserError(f"the rehearsal failed in its {part} on {num_failed} other processes, whose messages say why")
    return result


@contextmanager
def _failures_told(run: Rehearsal, part: str) -> Iterator[None]:
    """Say of any failure in which part it came, and what can be done about it."""
    try:
        yield
    except (UserError, RunFailure) as error:
        raise UserError(f"{error} (found by the rehearsal in its {part}; nothing was trained)") from error
    except Exception as error:
        told = f"the rehearsal failed in its {part} ({in_a_line(error)}"
        if is_out_of_memory(error):
            size = run.experiment.training.evaluation_batch_size
            raise UserError(
                f"training.evaluation_batch_size: must be smaller (got {size}): {told}, {peak_memory(run.device)})"
            ) from error
        raise RehearsalFailed(
            f"{told}), where the run would have failed later. No setting is known to be the cause: please report it; "
            "--skip-rehearsal starts the run all the same"
        ) from error
