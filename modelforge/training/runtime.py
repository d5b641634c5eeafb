"""`[runtime]`: where and how an experiment runs, as opposed to what it computes; and the dtype that follows from it."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator

from modelforge.section import Count, CountOrZero, PathText, Positive, Problem, Section, SectionError, Unit

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
MatmulPrecision = Literal["highest", "high", "medium"]


OTHER_STRATEGIES = ("fsdp", "deepspeed", "ddp_spawn")


def _refuse_other_strategies(name: object) -> object:
    """Say why, of what Lightning has."""
    if name in OTHER_STRATEGIES:
        raise ValueError(
            f"must not be {name!r}: checkpoints, clipping and the compiled step need whole weights on each device; use 'ddp'"
        )
    return name


class RuntimeSection(Section):
    """Devices, precision, seed and the run folder."""

    seed: CountOrZero = 0
    """Seed of weights and of the order of structures; on a CPU the same seed and `num_threads` give the same bits."""
    run_folder: PathText = "runs/<name>"
    """Folder for all that the run leaves; by default named like the TOML, next to it."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    """Kind of device; `auto` takes a CUDA GPU if there is one, and `gpu` is `cuda`: other GPUs have no float64."""
    devices: Literal["auto"] | Count | Annotated[tuple[CountOrZero, ...], Field(min_length=1)] = "auto"
    """Number of devices on each node, or the indices of those to use."""
    num_nodes: Count = 1
    """Machines that train together."""
    strategy: Annotated[Literal["auto", "ddp"], BeforeValidator(_refuse_other_strategies)] = "auto"
    """How devices share the work: `ddp` has a whole model on each; `auto` is `ddp` on several devices, nothing on one."""
    startup_timeout: Annotated[Positive, Unit("s")] = 300.0
    """How long the processes of a run wait for each other at the start."""
    precision: Precision = "32-true"
    """Floating point numbers of weights and training; `mixed`: float32 weights, the network's layers in half precision.

    Distances, radial functions, sums over edges and atoms, energies and the loss are never below float32, and self-energies
    and errors always in float64. The trained potential predicts in the numbers of its weights: with `mixed` in float32.
    """
    matmul_precision: MatmulPrecision = "highest"
    """Products of float32 matrices: `highest` is float32; `high` (TF32) and `medium` (bfloat16) are faster on some devices.

    Forces are then wrong by about 0.1% (`high`) and 0.5% (`medium`). The saved potential predicts with the same choice.
    """
    deterministic: bool = False
    """Bits that repeat on a GPU too, or an error that names the operation; on the CPU that is always so."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the training step into one program; `auto` does so where it pays and works, `true` before the first step."""
    num_threads: Count | None = None
    """Threads of torch on the CPU; torch's own choice where not set. Another number gives other last bits."""
    log_interval: Annotated[Positive, Unit("s")] = 10.0
    """Time between lines of the plain log."""
    tensorboard: bool = False
    """Write event files for TensorBoard too."""
    progress_bar: Literal["auto"] | bool = "auto"
    """Show a progress bar; `auto` does so on a terminal."""

    @model_validator(mode="after")
    def keys_fit_together(self) -> "RuntimeSection":
        """What Lightning would change or refuse only once the data are loaded."""
        if problems := list(self._problems()):
            raise SectionError(*problems)
        return self

    def _problems(self) -> Iterator[Problem]:
        if isinstance(self.devices, tuple) and len(set(self.devices)) < len(self.devices):
            yield "devices", f"must not name a device twice (got {list(self.devices)})"
        if self.accelerator == "cpu" and isinstance(self.devices, tuple):
            yield "devices", f"must be a number on the CPU, which has no indices (got {list(self.devices)})"
        if self.precision == "64-true" and self.matmul_precision != "highest":
            yield "matmul_precision", 'has no effect with precision = "64-true", whose products are never rounded; remove it'
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            yield "precision", "must be 'bf16-mixed', '32-true' or '64-true' on the CPU (got '16-mixed')"


def dtype_of(runtime: RuntimeSection) -> torch.dtype:
    """The floating point type of weights and data."""
    return torch.float64 if runtime.precision == "64-true" else torch.float32


def accelerator_of(runtime: RuntimeSection) -> Literal["cpu", "cuda"]:
    """The kind of device that a run takes: one that has float64, in which errors are added up."""
    if runtime.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if runtime.accelerator == "cpu" else "cuda"


def device_note(runtime: RuntimeSection) -> str | None:
    """Why a GPU that is there is not used, or None."""
    if runtime.accelerator == "auto" and torch.backends.mps.is_available() and not torch.cuda.is_available():
        return "this Mac's GPU (MPS) is not used, as it has no float64; the run takes the CPU"
    return None
