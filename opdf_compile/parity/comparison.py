"""The structure judge alone: two ONNX files, and what differs between them.

It needs neither torch nor a runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdf_compile.errors import InputError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.structure.compare import compare_structure
from opdf_compile.parity.structure.cosmetic import (
    Cosmetic,
    OtherValues,
    cosmetic_differences,
    other_values,
)
from opdf_compile.parity.structure.differences import Difference
from opdf_compile.parity.structure.picture import Neighbourhood

SCHEMA = "opdf-diff/1"


@dataclass(frozen=True)
class Comparison:
    """What differs between two ONNX files; true where their graphs are equal.

    Attributes:
        nodes: Nodes of the first file at every depth; Constant nodes are constants, not nodes.
        differences: What changes the function that the graph computes whatever its parameters
            hold, nearest to the outputs first, at most 20.
        values: Parameters that hold other numbers.
        cosmetic: What changes nothing: names, order, how constants are stored, metadata.
        notes: What limits the answer.
    """

    nodes: int
    differences: tuple[Difference, ...]
    values: OtherValues
    cosmetic: tuple[Cosmetic, ...]
    notes: tuple[str, ...] = ()
    _picture: Neighbourhood | None = field(default=None, repr=False, compare=False)

    @property
    def equal(self) -> bool:
        """Whether the graphs are equal, up to names, order, sharing and parameters' values."""
        return not self.differences

    def __bool__(self) -> bool:
        """The same."""
        return self.equal

    def plot(self, path: PathLike) -> None:
        """Draw the first difference with its neighbourhood in both graphs.

        Args:
            path: A .png, .svg or .pdf file.

        Raises:
            ArtefactError: The path cannot be written.
            InputError: The graphs are equal, matplotlib is not installed, or the path is no such
                file in a folder that exists.
        """
        from opdf_compile.parity.report.figures import plot_difference, plot_target

        target = plot_target(Path(path))
        if self._picture is None:
            raise InputError(
                f"the graphs are equal, so that the plot {path} has nothing to show; draw two that "
                "differ"
            )
        plot_difference(self._picture, target)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": SCHEMA,
            "equal": self.equal,
            "nodes": self.nodes,
            "differences": [
                {
                    "kind": d.kind,
                    "where": list(d.where),
                    "sentence": d.sentence,
                    "candidate": d.candidate,
                    "reference": d.reference,
                }
                for d in self.differences
            ],
            "parameters": self.values.parameters,
            "other_values": list(self.values.other),
            "cosmetic": [
                {"what": c.what, "candidate": c.candidate, "reference": c.reference}
                for c in self.cosmetic
            ],
            "notes": list(self.notes),
        }


def compare(candidate: PathLike, reference: PathLike) -> Comparison:
    """Compare the graphs of two ONNX files, of whatever tool.

    Equal means equal up to names of nodes and values, order of nodes, sharing and storage of
    constants, metadata, and the numbers that parameters hold. What opdf-compile exports says which
    constants are parameters; of other files it is guessed, and a note says so.

    Args:
        candidate: An ONNX file; sentences call it the candidate.
        reference: The other one, the reference.

    Raises:
        ArtefactError: A file is no valid ONNX model.

    Example:
        >>> found = compare("a.onnx", "b.onnx")  # doctest: +SKIP
        >>> found.equal, [str(difference) for difference in found.differences]  # doctest: +SKIP
    """
    found = compare_structure(ModelFile(candidate), ModelFile(reference))
    values = other_values(found)
    return Comparison(
        nodes=found.nodes,
        differences=found.differences,
        values=values,
        cosmetic=cosmetic_differences(found, values),
        notes=found.notes,
        _picture=found.picture,
    )
