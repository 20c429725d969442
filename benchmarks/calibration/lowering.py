"""ExecuTorch runs no ONNX file: what stands in a pair's files is lowered beside them.

The file is read as a student is (`opdf_compile.io.load_model`), so that each pair is the same for
ExecuTorch as for the others: the same graph, with the same change in it.
"""

from __future__ import annotations

from pathlib import Path

from opdf_compile.artefacts import check_path, read_check
from opdf_compile.artefacts.pte_file import pte_path
from opdf_compile.files import sha256
from opdf_compile.graph import trace
from opdf_compile.io import load_model
from opdf_compile.io.export.pte import lowered

NAME = "executorch"
# By the program's place, the hash of the file that it was made of.
_made: dict[Path, str] = {}


def lower(file: Path) -> None:
    """Write the program of an ONNX file, unless it is there."""
    found, place = sha256(file), pte_path(file)
    if _made.get(place) == found and place.exists():
        return
    model = load_model(str(file))
    traced = trace(model.model, model.args, model.kwargs, dynamic=model.dynamic, phases=("eval",))
    place.write_bytes(lowered(traced, read_check(check_path(file)), found))
    _made[place] = found
