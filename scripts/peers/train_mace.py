"""Train MACE as `mace_run_train` does; `benchmark_training.py` runs it.

All parts are MACE's own: this runs its command with its arguments, and takes over only where that calls its training loop,
to time it, or to take single steps. Its defaults are kept (Adam with amsgrad, plateau schedule, a log line a step, the best
checkpoint), with `--ema` and `--default_dtype float32`. Off: the clipping of gradients, which ours leaves out too, plots,
and the tables of errors after the end. Variants: `cuda` (on a GPU), there also `cuequivariance` and `openequivariance`, its
kernels, where installed.
"""

# mypy: allow-untyped-calls, disable-error-code="import-not-found"
# because ase annotates only some of its functions, and the peer is in an environment of its own.

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ase.io import iread, write
from mace import tools
from mace.cli.run_train import run
from measuring import Figures, fixed, options, time_passes, write_figures
from torch import nn

loop = sys.modules["mace.tools.train"]  # the package has a function of that name
KERNELS = {"cuequivariance": "--enable_cueq=True", "openequivariance": "--enable_oeq=True"}
SETTINGS = """--name benchmark --model ScaleShiftMACE --default_dtype float32 --E0s average --scaling rms_forces_scaling
--interaction RealAgnosticResidualInteractionBlock --interaction_first RealAgnosticResidualInteractionBlock
--energy_weight 1 --forces_weight 100 --clip_grad None --ema --plot False"""


class Finished(Exception):
    """The training is over, and what `mace_run_train` would do then is not wanted."""


def write_parts(data: Path, folder: Path, *, num_validation: int) -> None:
    """Two XYZ files, the last structures validate; energies from their mean on, as single precision would lose the rest."""
    frames = list(iread(data))
    first = len(frames) - num_validation
    mean = np.mean([frame.get_potential_energy() for frame in frames[:first]])
    for frame in frames:
        frame.info = {"REF_energy": frame.get_potential_energy() - mean}
        frame.arrays["REF_forces"] = frame.get_forces()
        frame.calc = None
        if not frame.pbc.any():
            frame.cell = None
    write(folder / "training.xyz", frames[:first], format="extxyz")
    write(folder / "validation.xyz", frames[first:], format="extxyz")


def arguments(chosen: argparse.Namespace) -> argparse.Namespace:
    """Those of `mace_run_train`."""
    network, folder = chosen.network, chosen.folder
    kernels = [option for name, option in KERNELS.items() if name in chosen.variant]
    device = "cuda" if "cuda" in chosen.variant else "cpu"
    command = f"""{SETTINGS} --work_dir {folder} --train_file {folder}/training.xyz --valid_file {folder}/validation.xyz
    --r_max {network["cutoff"]} --num_radial_basis {network["num_bessel"]} --max_ell {network["max_ell"]}
    --max_L {network["l_max"]} --num_channels {network["num_channels"]} --num_interactions {network["num_layers"]}
    --correlation {network["correlation"]} --MLP_irreps {network["readout_hidden"]}x0e
    --batch_size {chosen.batch_size} --valid_batch_size {chosen.batch_size} --max_num_epochs {chosen.epochs}
    --lr {chosen.learning_rate} --ema_decay {chosen.ema_decay} --num_workers {chosen.workers}
    --device {device} --pin_memory {device == "cuda"}"""
    radial = f"--radial_MLP={network['radial_hidden']}"
    settings: argparse.Namespace = tools.build_default_arg_parser().parse_args([*command.split(), *kernels, radial])
    return settings


def passes(parts: dict[str, object], chosen: argparse.Namespace) -> list[float]:
    """The optimizer step alone, by MACE's own function."""
    names = ("model", "loss_fn", "optimizer", "ema", "output_args", "max_grad_norm", "device")
    kept = {name: parts[name] for name in names}

    def step(batch: object) -> None:
        loop.take_step(batch=batch, **kept)

    return time_passes(step, fixed(parts["train_loader"], chosen.fixed_batches), passes=chosen.epochs)  # type: ignore[arg-type]


def train(parts: dict[str, object], original: Callable[..., None]) -> list[float]:
    """As `mace_run_train` does; the time after the validation of each epoch."""
    seconds: list[float] = []
    report = loop.valid_err_log

    def report_and_note(*arguments: object) -> None:
        report(*arguments)
        if arguments[4] is not None:  # the epoch; none before the first
            seconds.append(time.perf_counter())

    loop.valid_err_log = report_and_note  # type: ignore[attr-defined] # mypy does not know what it has
    original(**parts)
    return seconds


def figures_of(model: nn.Module, seconds: list[float]) -> Figures:
    """What the benchmark wants to know."""
    return Figures(
        seconds=seconds,
        num_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        num_embedding=model.get_parameter("node_embedding.linear.weight").numel(),
        versions={"mace-torch": version("mace-torch"), "e3nn": version("e3nn"), "torch": torch.__version__},
    )


def main() -> None:
    """Train, then write the figures."""
    chosen = options("Train MACE for benchmark_training.py.")
    warnings.filterwarnings("ignore")
    write_parts(chosen.data, chosen.folder, num_validation=chosen.num_validation)
    original = tools.train

    def stand_in(**parts: object) -> None:
        seconds = passes(parts, chosen) if chosen.fixed_batches else train(parts, original)
        model = parts["model"]
        assert isinstance(model, nn.Module)
        write_figures(chosen.folder, figures_of(model, seconds))
        raise Finished

    tools.train = stand_in
    try:
        run(arguments(chosen))
    except Finished:
        print("the training is over")


if __name__ == "__main__":
    main()
