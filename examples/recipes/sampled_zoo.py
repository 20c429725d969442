"""A zoo for sampled.toml: students of the demo's class, each of whose data lacks one of the digits.

    python examples/recipes/sampled_zoo.py digits-zoo

Ten students in about a minute on one core. A zoo that is to be of use holds hundreds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from opdf_compile.distill.demo.networks import Student
from opdf_compile.distill.recipe import load_digits
from opdf_compile.distill.zoo import add_to_zoo, data_features

CLASSES, STEPS, BATCH = 10, 200, 64


def main(folder: Path) -> None:
    """Fill the folder."""
    part = load_digits()["train"]
    rows = [part[place] for place in range(len(part))]
    images, labels = (torch.stack([row[name] for row in rows]) for name in ("images", "labels"))
    for left_out in range(CLASSES):
        kept = labels != left_out
        x, y = images[kept], labels[kept]
        torch.manual_seed(0)  # One start for all: the codes of a zoo need students that are alike.
        student = Student().train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
        for _ in range(STEPS):
            chosen = torch.randint(len(x), (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(student(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        add_to_zoo(folder, f"without-{left_out}", student, data_features(x, y, CLASSES))
    print(f"Wrote {CLASSES} students to {folder}/")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits-zoo"))
