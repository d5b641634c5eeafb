"""What a function with its own derivatives may leave out."""

from typing import Any

import torch


def is_wanted(ctx: Any, place: int) -> bool:
    """In a backward: whether this pass asks for the gradient by that input; only tensors count, from 0.

    `ctx.needs_input_grad` says whether an input has a gradient at all. A pass by some inputs only, as that of a training step
    by its weights or that for forces by the edge vectors, leaves most branches out, and only autograd's engine knows which.
    """
    node = ctx.next_functions[place][0]
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf, of which the engine does not tell
        return True
