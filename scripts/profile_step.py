"""Where the time of our training step goes: operators in groups, and how much of the machine's peak its products reach.

    python scripts/profile_step.py --potential tensornet --threads 2
    python scripts/profile_step.py --config configs/quickstart.toml --json profile.json

Milliseconds per step are wall time without the profiler; shares are the self time of operators under it. FLOPs are those of
all matrix products of an eager step, forward, forces and gradients; the peak is that of one large product on as many
threads. The compiled step does the same products, so the same FLOPs are set against its time.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from benchmark_networks import NETWORKS
from benchmark_sides import NUM_VALIDATION, Side, Workload, experiment
from benchmark_training import DATA, num_frames
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_step import TrainingStep, training_step

from modelforge.errors import UserError
from modelforge.experiment import Experiment, load

# The first group with a word that the operator's name has, without its prefix.
GROUPS: dict[str, tuple[str, ...]] = {
    "optimizer and weight average": ("adam", "foreach", "lerp"),
    "fused kernels": ("cpp_fused", "triton"),
    "matrix products": ("mm", "matmul", "linear", "dot", "grouped", "celu_networks"),
    "products of tensors": ("coupled", "products_of_pairs"),
    "sums over edges and triples": (
        *("embedding_bag", "segment", "index_add", "scatter", "index_put", "sum_over", "edge_", "environment", "symmetry"),
    ),
    "gathers": ("index", "gather", "embedding", "take", "repeat_interleave"),
    "copies and concatenations": ("copy", "clone", "cat", "stack", "fill", "zero", "contiguous", "pad", "empty"),
    "roots, exponentials, activations": (
        *("exp", "sin", "cos", "sigmoid", "silu", "softplus", "pow", "sqrt", "tanh", "elu", "log", "erf", "atan"),
    ),
    "norms and layer norms": ("norm",),
    "sums and means": ("sum", "mean", "max", "min", "any", "all"),
    "element-wise": ("mul", "add", "sub", "div", "neg", "where", "square", "clamp", "reciprocal", "abs", "isnan"),
}
CALLS = ("autograd::", "torch::autograd", "Torch-Compiled", "TorchDynamo", "##", "ProfilerStep", "Optimizer", "_WithGradients")
REST = "calls, autograd, views and the rest"
GEMM_SIZE = 2048


def group_of(operator: str) -> str:
    """The group of an operator of torch."""
    name = operator.rpartition("::")[2].lower()
    if operator.startswith(CALLS):
        return REST
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), REST)


def milliseconds_per_step(step: TrainingStep, *, passes: int) -> float:
    """Median over passes, after two of warm-up."""
    seconds = []
    for _ in range(passes + 2):
        start = time.perf_counter()
        for batch in step.batches:
            step(batch)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:]) / len(step.batches)


def self_times(step: TrainingStep) -> dict[str, float]:
    """Milliseconds of each operator in a step, without those that it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in step.batches:
            step(batch)
    return {event.key: event.self_cpu_time_total / 1e3 / len(step.batches) for event in profiler.key_averages()}


def flop_of_product(
    rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ends: Tensor, *_: object, **__: Tensor
) -> int:
    """Those of `nn/elements/grouped_products.py`, into which the counter does not see: a matrix for the rows of each group."""
    del rows, biases
    return flop_of_groups([weight.shape for weight in weights], ends)


def flop_of_outer(
    left: Tensor, right: Tensor, ends: Tensor, num_left: Sequence[int], num_right: Sequence[int], **_: Sequence[Tensor]
) -> int:
    """The same of its outer products."""
    del left, right
    return flop_of_groups(list(zip(num_left, num_right, strict=True)), ends)


def flop_of_groups(shapes: Sequence[Sequence[int]], ends: Tensor) -> int:
    """Two for each row and each number of the matrix of its group."""
    counts = [end - begin for begin, end in pairwise([0, *ends.tolist()])]
    return sum(2 * count * math.prod(shape) for count, shape in zip(counts, shapes, strict=True))


GROUPED_PRODUCTS = {
    torch.ops.modelforge.grouped_product: flop_of_product,
    torch.ops.modelforge.grouped_outer: flop_of_outer,
}
for flop in GROUPED_PRODUCTS.values():
    flop._get_raw = True  # type: ignore[attr-defined] # they get the tensors, as only these know the sizes of the groups


def gigaflop_per_step(step: TrainingStep) -> float:
    """Floating point operations of the matrix products of an eager step; a multiplication and an addition are two."""
    with FlopCounterMode(display=False, custom_mapping=GROUPED_PRODUCTS) as counter:
        for batch in step.batches:
            step(batch)
    return float(counter.get_total_flops()) / 1e9 / len(step.batches)


def peak_gigaflop_per_second(dtype: torch.dtype) -> float:
    """The best of some large matrix products."""
    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * GEMM_SIZE**3 / 1e9 / min(seconds)


def profiled(settings: Experiment, *, compiled: bool, options: argparse.Namespace) -> dict[str, object]:
    """All that is measured of the eager or of the compiled step."""
    runtime = settings.runtime.model_copy(update={"compile": compiled, "accelerator": "cpu"})
    step = training_step(settings.model_copy(update={"runtime": runtime}), num_batches=options.batches, beside=False)
    milliseconds = milliseconds_per_step(step, passes=options.passes)
    if compiled and not step.is_compiled:
        raise SystemExit("the training step was not compiled; the line above says why")
    times = self_times(step)
    groups: dict[str, float] = defaultdict(float)
    for operator, spent in times.items():
        groups[group_of(operator)] += spent
    largest = sorted(times, key=lambda operator: -times[operator])[: options.top]
    graphs = [batch.graph for batch in step.batches]
    return {
        "milliseconds": milliseconds,
        "gigaflop": None if compiled else gigaflop_per_step(step),
        "num_structures": sum(graph.num_structures for graph in graphs) / len(graphs),
        "num_atoms": sum(graph.num_atoms for graph in graphs) / len(graphs),
        "num_edges": sum(graph.num_edges for graph in graphs) / len(graphs),
        "groups": dict(sorted(groups.items(), key=lambda entry: -entry[1])),
        "operators": {operator: times[operator] for operator in largest},
    }


def shares(times: dict[str, float], total: float, title: str) -> Table:
    """A row for each entry, with its share of the whole."""
    table = Table(title=title, title_justify="left")
    for name in ("", "ms", "share"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for entry, spent in times.items():
        table.add_row(entry, f"{spent:.2f}", f"{100 * spent / total:.1f} %")
    return table


def show(name: str, found: dict[str, object], *, gigaflop: float, peak: float, console: Console) -> None:
    """What was found of a step, in words and tables."""
    milliseconds, structures = (float(str(found[key])) for key in ("milliseconds", "num_structures"))
    reached = gigaflop / milliseconds * 1e3
    products = (
        f"{gigaflop:.3f} GFLOP of matrix products, {reached:.1f} GFLOP/s: {100 * reached / peak:.1f} % of the peak of "
        f"{peak:.0f} GFLOP/s"
        if gigaflop
        else "its matrix products are in C and not counted (MODELFORGE_NATIVE=0 counts those of torch)"
    )
    console.print(
        f"\n[bold]{name}[/bold]: {milliseconds:.2f} ms per step of {structures:.0f} structures, "
        f"{1e3 * structures / milliseconds:.0f} structures/s; {products}",
        soft_wrap=True,
    )
    groups, operators = found["groups"], found["operators"]
    assert isinstance(groups, dict)
    assert isinstance(operators, dict)
    total = sum(groups.values())
    console.print(shares(groups, total, "self time under the profiler"))
    console.print(shares(operators, total, "largest operators"))


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The TOML, or the network of the benchmark of that name on its data."""
    if options.config:
        return load(options.config, options.set).experiment
    size = num_frames(options.data) - NUM_VALIDATION
    workload = Workload(options.data.absolute(), size, options.potential, options.batch_size, options.threads, 1)
    network = () if options.potential in NETWORKS else (("cutoff", 5.0),)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.toml"
        path.write_text(experiment(Side("modelforge", network=network), workload), encoding="utf-8")
        return load(path, options.set).experiment


def main() -> None:
    """Profile, print, write."""
    options, console = parse(), Console()
    warnings.filterwarnings("ignore")
    torch._inductor.config.cpp.enable_kernel_profile = True  # fused kernels then show by name
    settings = experiment_of(options)
    torch.set_num_threads(options.threads)
    dtype = torch.float64 if settings.runtime.precision == "64-true" else torch.float32
    peak = peak_gigaflop_per_second(dtype)
    choices = (False, True) if options.compile == "both" else (False,)
    try:
        found = {
            "compiled" if compiled else "eager": profiled(settings, compiled=compiled, options=options) for compiled in choices
        }
    except UserError as error:  # files of a configuration that are elsewhere
        sys.exit(f"profile_step.py: {error}")
    gigaflop = float(str(found["eager"]["gigaflop"]))
    graphs = found["eager"]
    console.print(
        f"{settings.potential.name}: {graphs['num_atoms']:.0f} atoms, {graphs['num_edges']:.0f} edges in a batch; "
        f"{torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}"
    )
    for name, entry in found.items():
        show(name, entry, gigaflop=gigaflop, peak=peak, console=console)
    if options.json:
        figures = {"potential": settings.potential.name, "threads": options.threads, "peak_gigaflop_per_second": peak, **found}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Where the time of our training step goes.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, help="the TOML of an experiment")
    which.add_argument("--potential", help="a potential with the sizes of benchmark_training.py, or its defaults")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in modelforge train")
    parser.add_argument("--data", type=Path, help="for --potential: extended XYZ (default: the bundled)")
    parser.add_argument("--batch-size", type=int, help="for --potential (default: 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=10, help="that the steps train on, again and again")
    parser.add_argument("--passes", type=int, default=5, help="over these batches, timed")
    parser.add_argument("--compile", choices=("both", "false"), default="both", help="the compiled step too, or not")
    parser.add_argument("--top", type=int, default=12, help="operators that are listed")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.config and (options.data or options.batch_size):
        parser.error(
            "--data, --batch-size: only with --potential; with --config: --set dataset.path=..., training.batch_size=..."
        )
    options.data, options.batch_size = options.data or DATA, options.batch_size or 10
    return options


if __name__ == "__main__":
    main()
