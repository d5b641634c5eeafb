"""`[runtime]`: where and how an experiment runs, as opposed to what it computes; and the dtype that follows from it."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from modelforge.section import Count, CountOrZero, PathText, Positive, Problem, Section, SectionError, Unit


class RuntimeSection(Section):
    """Devices, precision, seed and the run folder."""

    seed: CountOrZero = 0
    """Seed of weights and of the order of structures; the same seed gives the same run."""
    run_folder: PathText = "runs/<name>"
    """Folder for all that the run leaves; by default named like the TOML, next to it."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    """Kind of device; `auto` takes the best that is there."""
    devices: Literal["auto"] | Count | Annotated[tuple[CountOrZero, ...], Field(min_length=1)] = "auto"
    """Number of devices on each node, or the indices of those to use."""
    num_nodes: Count = 1
    """Machines that train together."""
    strategy: Literal["auto", "ddp", "ddp_spawn", "fsdp", "deepspeed"] = "auto"
    """How devices share the work, a name of a Lightning strategy; `auto` is `ddp` on several devices."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Floating point numbers of the training; energies are always summed up in double precision."""
    compile: Literal["auto"] | bool = "auto"
    """Fuse the training step with torch.compile; `auto` does so where it pays and works."""
    num_threads: Count | None = None
    """Threads of torch on the CPU; torch's own choice where not set."""
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
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            yield "precision", "must be 'bf16-mixed', '32-true' or '64-true' on the CPU (got '16-mixed')"


def dtype_of(runtime: RuntimeSection) -> torch.dtype:
    """The floating point type of weights and data."""
    return torch.float64 if runtime.precision == "64-true" else torch.float32
