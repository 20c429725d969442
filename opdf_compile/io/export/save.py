"""An ONNX model on disk: one file below 2 GB, above it one more file with the weights beside it."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.errors import ExportError, first_line
from opdf_compile.files import atomic_write

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# A protobuf message ends at 2 GiB; the graph itself needs some of that.
SINGLE_FILE_BYTES = 2_000_000_000


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initialisers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def data_path(path: Path) -> Path:
    """Where the weights of a model lie that is too large for one file."""
    return path.with_name(f"{path.name}.data")


def stage(
    model: ir.Model | onnx.ModelProto,
    path: Path,
    stack: ExitStack,
    *,
    limit: int = SINGLE_FILE_BYTES,
) -> Path:
    """Write a checked model under a temporary name; it becomes `path` when `stack` closes.

    Args:
        model: What to write.
        path: The final ``.onnx`` path, in an existing folder.
        stack: Closes the temporary files: on success they are renamed, on failure removed.
        limit: Above this many bytes of weights they go to a file of their own.

    Returns:
        The temporary file, to be read for its hash.

    Raises:
        ExportError: The model does not pass ONNX's own checker.
        ArtefactError: The path cannot be written.
    """
    import onnx
    import onnx_ir as ir

    if isinstance(model, onnx.ModelProto):
        # An ONNX student's own file, byte for byte but for its weights: as valid as it came.
        temporary = stack.enter_context(atomic_write(path))
        temporary.write_bytes(model.SerializeToString())
        return temporary
    if weight_bytes(model) > limit:
        return _stage_in_two(model, path, stack)
    proto = ir.serde.serialize_model(model)
    _check(proto)
    temporary = stack.enter_context(atomic_write(path))
    onnx.save_model(proto, str(temporary))
    return temporary


def _stage_in_two(model: ir.Model, path: Path, stack: ExitStack) -> Path:
    import onnx_ir as ir

    # The stack closes in reverse: the weights are renamed first, then the model that needs them.
    temporary = stack.enter_context(atomic_write(path))
    weights = stack.enter_context(atomic_write(data_path(path)))
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}."))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    ir.save(model, folder / path.name, external_data=data_path(path).name)
    _check(str(folder / path.name))
    (folder / data_path(path).name).replace(weights)
    (folder / path.name).replace(temporary)
    return temporary


def _check(model: object) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)  # type: ignore[arg-type]
    except onnx.checker.ValidationError as error:
        reason = first_line(error)
        raise ExportError(
            f"the exporter made a file that ONNX's checker rejects ({reason}), wanted a valid "
            "model; try another --opset"
        ) from error
