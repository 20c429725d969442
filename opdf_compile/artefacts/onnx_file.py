"""Reading an ONNX file that nobody vouches for: parsed and checked before the runtime sees it.

The runtime follows a hard link out of the model's folder and reports a broken file in its own
words, so the file is parsed with onnx and every external tensor is located here first.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_calls import check_calls
from opdf_compile.artefacts.onnx_nodes import graphs_in
from opdf_compile.artefacts.wholeness import check_whole
from opdf_compile.errors import ArtefactError
from opdf_compile.files import existing_file, read_failure

if TYPE_CHECKING:
    import onnx

# onnxruntime takes the offset of such a tensor for a pointer.
_IN_MEMORY = "_ORT_MEM_ADDR_"


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Parse an ONNX file; external tensors are located and measured, but not read.

    Returns:
        The model; its external tensors still point into the file's folder.

    Raises:
        ArtefactError: No such file, empty, truncated or no ONNX model, or external data that is
            missing, too short, or outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    file = existing_file(path, wanted="an ONNX model")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(file.read_bytes())
    except DecodeError as error:
        raise ArtefactError(
            f"{file} is not an ONNX model or is truncated ({error}); export it again"
        ) from error
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    # Short or unlucky bytes parse as a message with nothing in it; a cut between two fields does
    # too, and the operator sets come after the graph.
    missing = [
        words
        for words, absent in (
            ("graph", not model.HasField("graph")),
            ("IR version", model.ir_version <= 0),
            ("operator sets", not model.opset_import),
        )
        if absent
    ]
    if missing:
        raise ArtefactError(
            f"{file} is not a whole ONNX model (no {', no '.join(missing)} found); export it again"
        )
    check_calls(model, file)
    inside: list[onnx.TensorProto] = []
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, file)
        else:
            inside.append(tensor)
    check_whole(model, inside, file)
    return model


def read_onnx_with_data(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Parse an ONNX file and read its external tensors into the model.

    Raises:
        ArtefactError: As `read_onnx`.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    model = read_onnx(path)
    external = onnx.TensorProto.EXTERNAL
    for tensor in [found for found in _tensors(model) if found.data_location == external]:
        try:
            load_external_data_for_tensor(tensor, str(Path(path).parent))
        # onnx raises its own ValidationError, ValueError or OSError; all are about the file.
        except (ValueError, OSError, RuntimeError) as error:
            raise ArtefactError(
                f"cannot read the data of {tensor.name!r} of {path}: {error}; export it again"
            ) from error
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor: initialisers and attributes, at any depth."""
    import onnx

    holders: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while holders:
        holder = holders.pop()
        # A function has no initialisers; its attributes have defaults.
        lists = [node.attribute for node in holder.node]
        if isinstance(holder, onnx.GraphProto):
            yield from holder.initializer
            yield from _parts(holder.sparse_initializer)
        else:
            lists.append(holder.attribute_proto)
        for attribute in itertools.chain.from_iterable(lists):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _parts([attribute.sparse_tensor])
            yield from _parts(attribute.sparse_tensors)
            holders.extend(graphs_in(attribute))


def _parts(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def _check_external(tensor: onnx.TensorProto, file: Path) -> None:
    """Refuse external data that does not lie, whole and unlinked, in the model's own folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"{file} keeps the data of {tensor.name!r} in {location!r}"
    remedy = "; data must be a plain file in the model's folder, so export it again"
    if not location or "\0" in location:
        raise ArtefactError(f"{what}, which is no file name{remedy}")
    if _IN_MEMORY in location:
        raise ArtefactError(f"{what}, which means an address in memory to the runtime{remedy}")
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts:
        raise ArtefactError(f"{what}, outside the model's folder{remedy}")
    folder = file.parent.resolve()
    data = folder / relative
    # A symbolic link may point anywhere and a hard link may be another user's secret; neither is
    # visible in the path.
    if data.resolve() != data:
        raise ArtefactError(f"{what}, which leads elsewhere through a symbolic link{remedy}")
    if not data.is_file():
        raise ArtefactError(f"{what}, which is not there{remedy}")
    status = data.stat()
    if status.st_nlink > 1:
        raise ArtefactError(f"{what}, which is a hard link to another file{remedy}")
    _check_extent(entries, status.st_size, what, remedy)


def _check_extent(entries: dict[str, str], size: int, what: str, remedy: str) -> None:
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or max(size - offset, 0))
    except ValueError as error:
        raise ArtefactError(f"{what} at an offset that is no number{remedy}") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ArtefactError(
            f"{what} at bytes {offset} to {offset + length}, but that file has {size} bytes{remedy}"
        )
