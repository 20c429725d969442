"""Models, batches and measures that the tasks share; nothing here depends on the rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

WIDTH, OUT, BATCH = 24, 7, 8


class Block(nn.Module):
    """A residual pair of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Smooth(nn.Module):
    """No BatchNorm, no dropout; a weight, and a bias, of 7 rows, which no 2 ranks share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class Noisy(nn.Module):
    """BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(32, OUT)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(x.reshape(-1, 3, 4))))
        out: Tensor = self.head(self.drop(hidden.flatten(1)))
        return out


def build(
    kind: type[nn.Module] = Smooth, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """The same student for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    """The joined batches of a run."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(BATCH, 12, generator=generator, dtype=torch.float64)
        yield (
            x.to(dtype),
            torch.randn(BATCH, OUT, generator=generator, dtype=torch.float64).to(dtype),
        )


def share(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """The rows of a joined batch that one rank sees."""
    return tensor.chunk(ranks)[rank]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return mse_loss(model(x), y)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest relative distance of two tensors of one name, in the Frobenius norm."""
    assert left.keys() == right.keys()
    return max(float(_relative(left[name].detach(), right[name].detach())) for name in left)


def _relative(left: Tensor, right: Tensor) -> Tensor:
    return (left - right).norm() / right.norm().clamp_min(1e-30)


def same_bits(sets: Iterable[Mapping[str, Tensor]]) -> bool:
    """Whether all ranks hold the very same tensors."""
    first, *others = sets
    return all(
        first.keys() == other.keys() and all(torch.equal(first[n], other[n]) for n in first)
        for other in others
    )
