"""Which weights of a plan are dear, said before anybody pays for them.

    share of a weight = FLOPs of composing it, forward and backward / FLOPs of a plain step

Composing costs the same whatever the batch, so the share depends on the plain step. What is known
of it is the student's step on the example batch, where there is a graph; examples are small,
though. So a plain step is taken to be no smaller than one of 4,096 rows (32 sequences of 128
tokens, 64 images of 8 x 8 positions) through every planned weight, 6 FLOPs per row and parameter.
Above half of that a weight is dear: no usual layer of a BERT, a ViT or a ResNet comes near it (0.01
to 0.25), the first fully connected layer of a VGG or of a detector's head is beyond it (1.8 to 5).
"""

from __future__ import annotations

from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.plans import Plan

USUAL_ROWS = 4096
DEAR = 0.5
# Forward, gradient of the input, gradient of the weight: a product and a sum each.
FLOPS_PER_ROW = 6
_SHOWN = 5


def plain_step(plan: Plan) -> int:
    """FLOPs of the student's own training step, as far as the plan knows."""
    return max(plan.student_step_flops, FLOPS_PER_ROW * USUAL_ROWS * plan.deployed)


def dearest(plan: Plan, most: int = 3) -> tuple[PlanEntry, ...]:
    """The weights that cost most to compose, the dearest first; of those that have cores."""
    cored = (entry for entry in plan.entries if not entry.metric)
    by_cost = sorted(cored, key=lambda entry: (-entry.cost.step_flops, entry.key))
    return tuple(by_cost[:most])


def cost_warning(plan: Plan) -> str | None:
    """A sentence that names the dear weights, what they cost and how to leave them alone.

    Returns:
        None where no single weight is dear.
    """
    whole = plain_step(plan)
    dear = [e for e in dearest(plan, len(plan.entries)) if e.cost.step_flops > DEAR * whole]
    if not dear:
        return None
    each = [
        f"{entry.key} ({'x'.join(map(str, entry.spec.shape))}) adds "
        f"{flops_text(entry.cost.step_flops)} to every step, as much as training it on "
        f"{entry.cost.step_flops // (FLOPS_PER_ROW * entry.deployed):,} rows and "
        f"{entry.cost.step_flops / whole:.1f} times a whole plain step"
        for entry in dear[:_SHOWN]
    ]
    more = f"; so do {len(dear) - _SHOWN} more weights" if len(dear) > _SHOWN else ""
    names = [entry.key for entry in dear]
    options = " ".join(f"--exclude '{name}'" for name in names)
    return (
        f"{'; '.join(each)}{more} (taken as {_basis(plan)}); to leave "
        f"{'it' if len(dear) == 1 else 'them'} alone, plan with exclude={names!r} "
        f"({options} on the command line); a smaller scale costs less, too"
    )


def _basis(plan: Plan) -> str:
    if plain_step(plan) == plan.student_step_flops:
        return f"that of the example batch, {flops_text(plan.student_step_flops)}"
    return (
        f"{USUAL_ROWS:,} rows through every planned weight, {flops_text(plain_step(plan))}; "
        "at fewer rows it weighs more"
    )


def flops_text(count: int) -> str:
    """FLOPs with their magnitude: 552 GFLOP."""
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count:,} FLOP"
