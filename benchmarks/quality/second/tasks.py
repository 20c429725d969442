"""The tasks: data, splits and a teacher's logits, prepared once into one .npz file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from quality import sources
from quality.second import glyphs
from quality.second.students import SHAPES, TEACHER, TEACHER_WIDTH, Stack, maker, seeded
from quality.sources import Signals

PARTS = ("train", "validation", "test")
TEXT, TEXT_STUDENT = "lee-minilm", "minilm-3"
# More images of the same variant, which the teacher alone learns from.
_MORE = "more"
_SPLIT_SEED = 8
_TEACHER_SEED, _TEACHER_BATCH = 12, 64
# Images of each glyph to train a student on.
_EACH = 30


@dataclass(frozen=True)
class Source:
    """A task before it is prepared.

    Attributes:
        axes: Of the convolutions.
        steps: Length of a run of the fixed regime, about ten passes over the data of batches of 32.
        parts: Makes inputs ``(n, channels, ..)`` and labels by part; gets the folder of wheels. The
            text task has none: its file is another one.
        students: Names of the students that it is for.
    """

    axes: int
    steps: int
    parts: Callable[[Path | None], dict[str, Signals]] | None
    students: tuple[str, ...] = tuple(SHAPES)


def _glyphs(name: str) -> Source:
    variant = glyphs.BY_NAME[name]
    classes = len(variant.characters)
    sizes = {"train": _EACH * classes, "validation": 1000, "test": 2000, _MORE: 200 * classes}

    def parts(_wheels: Path | None) -> dict[str, Signals]:
        drawn = {
            part: Signals(*glyphs.drawn(variant, size, number))
            for number, (part, size) in enumerate(sizes.items())
        }
        return _scaled(drawn)

    return Source(2, 240, parts)


def _digits(_wheels: Path | None) -> dict[str, Signals]:
    """30 labels a class; the other images are for choosing and testing."""
    found = sources.digits()
    images = Signals(found.inputs.reshape(-1, 1, 8, 8), found.labels)
    return _split(images, (300, 497, 1000), each=30)


def _series(problem: str, sizes: tuple[int, int, int], pooling: int = 1) -> Source:
    def parts(wheels: Path | None) -> dict[str, Signals]:
        found = sources.aeon(sources.wheel_of(wheels, "aeon"), problem, pooling)
        return _split(_channels_first(found), sizes)

    return Source(1, 160, parts)


def _mnist1d(wheels: Path | None) -> dict[str, Signals]:
    """1,000 signals of a seed of their own, with more noise and more shear than is usual."""
    harder = {"corr_noise_scale": 0.35, "shear_scale": 1.0}
    found = sources.mnist1d(sources.wheel_of(wheels, "mnist1d"), 4000, 20271, **harder)
    return _split(_channels_first(found), (1000, 1000, 2000))


SOURCES: Mapping[str, Source] = {
    "glyphs-upper": _glyphs("glyphs-upper"),
    "digits-30": Source(2, 160, _digits),
    "glyphs-lower": _glyphs("glyphs-lower"),
    "glyphs-greek": _glyphs("glyphs-greek"),
    "glyphs-cyrillic": _glyphs("glyphs-cyrillic"),
    "mnist1d-harder": Source(1, 300, _mnist1d),
    "JapaneseVowels": _series("JapaneseVowels_eq", (320, 120, 200)),
    "OSULeaf": _series("OSULeaf", (222, 90, 130), pooling=4),
    TEXT: Source(0, 75, None, (TEXT_STUDENT,)),
}
DEVELOPMENT = ("glyphs-upper", "digits-30")
CONFIRMATION = tuple(name for name in SOURCES if name not in (*DEVELOPMENT, TEXT))


def prepare(
    names: Iterable[str], wheels: Path | None, path: Path, *, teacher_steps: int = 1200
) -> dict[str, float]:
    """Write data, splits and teachers' logits of the tasks into one file.

    Args:
        names: Of tasks; those that the file already has are left as they are.
        wheels: Folder with the wheels of wheels.txt; not needed by the tasks that read none.
        path: The .npz.
        teacher_steps: Steps of a teacher.

    Returns:
        Validation accuracy of each new teacher. Test parts are written and not looked at.
    """
    arrays: dict[str, NDArray[Any]] = dict(np.load(path)) if path.exists() else {}
    accuracy = {}
    for name in names:
        if f"{name}/classes" in arrays:
            continue
        make = SOURCES[name].parts
        if make is None:
            continue  # `python benchmarks/quality/text prepare` writes it.
        parts = make(wheels)
        network = _teacher(SOURCES[name].axes, parts, teacher_steps)
        for part in PARTS:
            inputs, labels = parts[part]
            with torch.no_grad():
                logits = network(torch.from_numpy(inputs)).numpy()
            arrays[f"{name}/{part}/inputs"] = inputs
            arrays[f"{name}/{part}/labels"] = labels
            arrays[f"{name}/{part}/teacher"] = logits
        arrays[f"{name}/classes"] = np.asarray(_classes(parts))
        right = arrays[f"{name}/validation/teacher"].argmax(1) == parts["validation"].labels
        accuracy[name] = float(right.mean())
        print(f"{name:<18} teacher {accuracy[name]:.3f} on validation", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return accuracy


def _teacher(axes: int, parts: Mapping[str, Signals], steps: int) -> Stack:
    """A stack four times as wide: AdamW, a cosine, on the training part and what is beside it."""
    known = [parts[name] for name in ("train", _MORE) if name in parts]
    inputs = torch.from_numpy(np.concatenate([part.inputs for part in known]))
    labels = torch.from_numpy(np.concatenate([part.labels for part in known]))
    make = maker(TEACHER, axes, inputs.shape[1], _classes(parts), TEACHER_WIDTH)
    network = seeded(make, _TEACHER_SEED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(_TEACHER_SEED)
    for _step in range(steps):
        rows = torch.randint(len(labels), (_TEACHER_BATCH,), generator=generator)
        loss = F.cross_entropy(network(inputs[rows]), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def _split(signals: Signals, sizes: tuple[int, int, int], each: int = 0) -> dict[str, Signals]:
    """Parts of a fixed order; with `each` the training part has so many of every class."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(signals.labels))
    if each:
        labels = signals.labels[order]
        first = np.concatenate([np.flatnonzero(labels == c)[:each] for c in np.unique(labels)])
        order = order[np.concatenate([first, np.setdiff1d(np.arange(len(order)), first)])]
    edges = np.cumsum((0, *sizes))
    places = [order[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return _scaled(
        {
            part: Signals(signals.inputs[place], signals.labels[place])
            for part, place in zip(PARTS, places, strict=True)
        }
    )


def _scaled(parts: Mapping[str, Signals]) -> dict[str, Signals]:
    """By the training part's mean and spread, channel by channel."""
    train = parts["train"].inputs
    over = (0, *range(2, train.ndim))
    centre, spread = train.mean(over, keepdims=True), train.std(over, keepdims=True) + 1e-8
    return {
        name: Signals(((part.inputs - centre) / spread).astype(np.float32), part.labels)
        for name, part in parts.items()
    }


def _channels_first(signals: Signals) -> Signals:
    return Signals(np.ascontiguousarray(signals.inputs.swapaxes(1, 2)), signals.labels)


def _classes(parts: Mapping[str, Signals]) -> int:
    return int(max(part.labels.max() for part in parts.values())) + 1
