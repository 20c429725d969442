"""Warm start: a shallower student begins as a part of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opdf_compile.distill.layer_map.value import LayerMap
from opdf_compile.distill.layer_map.weights import holder_of, innermost, row_prefixes
from opdf_compile.errors import InputError


@dataclass(frozen=True)
class CopyReport:
    """What a warm start did; prints as sentences.

    Attributes:
        copied: (student tensor, teacher tensor), names as in `state_dict`.
        kept: Student tensors that stayed as they were, with the reason.
    """

    copied: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        total = len(self.copied) + len(self.kept)
        lines = [f"{len(self.copied)} of {total} tensors copied from the teacher"]
        return "\n".join([*lines, *(f"{name} was kept: {reason}" for name, reason in self.kept)])


def copy_layers(student: nn.Module, teacher: nn.Module, layer_map: LayerMap) -> CopyReport:
    """Copy every tensor of the teacher's mapped blocks into the student's, in place.

    Along with a mapped weight goes all that its block has (biases, norms, running statistics), and
    what has an equal name and an equal shape outside of the blocks (embeddings, a head). Dtype and
    device stay the student's. A tensor of another shape is kept, with the reason in the report.

    Copy before an `Overparam` is made of the student, or call its `absorb()` afterwards.

    Raises:
        InputError: The map does not fit the models, or no mapped weight has its partner's shape.
    """
    layer_map.check(student, teacher)
    mine, theirs = (model.state_dict(keep_vars=True) for model in (student, teacher))
    partners = _partners(layer_map, mine, theirs)
    fitting = [s for s, t in layer_map if mine[s].shape == theirs[t].shape]
    if not fitting:
        s, t = layer_map.pairs[0]
        raise InputError(
            f"no weight of the layer map has its partner's shape, as {s!r} {tuple(mine[s].shape)} "
            f"and {t!r} {tuple(theirs[t].shape)}: nothing can be copied; start this student "
            "without a warm start, or give it the teacher's widths"
        )
    copied, kept = [], []
    with torch.no_grad():
        for name, tensor in mine.items():
            source = partners.get(name, name)
            given = theirs.get(source)
            if name not in partners and _in_a_row(name, layer_map):
                kept.append((name, "its block is not in the layer map"))
            elif given is None:
                kept.append((name, f"the teacher has no {source!r}"))
            elif given.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)} is {tuple(given.shape)}"
                kept.append((name, f"its shape {shapes} in the teacher"))
            else:
                tensor.copy_(given)
                copied.append((name, source))
    return CopyReport(tuple(copied), tuple(kept))


def _partners(
    layer_map: LayerMap, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, str]:
    """For each student tensor of a mapped block its teacher tensor, whether it is there or not.

    What is outside of the blocks is here only where the two models differ in a prefix ("bert.").
    """
    moved = dict(_blocks(layer_map)) | {holder_of(s): holder_of(t) for s, t in layer_map}
    found = {}
    for name in mine:
        own = innermost(holder_of(name), moved)
        if own is not None:
            found[name] = _joined(moved[own], name[len(own) :])
    for before, after in _base(layer_map).items():
        for name in mine:
            source = _joined(after, name.removeprefix(before)) if name.startswith(before) else ""
            if source in theirs and name not in found and not _in_a_row(name, layer_map):
                found[name] = source
    return found | layer_map.to_mapping()


def _blocks(layer_map: LayerMap) -> Iterator[tuple[str, str]]:
    """Pairs of blocks: names up to the last part that differs, where all pairs agree on it.

    Equal names end at their last number.
    """
    votes: dict[str, set[str]] = {}
    for s, t in layer_map:
        left, right = s.split("."), t.split(".")
        if s == t:
            numbers = [place for place, part in enumerate(left) if part.isdigit()]
            left = right = left[: numbers[-1] + 1] if numbers else left[:-1]
        while len(left) > 1 and len(right) > 1 and left[-1] == right[-1] and s != t:
            left, right = left[:-1], right[:-1]
        votes.setdefault(".".join(left), set()).add(".".join(right))
    for path, others in votes.items():
        if len(others) == 1:
            yield path, next(iter(others))


def _base(layer_map: LayerMap) -> dict[str, str]:
    """What stands before the blocks' common names: {"bert": ""}; empty where nothing differs."""
    found = set()
    for s, t in layer_map:
        left, right = (next(row_prefixes(name), "").split(".") for name in (s, t))
        while left and right and left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        found.add((".".join(left), ".".join(right)))
    return dict(found) if len(found) == 1 and found != {("", "")} else {}


def _joined(path: str, rest: str) -> str:
    return f"{path}.{rest.removeprefix('.')}".removeprefix(".")


def _in_a_row(name: str, layer_map: LayerMap) -> bool:
    """Whether a tensor is of a numbered block beside blocks that are mapped."""
    rows = {next(row_prefixes(s), None) for s, _t in layer_map}
    return any(row in rows for row in row_prefixes(name))
