"""A small exported program as an archive's members, and how it is changed and written."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.io.models.program_archive import write_programs

Members = dict[str, bytes]
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor, mode: str, unused: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.layer(x)
        return y * 2 + self.shift + x.shape[0]


@functools.cache
def _good() -> Members:
    torch.manual_seed(0)
    program = torch.export.export(
        Small().eval(),
        (torch.randn(3, 4), "plain", torch.ones(1)),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}, "mode": None, "unused": None},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.pt2"
        write_programs(path, {"model": program}, {"plan.json": "{}"})
        return read_members(path)


def good_members() -> Members:
    """The unharmed archive; a copy, to be changed."""
    return dict(_good())


def read_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}


def write_members(path: Path, members: Members, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def edit(members: Members, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON member in place."""
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()


def torch_zip(
    program: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A file in the form of torch.save with a pickle and storages of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in {"data.pkl": program, "version": b"3\n", **(records or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()
