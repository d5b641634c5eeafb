"""The training step of `eager_step.py`, compiled.

It is one graph of energy, forces, loss and weight gradients: the derivative by the edge vectors is written out by tracing with
`make_fx`, then Inductor fuses the whole (`compiled_program.py`). Legend: S structures, N atoms, E edges, T loss terms.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, SymbolicContext

from modelforge.atoms.graph import AtomicGraph, Batch, Labels, Prediction, Reach, tensors_of
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.compiled_program import CompiledProgram, compiled_program
from modelforge.training.eager_step import EagerStep, StepResult
from modelforge.training.loss import LossSection

NUM_GRAPH_TENSORS = len(fields(AtomicGraph))
NUM_PREDICTED = len(fields(Prediction))
AXIS_THAT_VARIES = [1 if field.name in ("edge_index", "triples", "far_edge_index") else 0 for field in fields(AtomicGraph)]
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}  # compiled against eager, relative to the largest value


class CompiledStep:
    """The same step as compiled programs; batches with a size of 0 or 1, which these cannot take, run eagerly."""

    def __init__(self, model: EnergyModel, loss: LossSection, *programs: CompiledProgram) -> None:
        self.eager = EagerStep(model, loss)
        self.model = model
        self.failure: str | None = None  # what a program said if it failed
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self.programs = [*programs]
        self._states = list(_state_of(model).values())

    def program_for(self, batch: Batch, scales: Tensor) -> CompiledProgram | None:
        """The first that was compiled for a batch of these sizes."""
        if not fits_compilation(batch, self.model.reach):
            return None
        tensors = self._tensors(batch, scales)
        return next((program for program in self.programs if program.holds_for(tensors)), None)

    def __call__(self, batch: Batch, scales: Tensor) -> StepResult:
        """Loss and prediction of a batch for the scales of an eager step."""
        program = None if self.failure else self.program_for(batch, scales)
        if program is None:
            return self.eager(batch, scales)
        try:
            loss, sums, *rest = program(self._tensors(batch, scales))
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises, the eager step gives the result
            self.failure = in_a_line(error)
            return self.eager(batch, scales)
        prediction, gradients = rest[:NUM_PREDICTED], rest[NUM_PREDICTED:]
        differentiable = _WithGradients.apply(loss, len(gradients), *gradients, *self.parameters)  # type: ignore[no-untyped-call]
        return StepResult(differentiable, sums, Prediction(*prediction))

    def _tensors(self, batch: Batch, scales: Tensor) -> list[Tensor]:
        return [*self._states, scales, *_inputs(batch)]


def program_of(model: EnergyModel, loss: LossSection, sample: Batch, scales: Tensor) -> CompiledProgram:
    """Compile the step; the sizes of the sample do not enter, but where the compiler has to choose it chooses for them."""
    states = _state_of(model)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    stand_ins = _stand_ins([*states.values(), scales, *_inputs(sample)], len(states) + 1)
    return compiled_program(_traced(EagerStep(model, loss), len(parameters), stand_ins), stand_ins)


def in_a_line(error: Exception) -> str:
    """The kind of an error and the beginning of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def fits_compilation(batch: Batch, reach: Reach) -> bool:
    """Whether no size that varies is 0 or 1: the compiler treats these as constants."""
    graph = batch.graph
    sizes = [graph.num_atoms, graph.num_edges, graph.num_structures]
    sizes += [graph.triples.shape[1]] if reach.triples_cutoff else []
    sizes += [graph.far.num_edges] if reach.far_cutoff else []
    return min(sizes) > 1


def largest_difference(compiled: CompiledStep, batch: Batch, scales: Tensor) -> float:
    """Compiled against eager on a batch: loss, forces and weight gradients, relative to the largest value of each."""
    results = []
    for step in (compiled, compiled.eager):
        result = step(batch, scales)
        gradients = torch.autograd.grad(result.loss, compiled.parameters, allow_unused=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        results.append((result.loss.detach(), result.prediction.energy, result.prediction.forces.nan_to_num(), flat))
    pairs = list(zip(*results, strict=True))
    # The maximum of tensors is NaN where one of them is; that of numbers would pass over it.
    return float(torch.stack([(got - want).abs().max() / want.abs().max().clamp(min=1e-20) for got, want in pairs]).max())


def disagreement(compiled: CompiledStep, batch: Batch, scales: Tensor) -> str | None:
    """Why a compiled step is not to be used, seen on this batch; None if it agrees with the eager one."""
    difference = largest_difference(compiled, batch, scales)
    if compiled.failure is not None:
        return compiled.failure
    if not difference <= TOLERANCE[scales.dtype]:
        return f"the compiled step differs from the eager one by {difference:.1e} (relative)"
    return None


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already: lets Lightning, DDP and accumulation work as with any loss."""

    @staticmethod
    def forward(ctx: FunctionCtx, loss: Tensor, num_gradients: int, *tensors: Tensor) -> Tensor:
        ctx.gradients = tensors[:num_gradients]  # type: ignore[attr-defined]
        return loss.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Any, ...]:
        gradients = ctx.gradients  # type: ignore[attr-defined]
        return (None, None, *(None for _ in gradients), *torch._foreach_mul(gradients, upstream[0]))


def _axis_that_varies(place: int) -> int | None:
    """The axis of an input of a batch along which its size varies; what is empty is so in all batches."""
    return None if place < 0 else AXIS_THAT_VARIES[place] if place < NUM_GRAPH_TENSORS else 0


def _state_of(model: EnergyModel) -> dict[str, Tensor]:
    """Weights that are trained, then those that are not, then buffers."""
    weights = sorted(model.named_parameters(), key=lambda named: not named[1].requires_grad)  # keeps their order else
    return {name: tensor.detach() for name, tensor in [*weights, *model.named_buffers()]}


def _inputs(batch: Batch) -> list[Tensor]:
    return [*tensors_of(batch.graph), *tensors_of(batch.labels), batch.weight]


def _traced(eager: EagerStep, num_parameters: int, stand_ins: Sequence[Tensor]) -> GraphModule:
    """The step as a graph of elementary operations.

    `silu_backward` is written out, as the fused one has no derivative, and `detach` is removed, as it would cut the second
    derivative (the recipe of NequIP and DeePMD-kit).
    """
    model = eager.model
    names = list(_state_of(model))

    def step(*arguments: Tensor) -> list[Tensor]:
        state, (scales, *inputs) = arguments[: len(names)], arguments[len(names) :]
        parameters = [tensor.detach().requires_grad_() for tensor in state[:num_parameters]]
        graph, labels = AtomicGraph(*inputs[:NUM_GRAPH_TENSORS]), Labels(*inputs[NUM_GRAPH_TENSORS:-1])
        named = dict(zip(names, [*parameters, *state[num_parameters:]], strict=True))
        substituted = EagerStep(cast(EnergyModel, _Substituted(model, named)), eager.loss)
        result = substituted(Batch(graph, labels, graph.first_atom, graph.first_atom, inputs[-1], inputs[-1]), scales)
        gradients = torch.autograd.grad(result.loss, parameters, allow_unused=True, materialize_grads=True)
        return [result.loss.detach(), result.sums, *tensors_of(result.prediction), *gradients]

    traced = make_fx(
        step,
        tracing_mode="symbolic",
        decomposition_table={torch.ops.aten.silu_backward.default: _silu_backward},
        _allow_non_fake_inputs=True,
    )(*stand_ins)
    for node in list(traced.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _Substituted(nn.Module):
    """A model that runs with other tensors in the place of its weights and buffers."""

    def __init__(self, model: EnergyModel, named: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.named = model, {f"model.{name}": tensor for name, tensor in named.items()}
        self.has_charges, self.has_penalty = model.has_charges, model.has_penalty

    def forward(self, graph: AtomicGraph, *, forces: bool, stress: bool) -> tuple[Prediction, Tensor]:
        """With the weights and buffers that the model has now."""
        return self.model.with_penalties(graph, forces=forces, stress=stress)

    def with_penalties(self, graph: AtomicGraph, *, forces: bool, stress: bool) -> tuple[Prediction, Tensor]:
        """As the model gives it with the others."""
        options = {"forces": forces, "stress": stress}
        return cast(tuple[Prediction, Tensor], torch.func.functional_call(self, self.named, (graph,), options))


def _stand_ins(tensors: Sequence[Tensor], num_fixed: int) -> list[Tensor]:
    """Tensors without data; the first `num_fixed` keep their sizes.

    Those of the batch are symbols that are not taken for equal because they happen to be.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    stand_ins: list[Tensor] = []
    for place, tensor in enumerate(tensors):
        axis = _axis_that_varies(place - num_fixed)
        sizes = [DimDynamic.DYNAMIC if dim == axis and tensor.shape[dim] else DimDynamic.STATIC for dim in range(tensor.ndim)]
        context: SymbolicContext = StatelessSymbolicContext(dynamic_sizes=sizes)
        stand_ins.append(mode.from_tensor(tensor, symbolic_context=context))
    return stand_ins


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return gradient * sigmoid * (1 + x * (1 - sigmoid))
