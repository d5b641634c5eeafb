"""When a run's step is compiled: in the background while the first steps run eagerly, checked, and dropped if it differs.

Which step runs compiled is fixed by its number, not by how long the compiler takes, so a run gives the same bits again.
"""

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.compiling_process import CompilingProcess
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection
from modelforge.training.step import CompiledStep, disagreement, fits_compilation, in_a_line, program_of

CompileMode = Literal["auto"] | bool
EAGER_STEPS = 1000  # with "auto" the steps that run eagerly while another process compiles, which takes most of a minute
WORTH_STEPS = 10_000  # with "auto" the length of a run from which compiling pays: a minute for some milliseconds a step
MOST_PROGRAMS = 4  # of one run, each for other sizes of batches; the rest runs eagerly
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
        beside: bool = True,
    ) -> None:
        """`beside`: another process compiles. Of a run's processes on a machine one has one; the others use its kernels."""
        self.model, self.loss = model, loss
        self.eager = EagerStep(model, loss)
        self.compiled: CompiledStep | None = None
        self.tell: Tell = lambda message: None  # noqa: ARG005
        wanted = mode is True or (mode == "auto" and total_steps >= WORTH_STEPS)
        self.switch_step = EAGER_STEPS if mode == "auto" else 0
        self._refusal = refusal if mode is True else None
        self._pending = wanted and refusal is None
        self._beside = beside
        self._helper: CompilingProcess | None = None
        self._num_threads: int | None = None  # of this process, less one while another process compiles

    def step(self, number: int, batch: Batch, scales: Tensor) -> EagerStep | CompiledStep:
        """The function for the step of this number, counted from 0."""
        if self.compiled is not None and self.compiled.failure is not None:
            self.tell(f"not compiled any more, eager steps go on: {self.compiled.failure}")
            self.compiled = None
        if self._refusal:
            self.tell(f"not compiled: {self._refusal}")
            self._refusal = None
        if (self._pending or self.compiled is not None) and fits_compilation(batch, self.model.reach):
            if self.compiled is not None:
                self._compile_for_other_sizes(self.compiled, batch, scales)
            elif number >= self.switch_step:
                self._compile(batch, scales)
            elif self._helper is None and self._beside:
                self.tell(f"compiling beside the training; compiled steps from step {self.switch_step} on")
                self._helper = CompilingProcess(self.model, self.loss, batch, scales)
                self._leave_a_core_to_it(scales.device)
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

    def _leave_a_core_to_it(self, device: torch.device) -> None:
        """The threads of a step wait for each other at each kernel: one without a core of its own slows all down 30 times."""
        if device.type == "cpu":
            self._num_threads = torch.get_num_threads()
            torch.set_num_threads(max(1, self._num_threads - 1))

    def _compile(self, batch: Batch, scales: Tensor) -> None:
        self._pending, start = False, time.perf_counter()
        if self._num_threads:
            torch.set_num_threads(self._num_threads)
        if self._helper is None and self._beside:
            self.tell("compiling the training step; the run waits for it")
            self._helper = CompilingProcess(self.model, self.loss, batch, scales)
        helper, self._helper = self._helper, None
        compiled = CompiledStep(self.model, self.loss)
        reason = self._add_program(compiled, helper, batch, scales)
        if reason is None:
            self.compiled = compiled
            self.tell(f"compiled steps from here on (agree with eager; {time.perf_counter() - start:.0f} s)")
        else:
            self.tell(f"not compiled, eager steps go on: {reason}")

    def _compile_for_other_sizes(self, compiled: CompiledStep, batch: Batch, scales: Tensor) -> None:
        """Here and at once, if there is no program for a batch yet: so the same run gives the same bits again."""
        if len(compiled.programs) == MOST_PROGRAMS or compiled.program_for(batch, scales) is not None:
            return
        graph = batch.graph
        self.tell(f"compiling again for batches as large as this one: {graph.num_atoms} atoms, {graph.num_edges} edges")
        compiled.failure = self._add_program(compiled, None, batch, scales)

    def _add_program(self, compiled: CompiledStep, helper: CompilingProcess | None, batch: Batch, scales: Tensor) -> str | None:
        """The program of the other process, or one that is compiled here; the reason if it is not to be used."""
        try:
            program = helper.wait() if helper else program_of(self.model, self.loss, batch, scales)
            if isinstance(program, str):
                return program
            compiled.programs.append(program)
            return disagreement(compiled, batch, scales)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises, eager steps go on and say why
            return in_a_line(error)
