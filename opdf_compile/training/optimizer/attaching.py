"""attach: methods without cores in a loop over a bare weight program.

inner.step()   =   take  ->  the step  ->  give back, finish         by hooks of the optimizer
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.direct import DirectStep
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.optimizer.arguments import needs_closure
from opdf_compile.training.optimizer.groups import options_of
from opdf_compile.training.optimizer.step_facts import facts_of


def attach(program: WeightProgram, optimizer: Optimizer) -> Callable[[], None]:
    """Let an optimizer step the weights whose methods hold no cores as these want it.

    For loops over `opdf.hoist`; `Overparam` does it by itself. Gradients must be there when
    `optimizer.step()` is called: a closure is refused. Weight decay is the optimizer's own affair
    here, and what it does to a weight is a part of its move. Several optimizers may share the
    weights, each attached once; a copy of a program is attached to none.

    Args:
        program: Of a plan with hyperball, ham or repopt; of any other there is nothing to do.
        optimizer: Built over `program.parameters()`.

    Returns:
        What takes the hooks off again.

    Raises:
        InputError: A method of the plan cannot work with the optimizer, which holds none of the
            weights, needs a closure, or is attached already.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> student = torch.nn.Linear(16, 16)
        >>> program = opdf.hoist(student, opdf.plan(student, parametrization="ham"))
        >>> inner = torch.optim.SGD(program.parameters(), lr=0.1)
        >>> detach = opdf.attach(program, inner)
        >>> student(torch.randn(2, 16)).sum().backward()
        >>> inner.step(); program.refresh()
    """
    if not isinstance(program, WeightProgram) or not isinstance(optimizer, Optimizer):
        raise InputError(
            f"attach got a {type(program).__name__} and a {type(optimizer).__name__}, wanted the "
            "WeightProgram that opdf.hoist gave and the optimizer over its parameters"
        )
    if not program.direct:
        return lambda: None
    _require_fit(program, optimizer)
    groups = [options_of(group) for group in optimizer.param_groups]
    facts = facts_of(program.plan, type(optimizer), {}, groups)
    under_way: list[DirectStep] = []

    def before(inner: Optimizer, args: Any, options: Any) -> None:
        under_way.clear()  # Of a step that failed.
        # The first argument is the optimizer, the other may be a closure.
        if any(a is not None for a in (*args[1:], *options.values())):
            raise InputError(_no_closure(inner))
        step = DirectStep(program.direct, inner, facts.scaling)
        step.require_own()
        step.take()
        under_way.append(step)

    def after(_inner: Optimizer, _args: Any, _options: Any) -> None:
        for step in under_way:
            step.give_back()
            step.finish()
        under_way.clear()

    hooks = (optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))
    program.hooks.append(before)

    def detach() -> None:
        if before in program.hooks:
            program.hooks.remove(before)
        for hook in hooks:
            hook.remove()

    return detach


def _require_fit(program: WeightProgram, optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    own = optimizer._optimizer_step_pre_hooks.values()
    if program.of_overparam or any(hook in program.hooks for hook in own):
        by = "an Overparam" if program.of_overparam else f"this {name}"
        raise InputError(
            f"{by} is attached to the program already, and a second time would move every weight "
            "twice; leave attach out, or call what the first one returned before it"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(direct.parameter) in held for direct in program.direct):
        raise InputError(
            f"the {name} holds none of the {len(program.direct)} weights whose methods hold no "
            f"cores (the first is {program.direct[0].key!r}), wanted the optimizer that steps "
            "them; build it over program.parameters()"
        )
    if needs_closure(optimizer):
        raise InputError(_no_closure(optimizer))


def _no_closure(optimizer: Optimizer) -> str:
    return (
        f"{type(optimizer).__name__} takes its gradients from a closure, which attach does not "
        "see, wanted gradients before step(); call backward() and then step() without a closure, "
        "or use opdf.Overparam"
    )
