"""Steps that are traced like any, and then run as they are: without Inductor, which would take much longer."""

from collections.abc import Sequence

import pytest
from torch import Tensor
from torch.fx import GraphModule

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training import step as step_module
from modelforge.training.compiled_program import CompiledProgram
from modelforge.training.loss import LossSection
from modelforge.training.step import CompiledStep, program_of


def as_traced(graph: GraphModule, stand_ins: Sequence[Tensor]) -> CompiledProgram:
    """In the place of `compiled_program`."""
    shapes = stand_ins[0].fake_mode.shape_env  # type: ignore[attr-defined]
    return CompiledProgram(graph, shapes.produce_guards_expression(stand_ins))


def traced_step(model: EnergyModel, loss: LossSection, sample: Batch, scales: Tensor) -> CompiledStep:
    """A compiled step without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "compiled_program", as_traced)
        return CompiledStep(model, loss, program_of(model, loss, sample, scales))


class TracingInThisProcess:
    """In the place of `CompilingProcess`."""

    is_running = False

    def __init__(self, model: EnergyModel, loss: LossSection, sample: Batch, scales: Tensor) -> None:
        self.step = traced_step(model, loss, sample, scales)

    def wait(self) -> CompiledProgram:
        return self.step.programs[0]
