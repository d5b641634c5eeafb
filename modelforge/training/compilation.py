"""When a run's step is compiled: in the background while the first steps run eagerly, checked, and dropped if it differs.

Which step runs compiled is fixed by its number, not by how long the compiler takes, so a run gives the same bits again.
"""

import copy
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.eager_step import EagerStep
from modelforge.training.loss import LossSection
from modelforge.training.step import TOLERANCE, CompiledStep, fits_compilation, in_a_line, largest_difference

CompileMode = Literal["auto"] | bool
EAGER_STEPS = 500  # with "auto" the steps that run eagerly while another process compiles
WORTH_STEPS = 5_000  # with "auto" the length of a run from which compiling (half a minute) pays
Tell = Callable[[str], None]


class StepCompiler:
    """Gives the step function of each step: eager at first, compiled from a fixed step on."""

    def __init__(
        self, model: EnergyModel, loss: LossSection, *, mode: CompileMode, total_steps: int, refusal: str | None = None
    ) -> None:
        self.model, self.loss = model, loss
        self.eager = EagerStep(model, loss)
        self.compiled: CompiledStep | None = None
        self.tell: Tell = lambda message: None  # noqa: ARG005
        wanted = mode is True or (mode == "auto" and total_steps >= WORTH_STEPS)
        self._switch_step = EAGER_STEPS if mode == "auto" else 0
        self._refusal = refusal if mode is True else None
        self._pending = wanted and refusal is None
        self._helper: tuple[BaseProcess, Connection] | None = None

    def step(self, number: int, batch: Batch, weights: Tensor) -> EagerStep | CompiledStep:
        """The function for the step of this number, counted from 0."""
        if self.compiled is not None and self.compiled.failure is None:
            return self.compiled
        if self.compiled is not None:
            self.tell(f"not compiled any more, eager steps go on: {self.compiled.failure}")
            self.compiled = None
        if self._refusal:
            self.tell(f"not compiled: {self._refusal}")
            self._refusal = None
        if self._pending and fits_compilation(batch):
            if number >= self._switch_step:
                self._compile(batch, weights)
            elif self._helper is None:
                self._start_helper(batch, weights)
        return self.compiled or self.eager

    def _start_helper(self, batch: Batch, weights: Tensor) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        cpu = torch.device("cpu")
        device = batch.indices.device
        model = copy.deepcopy(self.model).to(cpu)  # a snapshot: training goes on meanwhile
        job = (model, self.loss, batch.to(cpu), weights.to(cpu), str(device), torch.get_num_threads())
        process = context.Process(target=_fill_cache, args=(theirs, *job), daemon=True)
        process.start()
        theirs.close()
        self._helper = (process, ours)
        self.tell(f"compiling beside the training; compiled steps from step {self._switch_step} on")

    def _compile(self, batch: Batch, weights: Tensor) -> None:
        self._pending = False
        reason = self._wait_for_helper()
        start = time.perf_counter()
        if reason is None:
            compiled, reason = _try_to_compile(self.model, self.loss, batch, weights)
            if compiled is not None:
                self.compiled = compiled
                self.tell(f"compiled steps from here on (agree with eager; {time.perf_counter() - start:.0f} s)")
                return
        self.tell(f"not compiled, eager steps go on: {reason}")

    def _wait_for_helper(self) -> str | None:
        """Wait for the other process; None if all is well, else what it says."""
        if self._helper is None:
            return None
        process, connection = self._helper
        self._helper = None
        try:
            return connection.recv() or None
        except EOFError:
            return f"the compiling process ended early (exit code {process.exitcode})"
        finally:
            process.join()


def _try_to_compile(
    model: EnergyModel, loss: LossSection, batch: Batch, weights: Tensor
) -> tuple[CompiledStep | None, str | None]:
    """The compiled step if it agrees with the eager one on this batch, or the reason why there is none."""
    try:
        compiled = CompiledStep(model, loss, batch, weights)
        difference = largest_difference(compiled, batch, weights)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises, eager steps go on and say why
        return None, in_a_line(error)
    if compiled.failure is not None:
        return None, compiled.failure
    if not difference <= TOLERANCE[weights.dtype]:
        return None, f"the compiled step differs from the eager one by {difference:.1e} (relative)"
    return compiled, None


def _fill_cache(
    connection: Connection,
    model: EnergyModel,
    loss: LossSection,
    batch: Batch,
    weights: Tensor,
    device: str,
    num_threads: int,
) -> None:
    """Compile once, so that the training process finds the kernels in Inductor's cache."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the training process, which ends this one
    os.nice(5)
    torch.set_num_threads(num_threads)
    place = torch.device(device)
    _, reason = _try_to_compile(model.to(place), loss, batch.to(place), weights.to(place))
    connection.send(reason or "")
