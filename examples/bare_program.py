"""The engine without the optimizer around it, for loops that want the cores in their own hands.

`opdf.hoist` gives a weight program beside the student. The loop says when gradients are pulled
back to the cores (`backward`) and when the weights are composed (`refresh`); so clipping and decay
act on the cores here, while under `opdf.Overparam` they act on the weights.

    python examples/bare_program.py
"""

from __future__ import annotations

import torch
from torch import nn

import opdf_compile as opdf

STEPS, ACCUMULATION = 60, 2


def main() -> tuple[list[float], nn.Module]:
    """Fit a small network to a larger one's outputs."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 16))
    student = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    plan = opdf.plan(student, scale=2.0)
    print(plan)

    program = opdf.hoist(student, plan)
    # The cores, and the biases: everything trainable that has no cores.
    inner = torch.optim.AdamW(program.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        program.zero_grad()
        total = 0.0
        for _ in range(ACCUMULATION):
            x = torch.randn(32, 16)
            loss = nn.functional.mse_loss(student(x), teacher(x).detach()) / ACCUMULATION
            loss.backward()
            total += loss.item()
        program.backward()  # once, whatever the accumulation: W.grad -> gradients of the cores
        nn.utils.clip_grad_norm_(program.parameters(), 1.0)
        inner.step()
        program.refresh()  # the weights that the next forward reads
        losses.append(total)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

    first = program.cores("0.weight")
    print("cores of 0.weight:", ", ".join(str(tuple(core.shape)) for core in first))
    return losses, program.fold()


if __name__ == "__main__":
    print(main()[1])
