"""Attributes that say what leaving them out says: left out if they came late, else kept."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from opdf_compile.io.export.defaults import leave_out_defaults


def left(op: str, opset: int, domain: str = "", **attributes: int | str | list[int]) -> set[str]:
    """The attributes of one node that stay."""
    value = ir.Value(name="x")
    given = ir.convenience.convert_attributes(attributes)
    node = ir.Node(domain, op, [value], given, num_outputs=1)
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": opset})
    leave_out_defaults(ir.Model(graph, ir_version=10))
    return set(node.attributes)


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        ("ReduceMean", 18, {"noop_with_empty_axes": 0}),
        ("Cast", 19, {"saturate": 1}),
        ("ScatterElements", 18, {"reduction": "none"}),
        ("Resize", 19, {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}),
    ],
)
def test_a_late_default_is_left_out(op: str, opset: int, attributes: dict[str, int | str]) -> None:
    assert left(op, opset, **attributes) == set()


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        pytest.param("ReduceMean", 18, {"noop_with_empty_axes": 1}, id="another value"),
        pytest.param("ScatterElements", 18, {"reduction": "add"}, id="another word"),
        pytest.param("ReduceMean", 18, {"keepdims": 1}, id="a default of all versions"),
        pytest.param("Gelu", 20, {"approximate": "none"}, id="an operator of later"),
        pytest.param(
            "RoiAlign", 16, {"coordinate_transformation_mode": "half_pixel"}, id="another meaning"
        ),
        pytest.param("Nothing", 18, {"noop_with_empty_axes": 0}, id="no operator of onnx"),
        pytest.param(
            "ReduceMean", 18, {"domain": "other", "noop_with_empty_axes": 0}, id="another domain"
        ),
    ],
)
def test_what_says_something_stays(op: str, opset: int, attributes: dict[str, int | str]) -> None:
    assert left(op, opset, **attributes) == set(attributes) - {"domain"}
