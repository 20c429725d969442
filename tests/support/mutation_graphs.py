"""Six small students of six kinds, exported once per session: what the mutations are applied to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import check_path, read_check, write_check
from opdf_compile.files.atomic import sha256
from opdf_compile.io.torchvision_shim import prepare_torchvision

Exports = Callable[[str], Path]
Example = tuple[Tensor, ...] | dict[str, Tensor]


class Detector(nn.Module):
    """A backbone, a resized pyramid, sliced boxes, a branch on a value and a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.across = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 6, 1)
        self.refine = nn.Linear(4, 4)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        fine = nn.functional.relu6(self.norm(self.stem(pixels)))
        coarse = torch.clamp(self.down(fine), -1.5, 1.5)
        up = nn.functional.interpolate(self.across(coarse), scale_factor=2.0, mode="bilinear")
        raw = self.head(fine - up).flatten(2).transpose(1, 2)
        boxes, scores = raw[..., :4], raw[..., 4:]
        corners = torch.cat((boxes[..., :2] - boxes[..., 2:].exp(), boxes[..., 2:]), -1)
        corners = torch.cond(
            scores.mean() > 0, lambda v: self.refine(v).tanh(), lambda v: v - 0.5, (corners,)
        )
        return {"boxes": corners, "scores": scores.softmax(-1), "best": scores.argmax(1)}


def _resnet() -> tuple[nn.Module, Example]:
    from timm.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16))
    return model, (torch.randn(2, 3, 32, 32),)


def _mobilenet() -> tuple[nn.Module, Example]:
    import timm

    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    return model, (torch.randn(2, 3, 32, 32),)


def _vit() -> tuple[nn.Module, Example]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    return model, (torch.randn(2, 3, 16, 16),)


def _bert() -> tuple[nn.Module, Example]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    ids = torch.randint(0, 64, (2, 8))
    return BertForSequenceClassification(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _llama() -> tuple[nn.Module, Example]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
        use_cache=False,
    )
    return LlamaForCausalLM(config), {"input_ids": torch.randint(0, 64, (2, 8))}


def _detector() -> tuple[nn.Module, Example]:
    return Detector(), (torch.randn(2, 3, 16, 16),)


GRAPHS: dict[str, Callable[[], tuple[nn.Module, Example]]] = {
    "detector": _detector,
    "resnet": _resnet,
    "bert": _bert,
    "vit": _vit,
    "mobilenet": _mobilenet,
    "llama": _llama,
}


def export(name: str, path: Path) -> Path:
    """Export one student with its check data; no parameter is zero or one, as after training."""
    prepare_torchvision()
    torch.manual_seed(0)
    model, example = GRAPHS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    opdf.export_onnx(model.eval(), example, path)
    if name == "detector":
        model_proto = onnx.load(path)
        _add_loop(model_proto)
        _add_function(model_proto)
        onnx.checker.check_model(model_proto)
        path.write_bytes(model_proto.SerializeToString())
        claim_check_data(path, check_path(path))
    return path


def claim_check_data(onnx_path: Path, check: Path) -> Path:
    """Write check data beside a file as if it were its own, so that the numbers must judge it."""
    own = check_path(onnx_path)
    write_check(own, dataclasses.replace(read_check(check), onnx_sha256=sha256(onnx_path)))
    return own


def _add_loop(model: onnx.ModelProto) -> None:
    """Scores become (scores - 0.5), to which a loop adds 0.25 twice: the same numbers."""
    graph = model.graph
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    name = softmax.output[0]
    softmax.output[0] = f"{name}.raw"
    for key, value in (("half", np.float32(0.5)), ("trips", np.int64(2))):
        graph.initializer.append(numpy_helper.from_array(np.array(value), key))
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["carried", "quarter"], ["grown"], "grow"),
        ],
        "body",
        [
            info("trip", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("carried", TensorProto.FLOAT, None),
        ],
        [info("again", TensorProto.BOOL, []), info("grown", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(0.25, np.float32), "quarter")],
    )
    place = list(graph.node).index(softmax) + 1
    shift = helper.make_node("Sub", [f"{name}.raw", "half"], [f"{name}.low"], "shift")
    loop = helper.make_node("Loop", ["trips", "", f"{name}.low"], [name], "loop", body=body)
    graph.node.insert(place, shift)
    graph.node.insert(place + 1, loop)


def _add_function(model: onnx.ModelProto) -> None:
    """Exp becomes a local function that computes exp(2 (v / 2))."""
    node = next(node for node in model.graph.node if node.op_type == "Exp")
    node.op_type, node.domain = "Grow", "local"
    half = helper.make_tensor("", TensorProto.FLOAT, [], [0.5])
    body = [
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Mul", ["v", "half"], ["less"]),
        helper.make_node("Add", ["less", "less"], ["again"]),
        helper.make_node("Exp", ["again"], ["w"]),
    ]
    opset = helper.make_opsetid("", model.opset_import[0].version)
    model.functions.append(helper.make_function("local", "Grow", ["v"], ["w"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
