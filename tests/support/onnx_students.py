"""ONNX files of several producers, each with inputs that it runs on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


@dataclass(frozen=True)
class Model:
    """A file, its inputs, and how many of its weights a plan must find."""

    path: Path
    inputs: dict[str, Tensor]
    matched: int
    fixed: Mapping[str, Any] = field(default_factory=dict)


def w(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    draw = np.random.default_rng(sum(shape))
    return (draw.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    tensors: Mapping[str, np.ndarray],
    *,
    opset: int,
    ir_version: int = 8,
    listed: bool = False,
) -> None:
    """Save a model; `listed` names the initialisers as inputs too, as files before IR 4 did."""
    infos = [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()]
    stored = [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    if listed:
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    ends = [helper.make_tensor_value_info(n, *t) for n, t in outputs.items()]
    graph = helper.make_graph(nodes, "g", infos, ends, stored)
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    helper.set_model_props(model, {"kept": "as it was"})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def old_gemm(folder: Path) -> Model:
    """Opset 7, IR 3: initialisers listed as inputs, transposed and scaled Gemms, typed fields."""
    nodes = [
        helper.make_node("Gemm", ["x", "a", "c"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b", "d"], ["y"], alpha=0.5, beta=2.0),
    ]
    tensors = {"a": w(16, 8), "c": w(16), "b": w(16, 6), "d": w(6)}
    path = folder / "old_gemm.onnx"
    inputs, outputs = {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 6])}
    write(path, nodes, inputs, outputs, tensors, opset=7, ir_version=3, listed=True)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "a":  # The typed field instead of raw bytes.
            values = numpy_helper.to_array(tensor).reshape(-1).tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    onnx.save_model(model, str(path))
    return Model(path, {"x": torch.randn(3, 8)}, 2)


def shared(folder: Path) -> Model:
    """One initialiser read by two nodes, once through a Transpose; odd names; a nested name."""
    nodes = [
        helper.make_node("MatMul", ["in:0", "w/shared"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Transpose", ["w/shared"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "wt"], ["u"]),
        helper.make_node("Add", ["u", "w"], ["v"]),
        helper.make_node("MatMul", ["v", "w.inner"], ["out.y"]),
    ]
    tensors = {"w/shared": w(8, 12), "w": w(8), "w.inner": w(8, 4)}
    path = folder / "shared.onnx"
    inputs, outputs = {"in:0": (FLOAT, ["N", "T", 8])}, {"out.y": (FLOAT, ["N", "T", 4])}
    write(path, nodes, inputs, outputs, tensors, opset=13)
    return Model(path, {"in_0": torch.randn(2, 5, 8)}, 2)


def constants(folder: Path) -> Model:
    """Weights in Constant nodes, an auto_pad Conv, and a Reshape that is computed from Shape."""
    made = {"k": w(6, 3, 3, 3), "l": w(24, 5)}
    nodes = [
        *(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            for name, array in made.items()
        ),
        helper.make_node("Conv", ["x", "k"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("HardSigmoid", ["c"], ["s"], alpha=0.25),
        helper.make_node("AveragePool", ["s"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["p"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["p", "wanted"], ["flat"]),
        helper.make_node("MatMul", ["flat", "l"], ["y"]),
    ]
    tensors = {"zero": np.array([0], np.int64), "rest": np.array([-1], np.int64)}
    path = folder / "constants.onnx"
    inputs, outputs = {"x": (FLOAT, ["N", 3, 8, 8])}, {"y": (FLOAT, ["N", 5])}
    write(path, nodes, inputs, outputs, tensors, opset=11, ir_version=6)
    return Model(path, {"x": torch.randn(2, 3, 8, 8)}, 2)


def half(folder: Path) -> Model:
    """float16 throughout, kept in int32_data; two outputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b", "c"], ["y"], transB=1),
    ]
    tensors = {"a": w(8, 16, dtype=np.float16), "b": w(4, 16, dtype=np.float16)}
    tensors["c"] = w(4, dtype=np.float16)
    path = folder / "half.onnx"
    inputs = {"x": (HALF, ["N", 8])}
    write(path, nodes, inputs, {"y": (HALF, ["N", 4]), "r": (HALF, ["N", 16])}, tensors, opset=17)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        bits = numpy_helper.to_array(tensor).view(np.uint16).reshape(-1).tolist()
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(bits)
    onnx.save_model(model, str(path))
    return Model(path, {"x": torch.randn(3, 8).half()}, 2)


def branches(folder: Path) -> Model:
    """An If on an input, with a weight in each branch."""
    graphs = {
        side: helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w_{side}"], [f"y_{side}"])],
            side,
            [],
            [helper.make_tensor_value_info(f"y_{side}", FLOAT, ["N", 16])],
            [numpy_helper.from_array(w(8, 16) * scale, f"w_{side}")],
        )
        for side, scale in (("then", 1), ("else", 3))
    }
    nodes = [
        helper.make_node("Equal", ["mode", "one"], ["is_one"]),
        helper.make_node(
            "If", ["is_one"], ["h"], then_branch=graphs["then"], else_branch=graphs["else"]
        ),
        helper.make_node("MatMul", ["h", "last"], ["y"]),
    ]
    path = folder / "branches.onnx"
    tensors = {"one": np.array(1, np.int64), "last": w(16, 4)}
    inputs = {"x": (FLOAT, ["N", 8]), "mode": (INT, [])}
    write(path, nodes, inputs, {"y": (FLOAT, ["N", 4])}, tensors, opset=16)
    return Model(path, {"x": torch.randn(3, 8), "mode": torch.tensor(1)}, 3)


class Cnn(nn.Module):
    """Convolutions of every kind, batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.nn.functional.hardswish(self.depthwise(x))
        return self.head(self.up(x).mean((2, 3)))


class Mlp(nn.Module):
    """Linear layers with a norm, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.second = nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.gelu(self.norm(self.first(x))))


def by_torch(folder: Path, name: str, module: nn.Module, x: Tensor, matched: int) -> Model:
    """By torch's present exporter, with a dynamic batch."""
    path = folder / f"{name}.onnx"
    (only,) = module.forward.__annotations__.keys() - {"return"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x,),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            dynamic_shapes={only: {0: torch.export.Dim.DYNAMIC}},
        )
    return Model(path, {only: x}, matched)


def by_torchscript(folder: Path, name: str, module: nn.Module, x: Tensor, opset: int) -> Model:
    """By torch's former exporter, which folds BatchNorm into the convolution before it."""
    path = folder / f"{name}_{opset}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}},
        )
    return Model(path, {"image": x}, 4 if isinstance(module, Cnn) else 2)


def cnn(folder: Path) -> Model:
    return by_torch(folder, "cnn", Cnn(), torch.randn(2, 3, 8, 8), 4)


def mlp(folder: Path) -> Model:
    return by_torch(folder, "mlp", Mlp(), torch.randn(2, 5, 8), 2)


def old_cnn(folder: Path) -> Model:
    return by_torchscript(folder, "old_cnn", Cnn(), torch.randn(2, 3, 8, 8), 14)


def old_mlp(folder: Path) -> Model:
    return by_torchscript(folder, "old_mlp", Mlp(), torch.randn(2, 5, 8), 11)


def bert(folder: Path) -> Model:
    """A small BERT of transformers: embeddings, attention, masks."""
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        # An argument of every configuration, which its signature does not name.
        **{"attn_implementation": "eager"},
    )
    module = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 50, (2, 7))
    mask = torch.ones_like(ids)
    path = folder / "bert.onnx"
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", min=2, max=32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (),
            str(path),
            kwargs={"input_ids": ids, "attention_mask": mask},
            dynamo=True,
            verbose=False,
            external_data=False,
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        )
    return Model(path, {"input_ids": ids, "attention_mask": mask}, 12)


QUICK: tuple[Callable[[Path], Model], ...] = (old_gemm, constants)
SLOW: tuple[Callable[[Path], Model], ...] = (
    *(shared, half, branches),
    *(cnn, mlp, old_cnn, old_mlp, bert),
)
_OCR = "rapidocr_onnxruntime/models"
_VAD = "silero_vad/data"
# Package, member, inputs, matched weights, numbers that are built in.
SHIPPED: tuple[tuple[str, str, dict[str, tuple[int, ...]], int, dict[str, int]], ...] = (
    (
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": (2, 3, 48, 96)},
        54,
        {},
    ),
    (
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
        {"x": (2, 3, 48, 64)},
        47,
        {},
    ),
    (
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
        {"x": (2, 3, 64, 64)},
        64,
        {},
    ),
    (
        "silero-vad",
        f"{_VAD}/silero_vad_16k_sequence.onnx",
        {"input": (5, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
        6,
        {},
    ),
    (
        "silero-vad",
        f"{_VAD}/silero_vad_op18_ifless.onnx",
        {"input": (2, 576), "state": (2, 2, 128)},
        8,
        {"sr": 16000},
    ),
    (
        "silero-vad",
        f"{_VAD}/silero_vad_half.onnx",
        {"input": (2, 576), "state": (2, 2, 128)},
        6,
        {},
    ),
    (
        "silero-vad",
        f"{_VAD}/silero_vad_16k_op15.onnx",
        {"input": (2, 576), "state": (2, 2, 128)},
        6,
        {"sr": 16000},
    ),
    (
        "silero-vad",
        f"{_VAD}/silero_vad.onnx",
        {"input": (2, 576), "state": (2, 2, 128)},
        6,
        {"sr": 16000},
    ),
)
