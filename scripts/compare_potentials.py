"""Train every potential for the same time on the same data; compare errors at 300 K, parameters and speeds.

    scripts/compare_potentials --minutes 5 --threads 2 --out runs/comparison

A potential is first trained for some epochs, to know how many fit into the time: its cosine schedule then ends with it. One
that is solved in closed form takes what time it takes. Each has a folder in the output folder. What is finished there is not
done again, and what was interrupted goes on; table.md, table.json and comparison.png are written anew after each. A
potential that fails is named in the table, the others go on, and the exit code is 1.
"""

# mypy: allow-untyped-calls
# because ase annotates only some of its functions.

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.io import iread
from ase.md.verlet import VelocityVerlet
from benchmark_training import num_frames
from comparison_entries import Entry, Task, all_entries, experiment_of, task_of, toml
from rich.console import Console

from modelforge.calculator import ModelforgeCalculator

PROBE_EPOCHS = 4
SHARE = 0.95  # of the time that the epochs are planned to take: the rest is for compiling, and for a busier machine
MD_STEPS, MD_WARM_UP = 200, 20


@dataclass(frozen=True)
class Row:
    """What is known of a potential; None where it was not measured."""

    label: str
    failure: str | None = None
    parameters: int | None = None
    epochs: float | None = None
    planned_epochs: int | None = None
    training_seconds: float | None = None
    structures_per_second: float | None = None
    energy_mae: float | None = None  # meV/atom
    energy_rmse: float | None = None
    forces_mae: float | None = None  # meV/angstrom
    forces_rmse: float | None = None
    md_milliseconds: dict[str, float] | None = None  # per step, by number of threads


class Failed(Exception):
    """A training that ended with an error."""


def train(config: Path, folder: Path, *overrides: str) -> None:
    """`modelforge train`, which starts, goes on or finds the run finished; its output is kept beside the run."""
    command = [sys.executable, "-m", "modelforge.cli", "train", "--config", str(config)]
    command += [f"--set={override}" for override in (f"runtime.run_folder={toml(str(folder))}", *overrides)]
    said = folder.with_suffix(".txt")
    with said.open("w", encoding="utf-8") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = [line for line in said.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise Failed(f"exit code {status}: {lines[-1].strip() if lines else 'no output'} ({said})")


def epochs_that_fit(config: Path, folder: Path, seconds: float) -> int:
    """Epochs for the time, from a few that are timed."""
    train(config, folder / "probe", f"training.max_epochs={PROBE_EPOCHS}")
    with (folder / "probe" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    lengths = [end - begin for begin, end in pairwise(ends)][-(PROBE_EPOCHS - 1) :]
    return max(1, int(SHARE * seconds / statistics.median(lengths)))


def compare(entry: Entry, task: Task, folder: Path, options: argparse.Namespace) -> Row:
    """Train a potential, or go on with it, and measure it; or what was found before."""
    folder.mkdir(parents=True, exist_ok=True)
    config, plan, file = folder / "experiment.toml", folder / "plan.json", folder / "row.json"
    num_train = num_frames(task.training) - task.num_validation
    text = experiment_of(entry, task, num_train=num_train, threads=options.threads, compiled=options.compile)
    settings = {"minutes": options.minutes, "experiment": text}
    planned = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else None
    if planned is None:
        config.write_text(text, encoding="utf-8")
        epochs = None if entry.is_closed_form else epochs_that_fit(config, folder, 60 * options.minutes)
        planned = settings | {"epochs": epochs}
        plan.write_text(json.dumps(planned, indent=2), encoding="utf-8")
    elif {key: planned[key] for key in settings} != settings:
        raise Failed(f"{folder} holds a run with other settings; choose another --out, or remove it")
    if file.exists():
        return Row(**json.loads(file.read_text(encoding="utf-8")))
    train(config, folder / "run", *limits(planned["epochs"], options.minutes, task))
    row = measured(entry, task, folder / "run", planned["epochs"], options.md_threads)
    file.write_text(json.dumps(asdict(row), indent=2), encoding="utf-8")
    return row


def limits(epochs: int | None, minutes: float, task: Task) -> list[str]:
    """Overrides of the long run: what it is tested on, and when it ends, where it has epochs."""
    tested = f"dataset.test_paths={{ {task.test_name} = {toml(str(task.test))} }}"
    whole, seconds = divmod(round(60 * minutes), 60)
    duration = f"{whole // 60:02d}:{whole % 60:02d}:{seconds:02d}"
    return [tested, f"training.max_epochs={epochs}", f'training.max_time="{duration}"'] if epochs else [tested]


def measured(entry: Entry, task: Task, run: Path, planned_epochs: int | None, md_threads: Sequence[int]) -> Row:
    """The row of a finished run."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    errors = results["metrics"][task.test_name]
    return Row(
        label=entry.label,
        parameters=results["num_parameters"],
        epochs=results.get("epochs"),
        planned_epochs=planned_epochs,
        training_seconds=results.get("training_seconds"),
        structures_per_second=results.get("structures_per_second"),
        energy_mae=errors["energy_mae_mev_per_atom"],
        energy_rmse=errors["energy_rmse_mev_per_atom"],
        forces_mae=errors["forces_mae_mev_per_angstrom"],
        forces_rmse=errors["forces_rmse_mev_per_angstrom"],
        md_milliseconds={str(threads): md_milliseconds(run, task, threads) for threads in md_threads},
    )


def md_milliseconds(run: Path, task: Task, threads: int) -> float:
    """Time of a step of molecular dynamics of the first test structure at 300 K: ASE's velocity Verlet, 0.5 fs."""
    torch.set_num_threads(threads)
    atoms = next(iread(task.test, index=0))
    atoms.calc = ModelforgeCalculator(run)
    spread = np.sqrt(300.0 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    dynamics.run(MD_WARM_UP)
    start = time.perf_counter()
    dynamics.run(MD_STEPS)
    return 1e3 * (time.perf_counter() - start) / MD_STEPS


def markdown(rows: Sequence[Row], task: Task, options: argparse.Namespace) -> str:
    """The table."""
    titles = ["potential", "energy MAE", "energy RMSE", "forces MAE", "forces RMSE", "parameters", "epochs", "structures/s"]
    titles += [f"ms per MD step, {threads} thread{'s' if threads > 1 else ''}" for threads in options.md_threads]
    lines = [
        f"Each trained for {options.minutes:g} minutes on {options.threads} threads on {task.training.name}; "
        f"errors on {task.test_name} in meV/atom and meV/angstrom.",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" * len(titles) + "|",
    ]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.label} | {row.failure} |" + " |" * (len(titles) - 2))
            continue
        epochs = _shown(row.epochs, 0) + (f" of {row.planned_epochs}" if row.planned_epochs else "")
        values = [row.energy_mae, row.energy_rmse, row.forces_mae, row.forces_rmse]
        cells = [row.label, *(_shown(value, 2) for value in values), f"{row.parameters:,}", epochs]
        cells += [_shown(row.structures_per_second, 0)]
        cells += [_shown((row.md_milliseconds or {}).get(str(threads)), 2) for threads in options.md_threads]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw(rows: Sequence[Row], path: Path, *, title: str, threads: int) -> None:
    """Force errors against the time of an MD step and against the speed of training."""
    import matplotlib as mpl  # an optional dependency

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for row in rows:
        if row.failure or row.forces_mae is None:
            continue
        places = ((row.md_milliseconds or {}).get(str(threads)), row.structures_per_second)
        for panel, place in zip(panels, places, strict=True):
            if place is not None:
                panel.plot(place, row.forces_mae, "o")
                panel.annotate(row.label, (place, row.forces_mae), xytext=(5, 4), textcoords="offset points", fontsize=8)
    for panel, label in zip(panels, (f"ms per MD step, threads: {threads}", "structures/s in training"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.grid(alpha=0.3, which="both")
        panel.margins(0.15)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
    panels[0].set_ylabel("MAE of forces, meV/angstrom")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def row_of(entry: Entry, task: Task, folder: Path, options: argparse.Namespace) -> Row:
    """The row of a potential, or why there is none."""
    try:
        return compare(entry, task, folder, options)
    except Failed as failure:
        return Row(entry.label, failure=str(failure))


def folder_of(entry: Entry, out: Path) -> Path:
    """Where a potential's run, plan and row are kept."""
    return out / entry.label.replace(", ", "_").replace(" ", "_")


def main() -> None:
    """Go through the potentials; write the table and the figure after each."""
    options, console = parse(), Console()
    task, out = task_of(options.data), options.out
    entries, notes = all_entries(direct=options.direct)
    known = [entry.label for entry in entries]
    if unknown := set(options.only or ()) - set(known):
        sys.exit(f"--only: must be some of {', '.join(known)} (got {', '.join(sorted(unknown))})")
    wanted = options.only or known
    chosen = [entry for entry in entries if entry.label in wanted or (folder_of(entry, out) / "row.json").exists()]
    for note in notes:
        console.print(f"note: not compared: {note}", soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, entry in enumerate(chosen, start=1):
        console.print(f"{number} of {len(chosen)}: {entry.label} {dict(entry.potential)}", soft_wrap=True)
        rows.append(row_of(entry, task, folder_of(entry, out), options))
        table = markdown(rows, task, options)
        (out / "table.md").write_text(table, encoding="utf-8")
        (out / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
        draw(
            rows,
            out / "comparison.png",
            title=f"{task.training.name}, {options.minutes:g} minutes each",
            threads=options.md_threads[0],
        )
    console.print((out / "table.md").read_text(encoding="utf-8"), soft_wrap=True, markup=False)
    console.print(f"{out / 'table.md'}, {out / 'table.json'}, {out / 'comparison.png'}", soft_wrap=True)
    sys.exit(any(row.failure for row in rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="All potentials trained for the same time: errors and speeds.")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument(
        "--data", type=Path, help="folder of the acetylacetone data (default: ../shared/data/acac, or the bundled data)"
    )
    parser.add_argument("--only", nargs="+", metavar="POTENTIAL", help="these, and what is finished in the output folder")
    parser.add_argument("--direct", action="store_true", help="each also with direct forces")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the training")
    parser.add_argument("--md-threads", type=int, nargs="+", default=[1, 2], help="of molecular dynamics, all tried")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="train with eager steps")
    return parser.parse_args()


if __name__ == "__main__":
    main()
