"""A traced graph as a compiled program: Inductor's, with the sizes for which it holds; it can be kept in a file.

`torch.compile` would trace the graph a second time in each process that uses it, which takes some seconds and 100 MB. A
program is made once, by whichever process, and another reads it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor
from torch._inductor.standalone_compile import CompiledArtifact
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

PROGRAM, CONSTANTS, SIZES = "program.bin", "constants.pt", "sizes.txt"

# On CPUs all kernels go into one C++ file and the calls of them into another, instead of a file and a compiler for each kernel:
# most of a compiler's second goes into torch's headers. The calls need no optimization, and two files no precompiled header.
ON_CPU: dict[str, object] = {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "cpp_cache_precompile_headers": False,
}

Function = Callable[..., Sequence[Tensor]]


class CompiledProgram:
    """A function of tensors, for some of their sizes."""

    def __init__(self, function: Function, sizes: str | None, constants: Sequence[Tensor] = ()) -> None:
        """`sizes`: a condition in the words of torch's `ShapeEnv`, None holds for all; `constants`: further arguments."""
        self._function, self.sizes, self.constants = function, sizes or "True", tuple(constants)
        self._environment = ShapeEnv()
        self._condition = cast(str, compile(self.sizes, SIZES, "eval"))  # parsed once, not at each call

    def holds_for(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it was compiled for tensors of these sizes."""
        return self._environment.evaluate_guards_expression(self._condition, tensors)

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, without a graph of their derivatives."""
        with torch.no_grad():
            return self._function(*tensors, *self.constants)

    def save(self, folder: Path) -> None:
        """Write it for another process on this machine."""
        self._function.save(path=str(folder / PROGRAM), format="binary")  # type: ignore[attr-defined]
        torch.save(list(self.constants), folder / CONSTANTS)
        (folder / SIZES).write_text(self.sizes, encoding="utf-8")


def compiled_program(graph: GraphModule, stand_ins: Sequence[Tensor]) -> CompiledProgram:
    """Compile a graph that was traced with these tensors without data; their symbols stay sizes that vary."""
    mode = stand_ins[0].fake_mode  # type: ignore[attr-defined]
    constants = _constants_as_inputs(graph)
    inputs = [*stand_ins, *(mode.from_tensor(constant, static_shapes=True) for constant in constants)]
    for place, tensor in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
        place.meta["val"] = tensor
    with _settings_for(stand_ins[0].device), tracing(TracingContext(mode)), torch.no_grad():
        function = torch._inductor.standalone_compile(graph, inputs, dynamic_shapes="from_tracing_context")
    return CompiledProgram(cast(Function, function), mode.shape_env.produce_guards_expression(inputs), constants)


def read_program(folder: Path, device: torch.device) -> CompiledProgram:
    """The program that another process on this machine has written, for tensors on this device."""
    with _settings_for(device):  # from which the names of compiled files derive
        function = CompiledArtifact.load(path=str(folder / PROGRAM), format="binary")
    constants = torch.load(folder / CONSTANTS, weights_only=True)
    return CompiledProgram(cast(Function, function), (folder / SIZES).read_text(encoding="utf-8"), constants)


def _settings_for(device: torch.device) -> AbstractContextManager[None]:
    return inductor.patch(ON_CPU) if device.type == "cpu" else nullcontext()


def _constants_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Tensors that tracing has found in no argument: from now on the last arguments, as a program in a file has none."""
    places: dict[str, Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            if node.target not in places:
                with graph.graph.inserting_after(last):
                    last = places[node.target] = graph.graph.placeholder(f"constant_{len(places)}")
            node.replace_all_uses_with(places[node.target])
            graph.graph.erase_node(node)
    constants = [getattr(graph, name) for name in places]
    for name in [name for name, _ in graph.named_buffers()]:  # also what no node uses would become an argument
        delattr(graph, name)
    graph.recompile()
    return constants
