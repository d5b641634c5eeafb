"""Draw a run: learning curves from its metrics.csv, and predicted against reference forces and energies of a test set.

python scripts/plot_run.py RUN_FOLDER --set test --out figure.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import ase.io
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

TRAINING, VALIDATION = "#888888", "#1f5fa8"


def main() -> None:
    """Read the run folder and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", default="test", help="test set, the name of a file in predictions/")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), dpi=130, layout="constrained")
    draw_curves(axes[0], arguments.run / "metrics.csv")
    draw_parity(axes[1:], arguments.run / "predictions" / f"{arguments.set}.extxyz", arguments.set)
    figure.savefig(arguments.out)
    print(f"wrote {arguments.out}")


def draw_curves(axis: Axes, path: Path) -> None:
    """RMS force errors of training and validation over the training time."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]  # without the validation before the first step
    minutes = [float(row["seconds"]) / 60 for row in rows]
    for name, colour, label in (
        ("train", TRAINING, "training, raw weights"),
        ("val", VALIDATION, "validation, averaged weights"),
    ):
        values = [float(row[f"{name}/forces_rmse_mev_per_angstrom"]) for row in rows]
        axis.semilogy(minutes, values, color=colour, label=label, linewidth=1.2)
    axis.set(xlabel="training time (min)", ylabel="force RMSE (meV/Å)", title="learning curve")
    axis.grid(which="both", alpha=0.25)
    axis.legend(fontsize=8, frameon=False)


def draw_parity(axes: np.ndarray, path: Path, name: str) -> None:
    """Predicted against reference values."""
    frames = ase.io.read(path, index=":")
    forces = np.concatenate([frame.get_forces() for frame in frames]).ravel()
    predicted_forces = np.concatenate([frame.arrays["predicted_forces"] for frame in frames]).ravel()
    energies = np.array([frame.get_potential_energy() for frame in frames])
    predicted_energies = np.array([frame.info["predicted_energy"] for frame in frames])
    middle = energies.mean()
    draw_pairs(axes[0], forces, predicted_forces, unit="eV/Å", scale=1e3, title=f"forces, {name}")
    pairs = (energies - middle, predicted_energies - middle)
    draw_pairs(axes[1], *pairs, unit="eV", scale=1e3, title=f"energies, {name}")
    axes[1].set_xlabel(f"reference, less {middle:.2f} eV (eV)")


def draw_pairs(axis: Axes, reference: np.ndarray, predicted: np.ndarray, *, unit: str, scale: float, title: str) -> None:
    """A scatter of pairs with its errors in thousandths of the unit."""
    errors = predicted - reference
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    axis.plot([low, high], [low, high], color=TRAINING, linewidth=0.8)
    axis.plot(reference, predicted, ".", color=VALIDATION, markersize=2, alpha=0.4, rasterized=True)
    text = f"RMSE {scale * np.sqrt(np.mean(errors**2)):.2f} m{unit}\nMAE {scale * np.abs(errors).mean():.2f} m{unit}"
    axis.text(0.05, 0.95, text, transform=axis.transAxes, va="top", fontsize=9)
    axis.set(xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})", title=title)
    axis.grid(alpha=0.25)


if __name__ == "__main__":
    main()
