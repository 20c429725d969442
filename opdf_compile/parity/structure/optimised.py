"""The graphs that the runtime really runs, compared after its own optimisation.

The runtime folds by value too (a Mul with 1.0 disappears), so the candidate's parameters are put
into both graphs first. What is left to differ is what the runtime made of node order and sharing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from opdf_compile.artefacts import Node, Value, link, read_onnx
from opdf_compile.errors import InternalError
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.structure.compare import StructureResult, compare_models

if TYPE_CHECKING:
    import onnx

# By name, a tensor and the folder of the file that it comes from.
Tensors = dict[str, tuple["onnx.TensorProto", str]]

# In larger files, larger values go to a file beside the model, each where an array may begin.
_VALUES, _LARGEST_INLINE, _ALIGNMENT = "values.data", 1 << 10, 64
_LARGEST_WHOLE = 1 << 28


def compare_optimised(raw: StructureResult, candidate: PathLike, device: Device) -> StructureResult:
    """Compare two files of one structure after a runtime's optimisation for one device.

    All constants are compared by value, parameters too.

    Raises:
        ArtefactError: The runtime refuses a file.
        DeviceError: The provider cannot be used, or lacks an operator.
        InternalError: The raw graphs differ, so that the nodes of one have no partners.
    """
    if raw.differences:
        raise InternalError("graphs that differ already were to be compared after optimisation")
    with tempfile.TemporaryDirectory(prefix="opdf-verify-") as folder:
        place = Path(folder)
        reference = place / "reference.onnx"
        reference.write_bytes(_with_candidate_values(raw, place).SerializeToString())
        written = [place / "candidate.optimised.onnx", place / "reference.optimised.onnx"]
        for source, target in zip((candidate, reference), written, strict=True):
            device.runtime.write_graph(source, target, device)
        ours, theirs = map(read_onnx, written)
        return compare_models(ours, theirs, folder)


def _with_candidate_values(raw: StructureResult, home: Path) -> onnx.ModelProto:
    """The reference's model, to lie in a folder, with the candidate's constants for its own.

    The reference may share one initialiser where the candidate has two, so each operand is given
    what the candidate's matched node has there.
    """
    source, folder = raw.reference.proto, raw.reference.main.folder
    reference = without_weights(source)
    # The copy is linked in the same order, and so tells which of its nodes is which.
    copies = link(reference, folder).nodes
    protos = {node: copy.proto for node, copy in zip(raw.reference.nodes, copies, strict=True)}
    names: dict[int, str] = {}
    added: Tensors = {}
    # What is still read under its own name; a weight that is not would double the file. One that an
    # old file lists as an input would be an input without it.
    kept = {value.name for graph in raw.reference.graphs for value in graph.outputs}
    kept.update(info.name for info in source.graph.input)
    # A node that unpacks a weight may have no partner of its own: the candidate's has several.
    partners = set(raw.walk.nodes.values())
    kept.update(v.name for n in raw.reference.nodes if n not in partners for v in n.inputs)
    for c_node, r_node in raw.walk.nodes.items():
        if _in_function(r_node):
            continue
        for place, (c, r) in enumerate(zip(c_node.inputs, r_node.inputs, strict=True)):
            found = _replacement(c, r)
            if found is None:
                kept.add(r.name)
            else:
                name = names.setdefault(id(c.constant), f"opdf.candidate.{len(names)}")
                added[name] = found
                protos[r_node].input[place] = name
    own: Tensors = {tensor.name: (tensor, folder) for tensor in source.graph.initializer}
    for c, r in zip(raw.candidate.main.outputs, raw.reference.main.outputs, strict=True):
        found = _replacement(c, r)
        if found is not None and r.name in own:
            own[r.name] = found
    _fill(reference.graph, {name: own[name] for name in own if name in kept} | added, home)
    return reference


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose initialisers are names alone, because weights may be large."""
    import onnx

    parts = {field.name: value for field, value in model.graph.ListFields()}
    parts["initializer"] = [onnx.TensorProto(name=t.name) for t in model.graph.initializer]
    whole = {field.name: value for field, value in model.ListFields()}
    whole["graph"] = onnx.GraphProto(**parts)
    return onnx.ModelProto(**whole)


def _replacement(c: Value, r: Value) -> tuple[onnx.TensorProto, str] | None:
    """The candidate's tensor for an operand and its file's folder; None where none is needed."""
    import onnx

    constant = c.constant
    # A default of an input is no constant: the caller may give another value.
    if constant is None or r.constant is None or c.input_of or r.input_of:
        return None
    if not isinstance(constant.proto, onnx.TensorProto):
        return None
    return constant.proto, constant.graph.folder


def _in_function(node: Node) -> bool:
    """Whether a node stands in a local function, which cannot see the graph's initialisers."""
    graph = node.graph
    while graph.parent is not None:
        graph = graph.parent
    return graph.function is not None


def _fill(graph: onnx.GraphProto, tensors: Tensors, home: Path) -> None:
    """Make these the initialisers, with large values in files of the folder.

    Files that hold values already are copied, not read: they may have more gigabytes than the
    machine has memory. Protobuf would take each value twice, and ends at 2 GiB.
    """
    copies: dict[Path, str] = {}
    # Not every runtime takes a file whose values lie beside it.
    apart = sum(tensor.ByteSize() for tensor, _ in tensors.values()) > _LARGEST_WHOLE
    del graph.initializer[:]
    with (home / _VALUES).open("wb") as values:
        for name, (tensor, folder) in tensors.items():
            own = graph.initializer.add()
            if apart and tensor.ByteSize() > _LARGEST_INLINE and tensor.raw_data:
                own.data_type = tensor.data_type
                own.dims.extend(tensor.dims)
                _put_beside(own, tensor.raw_data, values)
            else:
                own.CopyFrom(tensor)
                _copy_beside(own, folder, home, copies)
            own.name = name


def _copy_beside(
    tensor: onnx.TensorProto, folder: str, home: Path, copies: dict[Path, str]
) -> None:
    """Copy the file that holds a tensor's values, once, and name the copy."""
    for entry in tensor.external_data:
        if entry.key == "location":
            source = Path(folder, entry.value)
            if source not in copies:
                copies[source] = f"copy-{len(copies)}.data"
                shutil.copyfile(source, home / copies[source])
            entry.value = copies[source]


def _put_beside(tensor: onnx.TensorProto, data: bytes, values: BinaryIO) -> None:
    """Append a tensor's bytes to a file and say where they are."""
    import onnx

    values.write(bytes(-values.tell() % _ALIGNMENT))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": _VALUES, "offset": values.tell(), "length": len(data)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    values.write(data)
