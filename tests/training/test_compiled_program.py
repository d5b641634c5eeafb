"""A compiled program by itself: sizes, constants, and what another process reads."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.cpp_builder import CppBuilder
from torch._inductor.utils import clear_caches
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from modelforge.training.compiled_program import CompiledProgram, compiled_program, read_program

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # what Inductor imports

CPU = torch.device("cpu")
WEIGHTS, UNUSED = torch.tensor([1.0, 2.0, 3.0]), torch.ones(2)


def weighted(rows: Tensor) -> list[Tensor]:
    UNUSED.sum()  # leaves a constant that no result needs
    return [(rows * WEIGHTS).sum(dim=1), rows + WEIGHTS]


def rows_of(num: int) -> Tensor:
    return torch.arange(3.0 * num).view(num, 3).sin()


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    """Compiled for any number of rows."""
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    stand_ins = [mode.from_tensor(rows_of(7), symbolic_context=sizes)]
    graph = make_fx(weighted, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*stand_ins)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return compiled_program(graph, stand_ins)


def agrees(program: CompiledProgram, rows: Tensor) -> bool:
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(program([rows]), weighted(rows), strict=True))
    return all(torch.allclose(got, want, rtol=1e-6, atol=0) for got, want in pairs)


def test_a_program_knows_its_constants_and_holds_for_other_sizes(program: CompiledProgram) -> None:
    assert [constant.tolist() for constant in program.constants] == [WEIGHTS.tolist()]
    for num in (7, 2, 50):
        assert program.holds_for([rows_of(num)])
        assert agrees(program, rows_of(num))
    assert not program.holds_for([rows_of(1)])


def test_a_program_that_is_read_is_the_same(program: CompiledProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process, which has nothing of it in memory: what is compiled already is found by its name."""

    def built(builder: CppBuilder) -> None:
        raise AssertionError(f"compiled again: {builder.get_target_file_path()}")

    program.save(tmp_path)
    clear_caches()
    monkeypatch.setattr(CppBuilder, "build", built)
    again = read_program(tmp_path, CPU)
    assert again.sizes == program.sizes
    assert not again.holds_for([rows_of(1)])
    assert agrees(again, rows_of(11))
    assert not again([rows_of(3).requires_grad_()])[0].requires_grad


def test_a_condition_of_none_holds_for_all() -> None:
    assert CompiledProgram(weighted, None).holds_for([])
