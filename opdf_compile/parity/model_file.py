"""An ONNX file that several parts of a verification look into: parsed, hashed, linked once."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts import Interface, LinkedModel, interface_of, link, read_onnx
from opdf_compile.files import sha256

if TYPE_CHECKING:
    import onnx

PathLike = str | os.PathLike[str]


class ModelFile:
    """A file; what it holds is read when it is first asked for, and its model is never changed.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: PathLike, digest: str | None = None) -> None:
        """Nothing is read yet; `digest` is its SHA-256 where somebody has hashed it."""
        self.path = Path(path)
        self._digest = digest

    @classmethod
    def of(cls, source: PathLike) -> ModelFile:
        """The file of a path; one that is such a file already keeps what it has read."""
        return source if isinstance(source, ModelFile) else cls(source)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return self.path.name

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The parsed model.

        Raises:
            ArtefactError: It is no ONNX model, or not a whole one; as for all that follows.
        """
        return read_onnx(self.path)

    @cached_property
    def sha256(self) -> str:
        """The hash of the file itself, without its external data.

        Raises:
            ArtefactError: It cannot be read.
        """
        return self._digest or sha256(self.path)

    @property
    def external_files(self) -> list[str]:
        """Names of the files beside it that hold its large tensors."""
        return sorted(
            {
                entry.value
                for tensor in self.model.graph.initializer
                for entry in tensor.external_data
                if entry.key == "location"
            }
        )

    @cached_property
    def view(self) -> LinkedModel:
        """The model as linked objects; a comparison marks the parameters in it."""
        return link(self.model, str(self.path.parent))

    @cached_property
    def interface(self) -> Interface:
        """Its inputs and outputs."""
        return interface_of(self.model, self.path)

    def require_whole(self) -> None:
        """Parse and check it, before a runtime sees it."""
        _ = self.model
