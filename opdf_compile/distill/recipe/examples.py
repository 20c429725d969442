"""Examples in memory: columns of tensors, their batches, their split, their fingerprint."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from opdf_compile.distill.recipe.job import Batch, Examples

DATA_PARTS = ("train", "validation", "test")
# What torch's cross-entropy leaves out.
IGNORED_LABEL = -100


class Table:
    """Examples as columns of equal length; an item is a mapping of one row's tensors.

    Attributes:
        columns: By name, ``(n, ...)``.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)
        self._rows = min((len(column) for column in self.columns.values()), default=0)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self._rows:
            raise IndexError(f"example {index} of {self._rows}")
        return {name: column[index] for name, column in self.columns.items()}

    def rows(self, indices: Tensor) -> Table:
        """Some of the examples."""
        return Table({name: column[indices] for name, column in self.columns.items()})


class Chosen:
    """Some of the examples of another dataset."""

    def __init__(self, whole: Examples, indices: Tensor) -> None:
        self.whole, self.indices = whole, indices
        self._places = indices.tolist()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Batch:
        return self.whole[self._places[index]]


class Chained:
    """One dataset, then another."""

    def __init__(self, first: Examples, second: Examples) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> Batch:
        count = len(self.first)
        return self.first[index] if index < count else self.second[index - count]


class Padded:
    """Makes batches; texts of unequal length are filled up to the longest.

    Labels are filled with -100, which losses leave out, everything else with 0.

    Args:
        labels: The column with the labels, if any.
    """

    def __init__(self, labels: str | None) -> None:
        self._labels = labels

    def __call__(self, rows: Sequence[Batch] | Table) -> dict[str, Tensor]:
        """One batch of rows: columns ``(len(rows), ...)``."""
        if isinstance(rows, Table):
            return rows.columns
        return {name: self._column(name, [row[name] for row in rows]) for name in rows[0]}

    def _column(self, name: str, values: list[Tensor]) -> Tensor:
        if len({value.shape for value in values}) == 1:
            return torch.stack(values)
        filler = IGNORED_LABEL if name == self._labels else 0
        return pad_sequence(values, batch_first=True, padding_value=filler)


def examples_at(part: Examples, places: Tensor) -> Table | list[Batch]:
    """Examples for a batch; those of tables are cut out at once, which takes less time."""
    if isinstance(part, Chosen):
        return examples_at(part.whole, part.indices[places])
    if isinstance(part, Table):
        return part.rows(places)
    if isinstance(part, Chained):
        near, count = places < len(part.first), len(part.first)
        first, second = (
            examples_at(part.first, places[near]),
            examples_at(part.second, places[~near] - count),
        )
        if isinstance(first, Table) and isinstance(second, Table):
            # Where each row of the two in a row belongs.
            back = torch.cat([near.nonzero(), (~near).nonzero()])[:, 0].argsort()
            both = ((name, column, second.columns[name]) for name, column in first.columns.items())
            return Table({name: torch.cat([ours, its])[back] for name, ours, its in both})
    return [part[index] for index in places.tolist()]


def pick(whole: Examples, indices: Tensor) -> Examples:
    """Some examples, in memory where the whole is."""
    if isinstance(whole, Table):
        return whole.rows(indices)
    return Chosen(whole, indices)


def split_off(
    whole: Examples, shares: Mapping[str, float], labels: str | None, seed: int, rest: str = "train"
) -> dict[str, Examples]:
    """Split examples in a way that depends on the seed and their number alone.

    Classes keep their proportions where the labels are one whole number per example.

    Args:
        whole: All examples.
        shares: Of the parts to split off.
        labels: The column with the labels, if any.
        seed: Where the shuffle starts.
        rest: The part that gets what is left.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {rest: [], **{name: [] for name in shares}}
    for members in _groups(whole, labels):
        order = members[torch.randperm(len(members), generator=generator)]
        start = 0
        total = 0.0
        for name, share in shares.items():
            total += share
            end = round(len(order) * total)
            found[name].append(order[start:end])
            start = end
        found[rest].append(order[start:])
    return {name: pick(whole, torch.cat(parts).sort().values) for name, parts in found.items()}


def _groups(whole: Examples, labels: str | None) -> Iterator[Tensor]:
    column = whole.columns.get(labels or "") if isinstance(whole, Table) else None
    if column is None or column.ndim != 1 or column.is_floating_point():
        yield torch.arange(len(whole))
        return
    for label in torch.unique(column):
        yield (column == label).nonzero()[:, 0]


def fingerprint(parts: Mapping[str, Examples]) -> str:
    """A hash over everything that the parts hold; equal for equal contents, in any container."""
    digest = hashlib.sha256()
    for name in DATA_PARTS:
        digest.update(f"{name} {len(parts[name])}\n".encode())
        for key, (form, values) in sorted(_hashed(parts[name]).items()):
            digest.update(f"{key} {form.hexdigest()} {values.hexdigest()}\n".encode())
    return digest.hexdigest()


def _hashed(part: Examples) -> dict[str, tuple[hashlib._Hash, hashlib._Hash]]:
    """For each column a hash of its rows' forms, and one of their bytes."""
    found: dict[str, tuple[hashlib._Hash, hashlib._Hash]] = defaultdict(
        lambda: (hashlib.sha256(), hashlib.sha256())
    )
    for key, column, rows in _pieces(part):
        form, values = found[key]
        form.update(f"{column.dtype} {tuple(column.shape[1:])};".encode() * rows)
        flat = column.detach().cpu().contiguous().view(-1).view(torch.uint8)
        values.update(flat.numpy().data)
    return dict(found)


def _pieces(part: Examples) -> Iterator[tuple[str, Tensor, int]]:
    """Columns, or parts of them, with their number of rows: whole ones hash at once."""
    if isinstance(part, Table):
        for key, column in part.columns.items():
            yield key, column, len(column)
        return
    for index in range(len(part)):
        for key, value in part[index].items():
            yield key, value[None], 1
