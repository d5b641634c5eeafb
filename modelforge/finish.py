"""The end of a run: the best weights as a potential, its test, results.json."""

import json
import resource
import statistics
import sys
from dataclasses import asdict
from typing import Any

import torch

from modelforge import __version__
from modelforge.files import write_text
from modelforge.final_test import evaluate_sets
from modelforge.model_file import FILE_NAME, FIRST_STAGE_FILE_NAME, TrainedPotential, save_potential
from modelforge.report import data_report, direct_forces_in_words, error_table
from modelforge.run import Run, measure_precision
from modelforge.run_folder import length_of
from modelforge.training.display import duration
from modelforge.training.progress import BestWeights

Results = dict[str, Any]


def finish(run: Run) -> Results:
    """Write the product, test the best weights, write the results; the first process gives them."""
    if not (run.trainer.is_global_zero or torch.distributed.is_initialized()):
        return {}  # only the test was missing, which the first process does alone
    for place, best in enumerate(run.keeper.best):
        trained = best_potential(run, best)
        if run.trainer.is_global_zero:
            is_last = place == len(run.keeper.best) - 1
            save_potential(run.folder.path / (FILE_NAME if is_last else FIRST_STAGE_FILE_NAME), trained)
    device, log = run.trainer.strategy.root_device, run.log
    metrics = evaluate_sets(
        trained,
        run.data,
        run.experiment.training,
        folder=run.folder,
        device=device,
        say=log.line,
        stop_if_asked=run.keeper.stop_signal.raise_if_noted,
    )
    if not run.trainer.is_global_zero:
        return {}
    precision = measure_precision(run)
    results = _results(run, trained, metrics) | {"precision": asdict(precision) if precision else None}
    write_text(run.folder.results, json.dumps(results, indent=2) + "\n")
    log.line(f"finished: {_reason(run)} after {duration(run.keeper.progress.seconds)}; tested weights: {trained.weights}")
    log.table(error_table(results))
    for line in direct_forces_in_words(results):
        log.line(line)
    log.line(f"run folder: {run.folder.path}")
    return results


def best_potential(run: Run, best: BestWeights) -> TrainedPotential:
    """The potential with the best weights of a stage: the averaged ones where there is an average."""
    run.task.model.load_state_dict(best["weights"])
    run.task.model.eval()
    if run.experiment.potential.is_closed_form:
        return run.potential(weights="closed form")
    epoch = best["steps"] / run.task.steps_per_epoch
    stage = " (second stage)" if best["is_second_stage"] else ""
    return run.potential(weights=f"best epoch {epoch:.4g}{stage}, {best['kind']}")


def _reason(run: Run) -> str:
    """Why the training ended; a run whose length was cut down below what it has ends without a step."""
    return run.keeper.progress.reason or "max_epochs reached"


def _results(run: Run, trained: TrainedPotential, metrics: dict[str, Any]) -> Results:
    speeds = run.keeper.metrics.column("structures_per_second")
    length = length_of(run.experiment)
    return {
        "status": "finished",
        "reason": _reason(run),
        "version": __version__,
        "epochs": run.task.steps / run.task.steps_per_epoch,
        "steps": run.task.steps,
        "num_parameters": sum(weight.numel() for weight in run.task.model.parameters()),
        "training_seconds": run.keeper.progress.seconds,
        "structures_per_second": statistics.median(speeds[len(speeds) // 2 :]) if speeds else None,
        "peak_memory_mb": peak_memory_mb(),
        "weights": trained.weights,
        "forces": trained.potential.forces,
        "self_energies_ev": trained.self_energies.by_element,
        "data": data_report(run.data),
        "metrics": metrics,
        **({"length": length} if length else {}),
    }


def peak_memory_mb() -> float:
    """Peak memory of this process, or of the GPU if there is one in use, in MB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
