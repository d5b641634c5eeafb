"""When a run's step is compiled: in the background while the first steps run eagerly, checked, and dropped if it differs.

Which step runs compiled is fixed by its number, not by how long the compiler takes, so a run gives the same bits again.
"""

import time
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.compiling_process import CompilingProcess
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection
from modelforge.training.step import CompiledStep, fits_compilation, try_to_compile

CompileMode = Literal["auto"] | bool
EAGER_STEPS = 500  # with "auto" the steps that run eagerly while another process compiles
WORTH_STEPS = 15_000  # with "auto" the length of a run from which compiling pays: a minute for some milliseconds a step
Tell = Callable[[str], None]


class StepCompiler:
    """Gives the step function of each step: eager at first, compiled from a fixed step on."""

    def __init__(
        self,
        model: EnergyModel,
        loss: LossSection,
        *,
        mode: CompileMode,
        total_steps: int,
        refusal: str | None = None,
        is_first_here: bool = True,
    ) -> None:
        """`is_first_here`: of the processes on this machine only one has another one compile; all take it from the cache."""
        self.model, self.loss = model, loss
        self.eager = EagerStep(model, loss)
        self.compiled: CompiledStep | None = None
        self.tell: Tell = lambda message: None  # noqa: ARG005
        wanted = mode is True or (mode == "auto" and total_steps >= WORTH_STEPS)
        self.switch_step = EAGER_STEPS if mode == "auto" else 0
        self._refusal = refusal if mode is True else None
        self._pending = wanted and refusal is None
        self._is_first_here = is_first_here
        self._helper: CompilingProcess | None = None

    def step(self, number: int, batch: Batch, scales: Tensor) -> EagerStep | CompiledStep:
        """The function for the step of this number, counted from 0."""
        if self.compiled is not None and self.compiled.failure is None:
            return self.compiled
        if self.compiled is not None:
            self.tell(f"not compiled any more, eager steps go on: {self.compiled.failure}")
            self.compiled = None
        if self._refusal:
            self.tell(f"not compiled: {self._refusal}")
            self._refusal = None
        if self._pending and fits_compilation(batch, self.model.reach):
            if number >= self.switch_step:
                self._compile(batch, scales)
            elif self._helper is None and self._is_first_here:
                self._start_helper(batch, scales)
        return self.compiled or self.eager

    @property
    def current(self) -> EagerStep | CompiledStep:
        """The function of the steps of now."""
        return self.compiled or self.eager

    @property
    def is_compiling(self) -> bool:
        """Whether the other process is still at work."""
        return self._helper is not None and self._helper.is_running

    def is_awaited(self, number: int) -> bool:
        """Whether the step of this number has to wait for the other process, which is not ready yet."""
        return self._pending and number >= self.switch_step and self.is_compiling

    def _start_helper(self, batch: Batch, scales: Tensor) -> None:
        self._helper = CompilingProcess(self.model, self.loss, batch, scales)
        self.tell(f"compiling beside the training; compiled steps from step {self.switch_step} on")

    def _compile(self, batch: Batch, scales: Tensor) -> None:
        self._pending, start = False, time.perf_counter()
        reason = self._helper.wait() if self._helper else None
        self._helper = None
        if reason is None:
            compiled, reason = try_to_compile(self.model, self.loss, batch, scales)
            if compiled is not None:
                self.compiled = compiled
                self.tell(f"compiled steps from here on (agree with eager; {time.perf_counter() - start:.0f} s)")
                return
        self.tell(f"not compiled, eager steps go on: {reason}")
