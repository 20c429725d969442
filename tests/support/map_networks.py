"""Small transformers of two hands: other names, another order of registration."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Student(nn.Module):
    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class OtherBlock(nn.Module):
    """The same mathematics, registered from back to front, values computed first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b, self.a = nn.Linear(4 * width, width), nn.Linear(width, 4 * width)
        self.n2, self.n1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.o, self.z, self.y, self.x = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        value, key, query = self.z(h), self.y(h), self.x(h)
        h = self.n1(h + self.o(F.scaled_dot_product_attention(query, key, value)))
        return self.n2(h + self.b(F.gelu(self.a(h))))


class Teacher(nn.Module):
    """Runs its layers from the last to the first, so its names tell nothing of the order."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 2)
        self.stack = nn.ModuleList(OtherBlock(width) for _ in range(depth))
        self.enter = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in reversed(self.stack):
            x = block(x)
        return self.classify(x)


NAMES = {
    "q": "x", "k": "y", "v": "z", "out": "o", "norm1": "n1", "norm2": "n2", "up": "a", "down": "b",
}  # fmt: skip


def right_map(student_depth: int, teacher_depth: int) -> set[tuple[str, str]]:
    """Known by construction: student block l is the teacher's ((l + 1) N / n)-th to run."""
    pairs = {("embed.weight", "enter.weight"), ("head.weight", "classify.weight")}
    for block in range(student_depth):
        run = (block + 1) * teacher_depth // student_depth
        for mine, theirs in NAMES.items():
            place = teacher_depth - run
            pairs.add((f"blocks.{block}.{mine}.weight", f"stack.{place}.{theirs}.weight"))
    return pairs


def example() -> tuple[Tensor]:
    return (torch.randn(2, 5, 3),)
