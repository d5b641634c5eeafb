"""What the training scripts of all peers share: their options, a clock, passes over fixed batches, the file of figures.

Imports nothing but torch and the standard library, as it runs in the virtual environment of each peer.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypedDict, TypeVar

import torch

BatchT = TypeVar("BatchT")


class Figures(TypedDict):
    """What a peer tells; `seconds` are the ends of its validations, or of its passes over fixed batches."""

    seconds: list[float]
    num_parameters: int  # that are trained
    num_embedding: int  # of these in tables with a row for each element
    versions: dict[str, str]


def options(description: str) -> argparse.Namespace:
    """The command line of a peer's script; `network` are the sizes of the network as a JSON object."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="extended XYZ in eV and angstrom")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder; figures.json is written there")
    parser.add_argument("--potential", required=True)
    parser.add_argument("--network", type=json.loads, required=True)
    for name in ("num-validation", "batch-size", "threads", "epochs", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("learning-rate", "ema-decay"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--fixed-batches", type=int, help="the optimizer step alone, over this many batches again and again")
    parser.add_argument("--variant", default="", help="a setting of the peer to try, by its name in the script")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    return chosen


def fixed(batches: Iterable[BatchT], number: int) -> list[BatchT]:
    """The first batches, kept."""
    kept = list(islice(batches, number))
    if len(kept) < number:
        raise SystemExit(f"--fixed-batches: there are only {len(kept)} training batches")
    return kept


def time_passes(step: Callable[[BatchT], None], batches: Sequence[BatchT], *, passes: int) -> list[float]:
    """Take a step with each batch, pass after pass; the time at the end of each."""
    seconds = []
    for _ in range(passes):
        for batch in batches:
            step(batch)
        seconds.append(time.perf_counter())
    return seconds


def write_figures(folder: Path, figures: Figures) -> None:
    """Leave the figures where `benchmark_training.py` reads them."""
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
