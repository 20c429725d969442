"""batch: parts of one form, composed together.

    T_k^(b) -> W^(b),  b = 1..B      ->      stack_b(T_k) -> stack_b(W)        one batched product

Two parts have one form if they take cores of the same shapes and dtypes and do the same ops. The
ops of the batch come from `torch.vmap`, so that any parametrization that vmap can take is batched.
Whether it pays is the caller's decision (see `training.hoisted.batching`): a batched product saves
launches and optimizer calls, and costs a copy of each weight and gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from opdf_compile.errors import PlanError, first_line
from opdf_compile.passes.hoist import ProgramPart

# The cores by name; only their shapes, dtypes and devices are looked at.
_CoresByName = Mapping[str, Tensor]


def form(part: ProgramPart, cores: _CoresByName) -> Hashable:
    """What parts have in common that can be batched; a part of several weights has none."""
    if len(part.keys) != 1:
        return part.keys
    found = [cores[name] for name in part.cores]
    return tuple((tuple(c.shape), c.dtype, c.device) for c in found), _ops(part.graph)


def group(
    parts: Sequence[ProgramPart], cores: _CoresByName, separate: Callable[[ProgramPart], Hashable]
) -> list[tuple[ProgramPart, ...]]:
    """Parts of one form together, in the order of their first members.

    Parts for which `separate` differs (two param groups, say) are never put together.
    """
    found: dict[Hashable, list[ProgramPart]] = {}
    for part in parts:
        found.setdefault((form(part, cores), separate(part)), []).append(part)
    return [tuple(members) for members in found.values()]


def batched(part: ProgramPart, size: int, cores: _CoresByName) -> Graph:
    """The graph of `size` parts of one form: stacked cores in, a tuple with the stacked weight out.

    Raises:
        PlanError: Its compose holds an op that torch.vmap cannot take.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    single = GraphModule(nn.Module(), part.graph)

    def compose(*cores: Tensor) -> Any:
        return torch.vmap(single)(*cores)

    found = [cores[name] for name in part.cores]
    # The caller's autocast would put casts to half precision into a graph that is kept.
    with torch.autocast(found[0].device.type, enabled=False), FakeTensorMode():
        stacked = [torch.empty((size, *c.shape), dtype=c.dtype, device=c.device) for c in found]
        try:
            traced: GraphModule = make_fx(compose)(*stacked)
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise PlanError(
                f"the weight {part.keys[0]!r} cannot be composed in a batch ({reason}), wanted ops "
                "that torch.vmap takes; give batched=False"
            ) from error
    traced.graph.eliminate_dead_code()
    return traced.graph


def _ops(graph: Graph) -> str:
    """The ops as text, with nodes numbered in order: names do not tell graphs apart."""
    numbers = {node: index for index, node in enumerate(graph.nodes)}

    def text(value: object) -> str:
        if isinstance(value, Node):
            return f"%{numbers[value]}"
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(text, value))}]"
        return repr(value)

    return "\n".join(
        f"{text(node.target) if node.op == 'call_function' else node.op}"
        f"({text(node.args)}, {sorted((k, text(v)) for k, v in node.kwargs.items())})"
        for node in graph.nodes
    )
