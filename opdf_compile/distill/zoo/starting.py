"""The start that a zoo gives for a data set.

sampled    drawn by a diffusion model of the zoo, given the features of the data
nearest    the student whose data's features are nearest
mean       the mean of all students
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from opdf_compile.distill.zoo.checkpoints import Zoo, read_zoo, state_of
from opdf_compile.distill.zoo.generator import Generator, trained_generator
from opdf_compile.errors import InputError

Kind = Literal["sampled", "nearest", "mean"]
KINDS: tuple[str, ...] = get_args(Kind)


def zoo_start(
    kind: Kind,
    folder: str | os.PathLike[str],
    student: nn.Module,
    features: Tensor,
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Start weights for a student, by name.

    Args:
        kind: "sampled", or one of the controls, "nearest" and "mean".
        folder: The zoo.
        student: It is not changed; what starts is of its shapes and dtypes.
        features: `data_features` of what it is to learn.
        seed: Of what a sampled start draws.

    Returns:
        All its floating-point tensors; buffers of whole numbers are not among them.

    Raises:
        ArtefactError: The zoo cannot be read.
        InputError: It is of another architecture, of other features, or the kind is none.

    Example:
        >>> start = zoo_start("mean", "zoo", student, features)  # doctest: +SKIP
        >>> student.load_state_dict(start, strict=False)  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise InputError(f"the start from a zoo is {kind!r}, wanted one of {', '.join(KINDS)}")
    zoo = read_zoo(folder, student)
    if zoo.features.shape[1] != len(features):
        raise InputError(
            f"the zoo {folder} has {zoo.features.shape[1]} features of each student's data and "
            f"{len(features)} are given, wanted as many; make both with the same number of classes"
        )
    return state_of(_vector(kind, zoo, features, seed), student.state_dict())


def _vector(kind: Kind, zoo: Zoo, features: Tensor, seed: int) -> Tensor:
    if kind == "mean":
        return zoo.vectors.mean(0)
    if kind == "nearest":
        distance = (zoo.features - features).square().sum(1)
        return zoo.vectors[int(distance.argmin())]
    return sample(trained_generator(zoo), features, seed)


def sample(generator: Generator, features: Tensor, seed: int) -> Tensor:
    """One student's weights; the seed alone decides which."""
    numbers = torch.Generator().manual_seed(seed)
    return generator(features, torch.randn(1, generator.codes, generator=numbers))[0]
