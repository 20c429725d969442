"""The picture of the first difference: what is in the frame, what is marked, and that it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from onnx import ModelProto, TensorProto, helper

from opdf_compile.parity.structure.compare import compare_structure
from opdf_compile.parity.structure.differences import MOST_DIFFERENCES
from opdf_compile.parity.structure.frame import Surroundings
from opdf_compile.parity.structure.picture import Neighbourhood

Row = tuple[str, str, tuple[str, ...], dict[str, object]]
CHAIN: tuple[Row, ...] = (
    ("Exp", "a", ("x",), {}),
    ("Abs", "b", ("a",), {}),
    ("Sub", "c", ("a", "b"), {}),
    ("Softmax", "d", ("c",), {"axis": 1}),
    ("Neg", "y", ("d",), {}),
)


def saved(rows: tuple[Row, ...], path: Path) -> Path:
    nodes = [helper.make_node(op, reads, [out], **more) for op, out, reads, more in rows]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert isinstance(model, ModelProto)
    path.write_bytes(model.SerializeToString())
    return path


def picture(candidate: tuple[Row, ...], folder: Path) -> Neighbourhood:
    result = compare_structure(saved(candidate, folder / "c.onnx"), saved(CHAIN, folder / "r.onnx"))
    assert result.picture is not None
    return result.picture


def marked(side: Surroundings) -> list[str]:
    return sorted(v.title for v in side.vertices if v.differs)


def arrows(side: Surroundings) -> list[tuple[str, str, int]]:
    titles = {v.key: v.title for v in side.vertices}
    return sorted((titles[e.source], titles[e.target], e.slot) for e in side.edges if e.differs)


def test_an_equal_pair_has_no_picture(tmp_path: Path) -> None:
    paths = saved(CHAIN, tmp_path / "c.onnx"), saved(CHAIN, tmp_path / "r.onnx")
    assert compare_structure(*paths).picture is None


def test_another_operator_is_marked_on_both_sides(tmp_path: Path) -> None:
    found = picture((*CHAIN[:2], ("Add", *CHAIN[2][1:]), *CHAIN[3:]), tmp_path)
    assert (marked(found.candidate), marked(found.reference)) == (["Add"], ["Sub"])
    titles = {v.title for v in found.candidate.vertices}
    assert titles == {"x", "Exp", "Abs", "Add", "Softmax"}  # two up, one down


def test_swapped_inputs_mark_their_arrows(tmp_path: Path) -> None:
    found = picture((*CHAIN[:2], ("Sub", "c", ("b", "a"), {}), *CHAIN[3:]), tmp_path)
    assert (marked(found.candidate), marked(found.reference)) == (["Abs"], ["Exp"])
    assert ("Abs", "Sub", 0) in arrows(found.candidate)
    assert ("Exp", "Sub", 0) in arrows(found.reference)


def test_another_attribute_is_told_in_the_box(tmp_path: Path) -> None:
    found = picture((*CHAIN[:3], ("Softmax", "d", ("c",), {"axis": 0}), CHAIN[4]), tmp_path)
    (box,) = [v for v in found.candidate.vertices if v.differs]
    assert box.detail == "axis=0"


def test_an_added_node_is_marked_on_its_side(tmp_path: Path) -> None:
    extra: Row = ("Identity", "i", ("c",), {})
    found = picture((*CHAIN[:3], extra, ("Softmax", "d", ("i",), {"axis": 1}), CHAIN[4]), tmp_path)
    assert "Identity" in marked(found.candidate)


def test_it_shows_a_node_however_many_inputs_are_renamed(tmp_path: Path) -> None:
    paths = []
    for name, operator in (("c", "Sum"), ("r", "Max")):
        infos = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [4])
            for n in (*(f"{name}{place}" for place in range(MOST_DIFFERENCES)), "y")
        ]
        node = helper.make_node(operator, [info.name for info in infos[:-1]], ["y"])
        model = helper.make_model(helper.make_graph([node], "g", infos[:-1], infos[-1:]))
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(model.SerializeToString())
    result = compare_structure(*paths)
    assert len(result.differences) == MOST_DIFFERENCES
    assert result.picture is not None and "Sum" in result.picture.sentence


@pytest.mark.parametrize("width", [4.0, 11.0])
def test_it_draws_boxes_that_do_not_overlap(width: float, tmp_path: Path) -> None:
    found = picture((*CHAIN[:2], ("Add", *CHAIN[2][1:]), *CHAIN[3:]), tmp_path)
    figure = Figure(figsize=(width, 6.0), layout="constrained")
    found.draw(figure)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.texts if t.get_bbox_patch() is not None]
        assert len(boxes) == 5
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_side_with_nothing_says_so() -> None:
    figure = Figure()
    Neighbourhood("words", Surroundings(), Surroundings()).draw(figure)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["nothing there"] * 2
