"""The graphs that the runtime really runs, compared after its own optimisation.

The runtime folds by value too (a Mul with 1.0 disappears), so the candidate's parameters are put
into both graphs first. What is left to differ is what the runtime made of node order and sharing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts import read_onnx
from opdf_compile.errors import InternalError
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.runtime.sessions import Device, create_session, session_options
from opdf_compile.parity.structure.compare import Comparison, StructureResult, compare_models
from opdf_compile.parity.structure.graph_view import Node, Value
from opdf_compile.parity.structure.linking import build_view

if TYPE_CHECKING:
    import onnx

# Protobuf ends at 2 GiB. The constants of larger models go to a file beside the model.
_LARGEST_INLINE = 1 << 30


def compare_optimised(raw: Comparison, candidate: PathLike, device: Device) -> StructureResult:
    """Compare two files of one structure after ONNX Runtime's optimisation for one provider.

    Args:
        raw: The comparison of the files, which found no difference.
        candidate: The file that is to ship.
        device: The provider whose optimisations run.

    Returns:
        The verdict on the optimised graphs, all constants compared by value.

    Raises:
        ArtefactError: The runtime refuses a file.
        DeviceError: The provider cannot be used, or lacks an operator.
        InternalError: The raw graphs differ, so that the nodes of one have no partners.
    """
    if raw.differences:
        raise InternalError("graphs that differ already were to be compared after optimisation")
    with tempfile.TemporaryDirectory(prefix="opdf-verify-") as folder:
        place = Path(folder)
        reference = _write(_with_candidate_values(raw), place / "reference.onnx")
        optimised = [
            _optimise(Path(candidate), place / "candidate.optimised.onnx", device),
            _optimise(reference, place / "reference.optimised.onnx", device),
        ]
        return compare_models(optimised[0], optimised[1], (folder, folder)).result()


def _with_candidate_values(raw: Comparison) -> onnx.ModelProto:
    """The reference's model with the candidate's constants in place of its own.

    The reference may share one initialiser where the candidate has two, so each operand is given
    what the candidate's matched node has there.
    """
    import onnx

    reference = onnx.ModelProto()
    reference.CopyFrom(raw.reference.model)
    folder = raw.reference.main.folder
    # The copy is linked in the same order, and so tells which of its nodes is which.
    copies = build_view(reference, folder).nodes
    protos = {node: copy.proto for node, copy in zip(raw.reference.nodes, copies, strict=True)}
    _embed(reference.graph, folder)
    added: dict[int, onnx.TensorProto] = {}
    for c_node, r_node in raw.walk.nodes.items():
        if _in_function(r_node):
            continue
        for place, (c, r) in enumerate(zip(c_node.inputs, r_node.inputs, strict=True)):
            tensor = _replacement(c, r, added)
            if tensor is not None:
                protos[r_node].input[place] = tensor.name
    replaced = {}
    for c, r in zip(raw.candidate.main.outputs, raw.reference.main.outputs, strict=True):
        tensor = _replacement(c, r, {})
        if tensor is not None:
            tensor.name = r.name
            replaced[r.name] = tensor
    _swap_initialisers(reference.graph, replaced, added.values())
    return reference


def _replacement(c: Value, r: Value, added: dict[int, onnx.TensorProto]) -> onnx.TensorProto | None:
    """The candidate's tensor for an operand, under a new name; None where none is needed."""
    import onnx

    constant = c.constant
    # A default of an input is no constant: the caller may give another value.
    if constant is None or r.constant is None or c.scope or r.scope:
        return None
    if not isinstance(constant.proto, onnx.TensorProto):
        return None
    if id(constant) not in added:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(constant.proto)
        tensor.name = f"opdf.candidate.{len(added)}"
        _read_in(tensor, constant.folder)
        added[id(constant)] = tensor
    return added[id(constant)]


def _in_function(node: Node) -> bool:
    """Whether a node stands in a local function, which cannot see the graph's initialisers."""
    scope = node.scope
    while scope.parent is not None:
        scope = scope.parent
    return scope.function is not None


def _swap_initialisers(
    graph: onnx.GraphProto,
    replaced: dict[str, onnx.TensorProto],
    added: Iterable[onnx.TensorProto],
) -> None:
    """Drop what is no longer read, then add the candidate's tensors."""
    read = {info.name for info in (*graph.output, *graph.input)}
    graphs = [graph]
    while graphs:
        inner = graphs.pop()
        read.update(info.name for info in inner.output)
        for node in inner.node:
            read.update(node.input)
            for attribute in node.attribute:
                graphs.extend(attribute.graphs)
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
    kept = [t for t in graph.initializer if t.name in read and t.name not in replaced]
    kept += [t for name, t in replaced.items() if name in read]
    kept += added
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _embed(graph: onnx.GraphProto, folder: str) -> None:
    for tensor in graph.initializer:
        _read_in(tensor, folder)


def _read_in(tensor: onnx.TensorProto, folder: str) -> None:
    from onnx import external_data_helper as external

    if external.uses_external_data(tensor):
        external.load_external_data_for_tensor(tensor, folder)


def _write(model: onnx.ModelProto, path: Path) -> Path:
    import onnx

    large = model.ByteSize() > _LARGEST_INLINE
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data")
    return path


def _optimise(source: Path, target: Path, device: Device) -> onnx.ModelProto:
    """Let the runtime load a file, checked before, and write down the graph that it will run."""
    options = session_options(optimisation="all")
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{target.name}.data"
    )
    create_session(str(source), device, options, str(source))
    return read_onnx(target)
