"""Files that are refused before anything in them is believed, each small and harmless.

Safetensors headers, `.npz` arrays, configurations of `hf:` folders and ONNX models: how each is
written, the function that must refuse it, and a part of the sentence.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from refused_texts import Refused, raising

from opdf_compile.artefacts import onnx_calls as calls
from opdf_compile.artefacts import onnx_file as files
from opdf_compile.files import arrays
from opdf_compile.io.screening import header, hf

Written = Callable[[Path], Refused]


def file_of(check: Callable[[Path], object], name: str, data: bytes) -> Callable[[Path], Any]:
    """The check of one file with these bytes, in a folder that comes later."""

    def make(folder: Path) -> Callable[[], object]:
        (folder / name).write_bytes(data)
        return partial(check, folder / name)

    return make


def row(make: Callable[[Path], Any], words: str, limits: dict[Any, Any] | None = None) -> Written:
    return lambda folder: Refused(make(folder), words, limits or {})


def safetensors(entries: Any, data: int = 8, *, length: int | None = None) -> Any:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    head = (len(text) if length is None else length).to_bytes(8, "little")
    return file_of(header.check_header, "a.safetensors", head + text + bytes(data))


def tensor(begin: int, end: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADERS: dict[str, Written] = {
    "half a length": row(
        file_of(header.check_header, "a.safetensors", b"\x01\0"), "cut short or no safetensors"
    ),
    "longer than the file": row(safetensors({}, 0, length=3), "its header claims 3 bytes"),
    "longer than is read": row(
        safetensors({}, 0),
        "claims 2 bytes, at most 1 are read",
        {(header, "LARGEST_HEADER"): 1},
    ),
    "other letters": row(safetensors(b'{"\xff":1}'), "its header is not UTF-8"),
    "half a header": row(safetensors(b'{"a"'), "its header is no JSON"),
    "a list": row(safetensors(b"[]"), "its header is a list"),
    "a name twice": row(safetensors(b'{"a":1,"a":2}'), "the name 'a' comes twice"),
    "metadata that is a list": row(safetensors({"__metadata__": [1]}), "its metadata is a list"),
    "metadata of numbers": row(
        safetensors({"__metadata__": {"x": 1}}), "its metadata 'x' is no text"
    ),
    "a tensor without offsets": row(safetensors({"a": {"dtype": "F32"}}), "has no dtype, shape"),
    "an unknown dtype": row(safetensors({"a": tensor(0, 8, dtype="X9")}), "unknown dtype 'X9'"),
    "a shape of texts": row(safetensors({"a": tensor(0, 8, ["2"])}), "no list of sizes"),
    "a negative offset": row(safetensors({"a": tensor(-8, 0)}), "no two numbers from 0 up"),
    "swapped offsets": row(safetensors({"a": tensor(8, 0)}), "before it begins at 8"),
    "another shape": row(safetensors({"a": tensor(0, 8, [3])}), "its shape and dtype want 12"),
    "an overlap": row(
        safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, 12), "overlaps another one"
    ),
    "a gap": row(safetensors({"a": tensor(0, 8), "b": tensor(12, 20)}, 20), "leaves a gap"),
    "bytes of nobody": row(safetensors({"a": tensor(0, 8)}, 9), "holds 9 bytes of data"),
    "deeper than Python holds": row(
        safetensors({}), "nested without end", {(json, "loads"): raising(RecursionError)}
    ),
    "a folder": row(lambda folder: partial(header.check_header, folder), "."),
}


def folder_of(config: Any, **more: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Callable[[], object]:
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in more.items():
            (folder / name.replace("_json", ".json")).write_text(text)
        return partial(hf.screen_folder, folder, "hf:folder")

    return make


CONFIGURATIONS: dict[str, Written] = {
    "another configuration": row(
        folder_of({"configuration_files": ["config.1.json"]}), "names another configuration"
    ),
    "other weights": row(
        folder_of({"a": {"transformers_weights": "own.bin"}}), "names another file of weights"
    ),
    "quantised weights": row(
        folder_of({"quantization_config": {"bits": 4}}), "that of a quantised model"
    ),
    "a kernel": row(folder_of({"_attn_implementation": "org/kernel"}), "names a kernel"),
    "a kernel of a part": row(
        folder_of({"parts": [{"attn_implementation": {"": "org/kernel"}}]}), "names a kernel"
    ),
    "a large number": row(
        folder_of({"vocab_size": 101}), "at most 100 is read", {(hf, "LARGEST_CONFIG_NUMBER"): 100}
    ),
    "many layers": row(
        folder_of({"num_hidden_layers": 3}), "at most 2 are built", {(hf, "MOST_LAYERS"): 2}
    ),
    "an adapter": row(folder_of({}, adapter_config_json="{}"), "holds an adapter"),
    "a list": row(folder_of([]), "holds a list"),
    "more text than is read": row(
        folder_of({"a": 1}), "at most 4 are read", {(hf, "LARGEST_CONFIG"): 4}
    ),
}


def npz(
    *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED
) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        with zipfile.ZipFile(folder / "a.npz", "w", method) as archive:
            for place, (name, data) in enumerate(entries):
                archive.writestr(f"{place}", b"") if not name else archive.writestr(name, data)
        return partial(arrays.read_npz, folder / "a.npz")

    return make


def array(shape: str, data: bytes = b"", descr: str = "'<f4'", version: int = 1) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + len(head).to_bytes(2, "little") + head + data


ARRAYS: dict[str, Written] = {
    "more arrays than are read": row(
        npz(("a.npy", array("()", bytes(4))), ("b.npy", array("()", bytes(4)))),
        "holds 2 arrays, at most 1",
        {(arrays, "_MOST_ARRAYS"): 1},
    ),
    "more bytes than are read": row(
        npz(("a.npy", array("(9,)", bytes(36)))),
        "would unpack to .* bytes, at most 8",
        {(arrays, "LARGEST_BYTES"): 8},
    ),
    "far more than the file": row(
        npz(("a.npy", array("(999,)", bytes(3996))), method=zipfile.ZIP_DEFLATED),
        "more than 2 times the file",
        {(arrays, "MOST_INFLATION"): 2, (arrays, "_SMALL"): 8},
    ),
    "a name twice": row(
        npz(("a.npy", array("()", bytes(4)))),
        "two of its arrays have one name",
        {(zipfile.ZipFile, "infolist"): lambda _: [zipfile.ZipInfo("a.npy")] * 2},
    ),
    "no array": row(npz(("a.py", b"1")), "'a.py' is no array"),
    "another version": row(npz(("a.npy", array("()", bytes(4), version=3))), "unknown version"),
    "objects": row(npz(("a.npy", array("()", b"N.", "'|O'"))), "holds objects"),
    "a shape above its bytes": row(npz(("a.npy", array("(3,)", bytes(8)))), "claims 12 bytes"),
    "a long element": row(npz(("a.npy", array("(1,)", bytes(8), "'|V9'"))), "claims 9 bytes"),
    "bytes for an array": row(
        npz(("a.npy", array("()", bytes(4)))),
        "'a' is no array",
        {(np.lib.npyio.NpzFile, "__getitem__"): lambda *_: b"bytes"},
    ),
}


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(tensors))
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=sets, functions=list(functions), ir_version=8)


def product(weight: onnx.TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def weight(dims: Sequence[int] = (8, 8), data: bytes | None = None, kind: int = 1) -> Any:
    made = onnx.TensorProto(name="w", data_type=kind, dims=dims)
    if data is not None:
        made.raw_data = data
    return made


def whole() -> onnx.ModelProto:
    return product(numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))


def function(name: str, *called: str) -> onnx.FunctionProto:
    """A function of the domain `own` that is a row of other functions."""
    names = ["a", *(f"t{place}" for place in range(1, len(called))), "b"]
    nodes = [
        helper.make_node(call, [names[place]], [names[place + 1]], domain="own")
        for place, call in enumerate(called)
    ]
    return helper.make_function("own", name, ["a"], ["b"], nodes, [helper.make_opsetid("own", 1)])


def unfolding() -> onnx.ModelProto:
    """Three calls of a function of two nodes: nine nodes."""
    nodes = [
        helper.make_node("pair", [a], [b], domain="own")
        for a, b in zip(("x", "s", "t"), ("s", "t", "y"), strict=True)
    ]
    return model(nodes, (), [function("pair", "Relu", "Relu")])


def loaded(made: onnx.ModelProto | bytes) -> Callable[[Path], Callable[[], object]]:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    return file_of(files.read_onnx, "m.onnx", data)


def cut() -> bytes:
    data: bytes = whole().SerializeToString()
    return data[: len(data) // 2]


def opset(version: int) -> onnx.ModelProto:
    made = whole()
    made.opset_import[0].version = version
    return made


def circle() -> onnx.ModelProto:
    return model(
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    )


def external(
    location: str, load: Callable[[Path], object] = files.read_onnx, **entries: Any
) -> Callable[[Path], Callable[[], object]]:
    """A model in a folder of its own, whose weight is in another file."""

    def make(folder: Path) -> Callable[[], object]:
        home = folder / "models"
        home.mkdir()
        beside = folder / "beside.bin"
        beside.write_bytes(bytes(256))
        (home / "own.bin").write_bytes(bytes(16))
        (home / "soft.bin").symlink_to(beside)
        os.link(beside, home / "hard.bin")
        found = weight()
        found.data_location = TensorProto.EXTERNAL
        place = str(beside) if location == "absolute" else location
        for key, value in {"location": place, **entries}.items():
            found.external_data.add(key=key, value=str(value))
        (home / "m.onnx").write_bytes(product(found).SerializeToString())
        return partial(load, home / "m.onnx")

    return make


ONNX: dict[str, Written] = {
    "half a file": row(loaded(cut()), "is not an ONNX model or is truncated|is not a whole ONNX"),
    "no graph": row(loaded(b"\x08\x07"), "is not a whole ONNX model"),
    "no operator set": row(loaded(opset(0)), "asks for version 0"),
    "a shape without data": row(loaded(product(weight())), "has 0 values, its shape"),
    "a negative size": row(loaded(product(weight((-1, 8), bytes(256)))), "has the shape"),
    "data cut short": row(loaded(product(weight((8, 8), bytes(200)))), "has 200 bytes, its shape"),
    "an unknown element": row(loaded(product(weight((8, 8), bytes(8), 99))), "element type 99"),
    "an unknown element without data": row(
        loaded(product(weight((8, 8), None, 99))), "element type 99"
    ),
    "values that wait for each other": row(loaded(circle()), "has a cycle"),
    "more nodes than are read": row(
        loaded(unfolding()), "its functions unfold to 9 nodes", {(calls, "MOST_NODES"): 8}
    ),
    # The order of calls alone: no file holds such a function.
    "a function in its own calls": row(
        lambda folder: (
            lambda: list(
                calls._callees_first(
                    {("own", "f", ""): [helper.make_node("f", ["a"], ["b"], domain="own")]},
                    folder / "m.onnx",
                )
            )
        ),
        "'f' calls itself",
    ),
    "a file that cannot be read": row(
        loaded(whole()), "cannot be read|cannot read", {(Path, "read_bytes"): raising(OSError)}
    ),
    "data that onnx cannot read": row(
        external("own.bin", files.read_onnx_with_data),
        "cannot read the data of 'w'",
        {(external_data_helper, "load_external_data_for_tensor"): raising(ValueError)},
    ),
    "data without a name": row(external(""), "which is no file name"),
    "data in memory": row(external(files._IN_MEMORY), "an address in memory"),
    "data above": row(external("../beside.bin"), "outside the model's folder"),
    "data at an absolute name": row(external("absolute"), "outside the model's folder"),
    "data by a link": row(external("soft.bin"), "through a symbolic link"),
    "data by a hard link": row(external("hard.bin"), "a hard link to another file"),
    "data that is gone": row(external("gone.bin"), "which is not there"),
    "data that is too short": row(external("own.bin", length=17), "that file has 16 bytes"),
    "data before the file": row(external("own.bin", offset=-8), "at bytes -8 to"),
    "data at a word": row(external("own.bin", offset="later"), "that is no number"),
}
WRITTEN: dict[str, Written] = {
    f"{kind}: {name}": made
    for kind, table in (
        ("safetensors", HEADERS),
        ("configuration", CONFIGURATIONS),
        ("npz", ARRAYS),
        ("onnx", ONNX),
    )
    for name, made in table.items()
}
