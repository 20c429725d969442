"""Images of characters, drawn with the fonts that matplotlib ships.

    master    a character of a font, drawn once, 34 x 34
    image     of a drawn master: rotation, shear, scale, shift; blur; contrast; noise; 16 x 16

A variant has characters and font files of its own. No two variants share either, nor a seed, so
that what was chosen on one says nothing of the other by having seen it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from opdf_compile.errors import InputError

SIDE = 16
_MASTER = 34
_POINTS = 32
# Of a sample, the widest that is drawn.
_TURN, _SHEAR, _SHIFT = math.radians(25), 0.35, 0.15
_SCALES = (0.75, 1.15)
_BLURS = (0.2, 1.0)
_CONTRASTS = (0.5, 1.0)


@dataclass(frozen=True)
class Variant:
    """A task of glyphs.

    Attributes:
        name: Its name.
        characters: One class each.
        fonts: Names of font files, without their ending.
        seed: Of the draws.
        noise: Standard deviation of what is added to every pixel; ink is 1.
    """

    name: str
    characters: str
    fonts: tuple[str, ...]
    seed: int
    noise: float = 0.12


VARIANTS = (
    Variant(
        "glyphs-upper",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneralItalic", "cmr10"),
        501,
    ),
    Variant(
        "glyphs-lower",
        "abcdefghijklmnopqrstuvwxyz",
        ("DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono-Bold", "STIXGeneral", "cmss10"),
        602,
    ),
    Variant(
        "glyphs-greek",
        "αβγδεζηθικλμνξπρστυφχψω",
        ("DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneralBol"),
        703,
    ),
    Variant(
        "glyphs-cyrillic",
        "бвгджзийклмнптфцчшщъыьэюя",
        (
            "DejaVuSans-BoldOblique",
            "DejaVuSerif-BoldItalic",
            "DejaVuSansMono-BoldOblique",
            "STIXGeneralBolIta",
        ),
        804,
    ),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def drawn(variant: Variant, count: int, part: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images ``(count, 1, 16, 16)`` and labels ``(count,)``, the classes equally often.

    Args:
        variant: What is drawn.
        count: Of images; a multiple of the classes is the same number of each.
        part: Number of the part (training, validation, ..); another one has other draws.
    """
    generator = torch.Generator().manual_seed(1000 * variant.seed + part)
    classes = len(variant.characters)
    labels = torch.arange(count) % classes
    labels = labels[torch.randperm(count, generator=generator)]
    fonts = torch.randint(len(variant.fonts), (count,), generator=generator)
    found = masters(variant.fonts, variant.characters)[fonts, labels]
    images = _distorted(found, variant.noise, generator)
    return images.numpy().astype(np.float32), labels.numpy().astype(np.int64)


@lru_cache
def masters(fonts: tuple[str, ...], characters: str) -> Tensor:
    """All characters of all fonts, ``(fonts, characters, 34, 34)``, ink 1 and paper 0."""
    return torch.stack([torch.stack([_master(f, c) for c in characters]) for f in fonts])


def _master(name: str, character: str) -> Tensor:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"
    font = FT2Font(str(file))
    if font.get_char_index(ord(character)) == 0:
        raise InputError(f"{name} has no glyph of {character!r}; take a font that draws it")
    font.set_size(_POINTS, 72)
    font.set_text(character, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.from_numpy(np.array(font.get_image(), dtype=np.float32)) / 255
    sheet = torch.zeros(_MASTER, _MASTER)
    high, wide = (min(size, _MASTER) for size in ink.shape)
    top, left = (_MASTER - high) // 2, (_MASTER - wide) // 2
    sheet[top : top + high, left : left + wide] = ink[:high, :wide]
    return sheet


def _distorted(found: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    count = len(found)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn, shear = between(-_TURN, _TURN), between(-_SHEAR, _SHEAR)
    scale = between(*_SCALES)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    places = torch.stack(
        [cos, shear * cos - sin, between(-_SHIFT, _SHIFT)]
        + [sin, shear * sin + cos, between(-_SHIFT, _SHIFT)],
        dim=1,
    ).view(count, 2, 3)
    # Drawn at twice the size and averaged, since a sample of single points loses thin lines.
    size = [count, 1, 2 * SIDE, 2 * SIDE]
    grid = F.affine_grid(places, size, align_corners=False)
    images = F.avg_pool2d(F.grid_sample(found.unsqueeze(1), grid, align_corners=False), 2)
    images = _blurred(images, between(*_BLURS)) * between(*_CONTRASTS).view(-1, 1, 1, 1)
    return images + noise * torch.randn(images.shape, generator=generator)


def _blurred(images: Tensor, widths: Tensor) -> Tensor:
    """Each image by a Gaussian of its own width, in pixels, along both axes."""
    taps = torch.arange(-2.0, 3.0)
    kernels = torch.exp(-0.5 * (taps / widths.unsqueeze(1)) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    count = len(images)
    row = images.view(1, count, SIDE, SIDE)
    row = F.conv2d(row, kernels.view(count, 1, 1, 5), padding=(0, 2), groups=count)
    row = F.conv2d(row, kernels.view(count, 1, 5, 1), padding=(2, 0), groups=count)
    return row.view(count, 1, SIDE, SIDE)


def shared(variants: Sequence[Variant]) -> list[str]:
    """What two variants have in common: characters, fonts, seeds; empty where they are disjoint."""
    found = []
    for place, one in enumerate(variants):
        for other in variants[place + 1 :]:
            both = {*one.characters} & {*other.characters} | {*one.fonts} & {*other.fonts}
            same = [f"seed {one.seed}"] if one.seed == other.seed else []
            found += [f"{one.name} and {other.name}: {what}" for what in (*sorted(both), *same)]
    return found
