"""A zoo on the disk: NAME.safetensors, a student's own weights, and NAME.json, its data's features.

All floating-point tensors of a state dict make one vector, in the order of the names; whole numbers
(counts of batches) are no part of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files import atomic_write
from opdf_compile.io import read_tensors, write_tensors

SCHEMA = "opdf-zoo/1"
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Zoo:
    """Students of one architecture.

    Attributes:
        names: Of the files, sorted.
        vectors: Their weights, ``(n, d)`` float64.
        features: Of what each learned, ``(n, c)`` float64.
        variances: Which of the weights are running variances, ``(d,)`` bool; None is none.
    """

    names: tuple[str, ...]
    vectors: Tensor
    features: Tensor
    variances: Tensor | None = None


def vector_of(state: Mapping[str, Tensor]) -> Tensor:
    """The floating-point tensors of a state dict as one vector, float64."""
    parts = [t.detach().cpu().double().flatten() for _, t in _floats(state)]
    return torch.cat(parts)


def state_of(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: tensors of the shapes, dtypes and devices of another state dict."""
    made, start = {}, 0
    for name, tensor in _floats(like):
        part = vector[start : start + tensor.numel()]
        made[name] = part.reshape(tensor.shape).to(tensor.device, tensor.dtype)
        start += tensor.numel()
    return made


def _floats(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, state[name]) for name in sorted(state) if state[name].is_floating_point()]


def add_to_zoo(
    folder: str | os.PathLike[str], name: str, student: nn.Module, features: Tensor
) -> None:
    """Put a trained student into a zoo, which is made if it is missing.

    Args:
        folder: The zoo.
        name: Of the two files; one of that name is replaced.
        student: Folded, with plain weights.
        features: Of the data that it learned: `data_features`.

    Raises:
        ArtefactError: The files cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    state = {key: t.detach().cpu().contiguous().clone() for key, t in student.state_dict().items()}
    write_tensors(place / f"{name}.safetensors", state)
    with atomic_write(place / f"{name}.json") as temporary:
        value = {"schema": SCHEMA, "features": features.tolist()}
        temporary.write_text(json.dumps(value), encoding="utf-8")


def read_zoo(folder: str | os.PathLike[str], student: nn.Module) -> Zoo:
    """The students of a zoo, checked against the one that is to start from it.

    Raises:
        ArtefactError: The folder does not exist, or a file is damaged or lacks its features.
        InputError: There are fewer than two students, or one is of another architecture.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ArtefactError(
            f"the zoo {place} is no folder, wanted one with NAME.safetensors and NAME.json of "
            "trained students; opdf_compile.distill.zoo.add_to_zoo makes one"
        )
    files = sorted(place.glob("*.safetensors"))
    if len(files) < _FEWEST:
        raise InputError(
            f"the zoo {place} holds {len(files)} students, wanted {_FEWEST} at least; add some "
            "with opdf_compile.distill.zoo.add_to_zoo"
        )
    wanted = dict(student.state_dict())
    vectors = torch.stack([_vector(file, wanted) for file in files])
    features = [_features(file.with_suffix(".json")) for file in files]
    sizes = {len(one) for one in features}
    if len(sizes) > 1:
        raise InputError(
            f"the students of the zoo {place} have {sorted(sizes)} features, wanted as many of "
            "each; make all of them with data_features of one number of classes and one width"
        )
    names = tuple(file.stem for file in files)
    which = torch.cat(
        [torch.full((t.numel(),), name.endswith("running_var")) for name, t in _floats(wanted)]
    )
    return Zoo(names, vectors, torch.tensor(features, dtype=torch.float64), which)


def _vector(file: Path, wanted: Mapping[str, Tensor]) -> Tensor:
    found, _facts = read_tensors(file)
    ours = {name: tuple(tensor.shape) for name, tensor in _floats(wanted)}
    theirs = {name: tuple(tensor.shape) for name, tensor in _floats(found)}
    if ours != theirs:
        name = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))[0]
        raise InputError(
            f"{file} is no student of this architecture: {name} is {theirs.get(name, 'missing')} "
            f"there and {ours.get(name, 'missing')} in the student, wanted one; leave it out of "
            "the zoo"
        )
    vector = vector_of(found)
    if not bool(vector.isfinite().all()):
        raise InputError(f"{file} holds numbers that are none, wanted weights; leave it out")
    return vector


def _features(file: Path) -> list[float]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        features = [float(number) for number in value["features"]]
        if not all(map(math.isfinite, features)):
            raise ValueError("a feature is no number")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ArtefactError(
            f"{file} does not tell what the student beside it learned, wanted JSON with a list "
            '"features"; write it with opdf_compile.distill.zoo.add_to_zoo'
        ) from error
    return features
