"""Models that choose their outputs by value: the rung, the reason and what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import TraceError
from opdf_compile.graph.tracing import trace

PROPOSAL = (
    "no export without an eval graph: train the model whole, then wrap the part that a graph can "
    "hold (of a detector: backbone and head, without the choice of boxes) in a module of its own "
    "and export that"
)


class Raw(nn.Module):
    """Anchors with an offset and a score each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(self.backbone(images).relu())
        rows, columns = found.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        anchors = torch.stack([x, y, x + 1, y + 1])
        return (anchors + found[:, :4]).flatten(2), found[:, 4].flatten(1)


def suppressed(boxes: Tensor, scores: Tensor) -> Tensor:
    """Greedy, in plain Python."""
    kept: list[int] = []
    for place in scores.argsort(descending=True).tolist():
        corners = [
            torch.minimum(boxes[2:, place], boxes[2:, k])
            - torch.maximum(boxes[:2, place], boxes[:2, k])
            for k in kept
        ]
        if all(bool(c.min() <= 0) for c in corners):
            kept.append(place)
    return boxes[:, kept]


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.raw = Raw()

    def forward(self, images: Any) -> Any:
        boxes, scores = self.raw(images)
        return [suppressed(b, s) for b, s in zip(boxes, scores, strict=True)]


class OfLists(Detector):
    """Takes images of several sizes, as torchvision's do, and losses need targets."""

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets are wanted in training")
        high, wide = (max(i.shape[axis] for i in images) for axis in (1, 2))
        padded = [
            nn.functional.pad(i, (0, wide - i.shape[2], 0, high - i.shape[1])) for i in images
        ]
        return super().forward(torch.stack(padded))


class ByNumpy(Detector):
    """Chooses outside torch."""

    def forward(self, images: Tensor) -> Any:
        boxes, scores = self.raw(images)
        order = scores.detach().numpy().argsort()
        return boxes[..., torch.from_numpy(order[0])]


IMAGES = torch.rand(2, 3, 16, 16)
LIST = ([torch.rand(3, 16, 16), torch.rand(3, 12, 20)],)


@pytest.mark.parametrize(
    ("model", "example", "reason"),
    [
        pytest.param(
            *(Detector(), (IMAGES,), "depends on the value of a tensor, at test_detectors.py"),
            marks=pytest.mark.slow,
        ),
        (OfLists(), LIST, "depends on the value of a tensor, at test_detectors.py"),
        (ByNumpy(), (IMAGES,), "test_detectors.py"),
    ],
    ids=["suppression", "list of images", "numpy"],
)
def test_a_detector_is_told_to_export_backbone_and_head(
    model: Detector, example: tuple[Any, ...], reason: str
):
    traced = trace(model, example)
    assert traced.rungs["eval"] == "module" and "eval" not in traced.graphs
    assert any(reason in note for note in traced.notes) and traced.notes[-1] == PROPOSAL
    assert {m.key for m in opdf.match(traced).matches} == {
        "raw.backbone.weight",
        "raw.head.weight",
    }
    with pytest.raises(TraceError, match=r"; or wrap the part .* backbone and head"):
        opdf.export_onnx(model, example, "unwritten.onnx")
    assert trace(model.raw, (IMAGES,)).rung == "dynamic"


def test_where_the_eval_graph_is_there_nothing_is_proposed():
    class Drawn(Raw):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            if self.training and torch.rand(()) < 0.5:
                images = images * 2
            return super().forward(images)

    traced = trace(Drawn(), (IMAGES,))
    assert traced.rungs == {"train": "module", "eval": "dynamic"}
    assert not any("export" in note for note in traced.notes)
