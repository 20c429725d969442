"""Random cases: a module as code, how it is called, and how its plan is made.

``str(case)`` is code to paste: it makes the model and its example inputs again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fuzz_builder import BATCH, NAMES, Builder
from fuzz_plans import PlanRecipe, plan_recipes
from fuzz_steps import SIZES, STEPS
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Name -> (parameters of forward, example inputs, first line of forward).
SIGNATURES = {
    "positional": ("x, ids", "({x}, {ids})", ""),
    "keyword": ("x, ids=None", "({x},), {{'ids': {ids}}}", ""),
    "dict": ("batch", "({{'x': {x}, 'ids': {ids}}},)", 'x, ids = batch["x"], batch["ids"]'),
    "list": ("inputs", "([{x}, {ids}],)", "x, ids = inputs"),
}
RETURNS = ("{0}", "{0}, {1}", '{{"first": {0}, "second": {1}}}', "[{0}, [{1}]]")

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import opdf_compile as opdf

"""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        code: Python code of a class ``Model``.
        dtype: Of parameters and inputs.
        call: Text of the example inputs: ``args`` or ``args, kwargs``.
        training: Whether the model is given in training mode.
        fixed: Whether it is traced with every axis fixed.
        plan: How the plan is made.
    """

    code: str
    dtype: str
    call: str
    training: bool
    fixed: bool
    plan: PlanRecipe

    def model(self) -> nn.Module:
        """The module, with the same weights every time."""
        scope: dict[str, Any] = dict(NAMES)
        exec(self.code, scope)
        torch.manual_seed(0)
        made: nn.Module = scope["Model"]().to(getattr(torch, self.dtype))
        return made if self.training else made.eval()

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example inputs as (args, kwargs)."""
        torch.manual_seed(1)
        given = eval(self.call, dict(NAMES))
        if len(given) == 2 and isinstance(given[0], tuple):
            return given[0], given[1]
        return given, {}

    def __str__(self) -> str:
        evaluation = "" if self.training else ".eval()"
        dynamic = ", dynamic=False" if self.fixed else ""
        return "".join(
            [
                HEAD,
                self.code,
                "\n\ntorch.manual_seed(0)",
                f"\nmodel = Model().to(torch.{self.dtype}){evaluation}",
                f"\ntorch.manual_seed(1)\nargs, kwargs = {self._pair()}",
                f"\ntraced = opdf.trace(model, args, kwargs{dynamic})",
                f"\n# {self.plan}",
            ]
        )

    __repr__ = __str__

    def _pair(self) -> str:
        return self.call if "), {'ids'" in self.call else f"{self.call}, {{}}"


@st.composite
def cases(draw: Any) -> Case:
    """Modules of one to eight steps, with a plan each."""
    dtype = draw(st.sampled_from(DTYPES))
    b = Builder(draw)
    width, axes = b.pick(*SIZES), b.pick((), (3,), (4, 3), (3, 2, 2))
    shape = (BATCH, *axes, width) if b.chance() else (BATCH, width, *axes)
    b.reads("x", torch.randn(shape))
    b.reads("ids", torch.randint(0, 9, (BATCH, 2)))
    if b.chance():
        embedding(b)
    for _ in range(draw(st.integers(1, 8))):
        b.attempt(draw(st.sampled_from(STEPS)))
    signature = b.pick(*SIGNATURES)
    names = SIGNATURES[signature]
    x = f"torch.randn({', '.join(map(str, shape))}, dtype=torch.{dtype})"
    case = Case(
        _code(b, names[0], names[2]),
        dtype,
        names[1].format(x=x, ids=f"torch.randint(0, 9, ({BATCH}, 2))"),
        not b.chance(),
        b.chance(),
        draw(plan_recipes),
    )
    assume(runs(case))
    return case


def runs(case: Case) -> bool:
    """Whether torch itself can run the model in its dtype, in both phases."""
    args, kwargs = case.inputs()
    try:
        for training in (True, False):
            case.model().train(training)(*args, **kwargs)
    except (RuntimeError, ValueError, NotImplementedError):  # No kernel for half precision, say.
        return False
    return True


def embedding(b: Builder) -> None:
    """A table, and half of the time a head that is tied to it."""
    width = b.pick(*SIZES)
    table = b.module(f"nn.Embedding(9, {width})", "table")
    found = b.give(f"self.{table}(ids)")
    if b.chance():
        head = b.module(f"nn.Linear({width}, 9, bias=False)", "head")
        b.line_of_init(f"self.{head}.weight = self.{table}.weight")
        b.give(f"self.{head}(torch.tanh({found}))")


def _code(b: Builder, parameters: str, unpack: str) -> str:
    last, other = list(b.values)[-1], b.pick(*list(b.values)[::-1])
    body = [unpack, *b.forward, f"return {b.pick(*RETURNS).format(last, other)}"]
    lines = ["class Model(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in b.init]
    lines += ["", f"    def forward(self, {parameters}):"]
    lines += [f"        {line}" for line in body if line]
    return "\n".join(lines)
