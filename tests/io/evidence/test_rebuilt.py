"""A program around another graph takes the same inputs, whatever they are called."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from opdf_compile.io.evidence.rebuilt import rebuilt
from opdf_compile.io.export.constants import without_constants


class Named(nn.Module):
    """An input that is called as one of Python's builtins, and an output that is no tensor."""

    def forward(self, input: Tensor) -> tuple[Tensor, int]:
        return input * 2, 3


def test_a_copy_of_the_graph_keeps_the_inputs_names() -> None:
    x = torch.randn(2, 3)
    program = torch.export.export(Named(), (x,), strict=False)
    module = copy.deepcopy(program.graph_module)
    for made in (rebuilt(program, module, module.graph), without_constants(program)):
        assert [n.name for n in made.graph.nodes if n.op == "placeholder"] == ["input"]
        assert torch.equal(made.module()(x)[0], x * 2)
    assert program.module()(x)[1] == 3
