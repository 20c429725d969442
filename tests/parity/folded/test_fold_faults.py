"""A file that was not folded, was never trained, or is its own reference: each has its sentence.

What is no fault stands beside it: nothing was claimed, one weight moved, a student's own products.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts import check_path, claim_of
from opdf_compile.cli import main
from opdf_compile.parity.report.parity_report import ParityReport

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def plan_of(model: nn.Module) -> dict[str, Any]:
    return opdf.plan(model, cores=2, min_size=1).to_json()


def moved(*names: str) -> nn.Sequential:
    model = layers()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(0.01)
    return model


def bundle(student: nn.Module, folder: Path, *, plan: bool = True) -> Path:
    claim = plan_of(layers()) if plan else None
    return Path(opdf.export_onnx(student, (ROWS,), folder / "b", reference=layers(), plan=claim))


def verified(candidate: Path, reference: Path | None = None, **options: Any) -> ParityReport:
    asked = {"only": "structure,numerics", "device": "cpu", **options}
    return opdf.verify(candidate, reference, **asked)


def refuted(report: ParityReport) -> str:
    """The first sentence of a refutation, as JSON and the table have it."""
    assert report.verdict == "fail" and report.exit_code == 1
    first = report.structure.differences[0]
    assert report.to_json()["structure"]["differences"][0] == first
    assert first.splitlines()[0][:60] in " ".join(str(report).split())
    return first


def pair_of(folder: Path) -> tuple[Path, Path]:
    """A bundle's models where no bundle is, with their check data."""
    other = folder / "elsewhere"
    other.mkdir()
    for file in (folder / "b" / "student.onnx", folder / "b" / "reference" / "reference.onnx"):
        shutil.copyfile(file, other / file.name)
        shutil.copyfile(check_path(file), other / check_path(file).name)
    return other / "student.onnx", other / "reference.onnx"


def test_a_bundle_whose_numbers_are_all_the_references(tmp_path: Path) -> None:
    sentence = refuted(verified(bundle(layers(), tmp_path)))
    assert sentence.startswith("the fold did not happen: all 2 planned weights of student.onnx")
    assert "although the bundle has a plan, and so is every other number" in sentence
    assert "a copy from before training" in sentence


def test_planned_weights_that_stayed_while_a_bias_moved(tmp_path: Path) -> None:
    sentence = refuted(verified(bundle(moved("0.bias"), tmp_path)))
    assert "the fold did not happen" in sentence and "and other numbers differ" in sentence


def test_a_pair_of_files_carries_the_claim(tmp_path: Path) -> None:
    bundle(layers(), tmp_path)
    sentence = refuted(verified(*pair_of(tmp_path)))
    assert "although student.onnx was exported with a plan" in sentence


def test_the_claim_survives_in_the_check_data(tmp_path: Path) -> None:
    bundle(layers(), tmp_path)
    pair = pair_of(tmp_path)
    for file in pair:
        model = onnx.load(file)
        del model.metadata_props[:]
        onnx.save(model, file)
    sentence = refuted(verified(*pair))
    assert "although student.check.npz was exported with a plan" in sentence


def test_the_claim_holds_for_weights_that_a_tool_renamed(tmp_path: Path) -> None:
    bundle(layers(), tmp_path)
    pair = pair_of(tmp_path)
    for file in pair:
        model = onnx.load(file)
        for tensor in model.graph.initializer:
            for node in model.graph.node:
                node.input[:] = [f"fused.{n}" if n == tensor.name else n for n in node.input]
            tensor.name = f"fused.{tensor.name}"
        onnx.save(model, file)
    assert "the fold did not happen: all constants of student.onnx" in refuted(verified(*pair))


@pytest.mark.parametrize("names", [("0.weight",), ("0.weight", "2.weight", "0.bias")])
def test_a_student_that_moved_passes(names: tuple[str, ...], tmp_path: Path) -> None:
    assert verified(bundle(moved(*names), tmp_path))
    assert verified(*pair_of(tmp_path))


def test_equal_weights_without_a_claim_pass(tmp_path: Path) -> None:
    report = verified(bundle(layers(), tmp_path, plan=False))
    # Two exports of one untrained student are one file, byte by byte; that is told.
    assert report and "same file" in str(report.environment["notes"])


def test_the_candidate_as_its_own_reference(tmp_path: Path) -> None:
    bundle(moved("0.weight"), tmp_path)
    student, reference = pair_of(tmp_path)
    shutil.copyfile(student, reference)
    shutil.copyfile(check_path(student), check_path(reference))
    sentence = refuted(verified(student, reference))
    assert sentence.startswith("the reference is the candidate: student.onnx and reference.onnx")
    assert "although student.onnx was exported with a plan" in sentence
    assert "the reference is the candidate" in refuted(verified(student, student))


def test_a_file_against_itself_without_a_claim_is_told(tmp_path: Path) -> None:
    opdf.export_onnx(layers(), (ROWS,), tmp_path / "s.onnx")
    report = verified(tmp_path / "s.onnx", tmp_path / "s.onnx")
    assert report and report.exit_code == 0
    assert "compare it with itself" in str(report.environment["notes"])


def test_a_reference_that_was_trained_is_told(tmp_path: Path) -> None:
    bundle(moved("0.weight"), tmp_path)
    student, _ = pair_of(tmp_path)
    shutil.copyfile(student, tmp_path / "older.onnx")
    opdf.export_onnx(moved("2.weight"), (ROWS,), tmp_path / "new.onnx")
    report = verified(tmp_path / "new.onnx", tmp_path / "older.onnx")
    assert report and "it is no untouched student" in str(report.environment["notes"])


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bundle(layers(), tmp_path)
    report = tmp_path / "report.json"
    words = ["verify", str(made), "--only", "structure", "--device", "cpu", "--json", str(report)]
    assert main(words) == 1
    first = json.loads(report.read_text())["structure"]["differences"][0]
    assert first.startswith("the fold did not happen") and first[:50] in capsys.readouterr().out


# Cores in the file.


def expanded_files(folder: Path, **options: Any) -> tuple[Path, Path]:
    """An expanded export by torch alone, and the folded one of the same numbers."""
    traced = opdf.trace(layers(), (ROWS,))
    training = opdf.expand(traced, opdf.plan(traced, min_size=1, **options)).eval()
    torch.onnx.export(
        training,
        (ROWS,),
        str(folder / "expanded.onnx"),
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"args": ({0: torch.export.Dim.DYNAMIC},)},
    )
    folded = opdf.fold(training)
    opdf.export_onnx(folded, (ROWS,), folder / "folded.onnx", reference=layers())
    opdf.write_check_data(folded, folder / "expanded.onnx", {"input": ROWS.numpy()})
    return folder / "expanded.onnx", folder / "folded.reference.onnx"


SENTENCE = "still expanded: 2 weights are computed from cores in {} ('0.weight', '2.weight'); fold"


@pytest.mark.parametrize(
    "options",
    [{"cores": 3}, {"parametrization": "gains"}, {"parametrization": "powerprop"}],
    ids=str,
)
def test_cores_that_are_still_there(options: dict[str, Any], tmp_path: Path) -> None:
    expanded, reference = expanded_files(tmp_path, **options)
    assert refuted(verified(expanded, reference)).startswith(SENTENCE.format("expanded.onnx"))
    # The numbers alone are right, and the file is refuted all the same.
    alone = verified(expanded, only="numerics")
    assert alone.numerics.verdict == "pass"
    assert refuted(alone).startswith(SENTENCE.format("expanded.onnx"))


def test_two_files_that_were_both_never_folded(tmp_path: Path) -> None:
    expanded, _ = expanded_files(tmp_path, cores=2)
    copy = tmp_path / "untouched.onnx"
    shutil.copyfile(expanded, copy)
    report = verified(expanded, copy)
    assert refuted(report).startswith(SENTENCE.format("expanded.onnx"))
    other = report.structure.differences[1]
    assert other.startswith(SENTENCE.format("untouched.onnx")) and "no untouched student" in other
    assert len(report.structure.differences) == 2


def linear_file(path: Path, *nodes: onnx.NodeProto, **arrays: np.ndarray[Any, Any]) -> Path:
    """A file of one layer whose weight is `w`, which nodes may compute from constants."""
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")
    ]
    stored = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    layer = helper.make_node("MatMul", ["x", "w"], ["y"], "layer")
    graph = helper.make_graph([*nodes, layer], "net", infos[:1], infos[1:], stored)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


MATRIX = np.random.default_rng(0).normal(size=(4, 4))


def product(path: Path) -> Path:
    """What a tool leaves that multiplied some cores out and gave the result a name of its own."""
    node = helper.make_node("MatMul", ["fold_0", "val_1"], ["w"], "left_over")
    return linear_file(path, node, fold_0=MATRIX, val_1=MATRIX)


def test_cores_of_which_a_tool_multiplied_some_out(tmp_path: Path) -> None:
    plain = linear_file(tmp_path / "plain.onnx", w=MATRIX)
    sentence = refuted(verified(product(tmp_path / "part.onnx"), plain, only="structure"))
    assert sentence.startswith("still expanded: 1 weight is computed from cores in part.onnx ('w')")


def test_a_product_that_both_files_have_is_told_and_passes(tmp_path: Path) -> None:
    """A student may be made of products; nobody can tell it from cores without their names."""
    pair = product(tmp_path / "c.onnx"), product(tmp_path / "r.onnx")
    report = verified(*pair, only="structure")
    assert report and "if these are cores, fold before export" in str(report.environment["notes"])


def test_other_weights_that_are_computed_are_no_cores(tmp_path: Path) -> None:
    """A norm of the weight, its transpose, and the vector of a spectral norm."""
    nodes = [
        helper.make_node("MatMul", ["v", "u"], ["vu"], "power"),
        helper.make_node("ReduceL2", ["vu"], ["sigma"], "sigma", keepdims=0),
        helper.make_node("Div", ["v", "sigma"], ["normed"], "normed"),
        helper.make_node("Transpose", ["normed"], ["w"], "turned", perm=[1, 0]),
    ]
    paths = [linear_file(tmp_path / f"{name}.onnx", *nodes, v=MATRIX, u=MATRIX[0]) for name in "cr"]
    report = verified(paths[0], paths[1], only="structure")
    assert report and "cores" not in str(report.environment["notes"])
    plain = linear_file(tmp_path / "plain.onnx", w=MATRIX)
    assert not any(
        "expanded" in text
        for text in verified(paths[0], plain, only="structure").structure.differences
    )


class _OwnBranches(nn.Module):
    """Heads of a detector, one for each level, and a list of parameters called cores."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cls_branches = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
        self.mix_cores = nn.ParameterList([torch.randn(6, 5), torch.randn(6, 3)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = tuple(branch(x) for branch in self.cls_branches)
        return (*heads, *(x @ core for core in self.mix_cores))


class _OwnNames(nn.Module):
    """Parameters that a student calls as `expand` does, of which it computes its weights itself."""

    def __init__(self, seed: int, how: str) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.how = how
        self.mix_cores = nn.ParameterList([torch.randn(6, 5), torch.randn(5, 3)])
        self.weight_branches = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

    def forward(self, x: torch.Tensor) -> Any:
        if self.how == "weight_branches":
            return tuple(branch(x) for branch in self.weight_branches)
        first, second = self.mix_cores
        return x @ (first @ second if self.how == "product" else first * 0.5)


@pytest.mark.parametrize("how", ["weight_branches", "product", "scaled"])
def test_a_students_own_names_are_no_expansion(how: str, tmp_path: Path) -> None:
    path, other = tmp_path / "own.onnx", tmp_path / "own.reference.onnx"
    opdf.export_onnx(_OwnNames(0, how).eval(), (ROWS,), path, reference=_OwnNames(1, how).eval())
    for pair in ((path, other), (path, None)):
        asked = "structure,numerics" if pair[1] else "numerics"
        report = verified(*pair, only=asked)
        assert report.verdict == "pass", report.structure.differences
        told = "something is named as if 'mix' were computed from cores"
        assert (told in str(report.environment["notes"])) == (how != "weight_branches")


def test_names_that_only_one_file_has_refute_it(tmp_path: Path) -> None:
    """Of a weight that is not called so: then the other file decides, or the plan."""
    half = helper.make_node("Mul", ["mix_cores.0", "half"], ["w"], "half")
    arrays = {"mix_cores.0": MATRIX, "half": np.float32(0.5)}
    expanded = [linear_file(tmp_path / f"{name}.onnx", half, **arrays) for name in "cr"]
    plain = linear_file(tmp_path / "plain.onnx", w=MATRIX)
    words = "still expanded: 1 weight is computed from cores in {} ('mix')"
    assert words.format("c.onnx") in refuted(verified(expanded[0], plain, only="structure"))
    other = verified(plain, expanded[0], only="structure")
    assert refuted(other).endswith("for it is no untouched student")
    assert verified(*expanded, only="structure")
    for file in expanded:
        model = onnx.load(file)
        helper.set_model_props(model, claim_of(["mix"]))
        onnx.save(model, file)
    assert words.format("c.onnx") in refuted(verified(*expanded, only="structure"))


@pytest.mark.parametrize("form", ["repvgg", "dbb"])
def test_branches_that_are_still_there(form: str, tmp_path: Path) -> None:
    """In both files, so that the graphs are equal and the names alone can tell."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    traced = opdf.trace(student, (torch.randn(2, 4, 5, 5),))
    training = opdf.expand(traced, opdf.plan(traced, parametrization=form)).eval()
    pair = tmp_path / "c.onnx", tmp_path / "r.onnx"
    torch.onnx.export(
        training,
        (torch.randn(2, 4, 5, 5),),
        str(pair[0]),
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
    )
    shutil.copyfile(*pair)
    sentence = refuted(verified(*pair, only="structure"))
    assert "1 weight is spread over branches in c.onnx ('0.weight')" in sentence


def test_a_students_own_branches_and_cores_are_no_expansion(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    opdf.export_onnx(_OwnBranches(0).eval(), (ROWS,), path, reference=_OwnBranches(1).eval())
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert {"cls_branches.0.bias", "mix_cores.0"} <= names
    report = verified(path, tmp_path / "own.reference.onnx")
    assert report.verdict == "pass", report.structure.differences


def as_constant_nodes(path: Path, target: Path) -> Path:
    """A copy whose initialisers are Constant nodes, signed as such."""
    model = onnx.load(path)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes += model.graph.node
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    return target


def with_int8_weights(path: Path, target: Path) -> Path:
    """A copy that a quantiser made, one scale for a weight: nothing in it is a float array."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        left = [{onnx.load(path).graph.input[0].name: ROWS.numpy()}]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    quantize_static(path, target, Rows(), weight_type=QuantType.QInt8, per_channel=False)
    return target


@pytest.mark.parametrize("rewritten", [as_constant_nodes, with_int8_weights])
def test_a_fold_is_seen_in_copies_without_float_arrays(rewritten: Any, tmp_path: Path) -> None:
    """Both files rewritten by one tool: trained weights pass, untouched ones are refuted."""
    trained = moved("0.weight", "2.weight")
    for student, verdict in ((trained, "pass"), (layers(), "fail")):
        folder = tmp_path / verdict
        folder.mkdir()
        made = bundle(student, folder)
        pair = [
            rewritten(file, folder / file.name)
            for file in (made / "student.onnx", made / "reference" / "reference.onnx")
        ]
        report = verified(*pair, check=made / "student.check.npz", only="structure")
        assert report.verdict == verdict, report.structure.differences
        if verdict == "fail":
            assert "the fold did not happen" in refuted(report)


def rewritten_pair(made: Path, rewrite: Callable[[onnx.ModelProto], None]) -> tuple[Path, Path]:
    """Both models of a bundle, rewritten alike, elsewhere with their check data."""
    pair = pair_of(made.parent)
    for file in pair:
        model = onnx.load(file)
        rewrite(model)
        onnx.save(model, file)
    return pair


def with_zero_biases(factor: float) -> nn.Sequential:
    model = layers()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.0 if "bias" in name else factor)
    return model


def test_a_weight_that_only_grew_moved(tmp_path: Path) -> None:
    """Its int8 numbers are the same; the scale, which is one number, is not."""
    student, untouched = with_zero_biases(2.0), with_zero_biases(1.0)
    plan = plan_of(layers())
    made = Path(opdf.export_onnx(student, (ROWS,), tmp_path / "b", reference=untouched, plan=plan))
    pair = pair_of(tmp_path)
    for file in pair:
        with_int8_weights(file, file)
    ours, theirs = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        for file in pair
    )
    assert np.array_equal(ours["0.weight_quantized"], theirs["0.weight_quantized"])
    report = verified(*pair, check=made / "student.check.npz", only="structure")
    assert report.verdict == "pass", report.structure.differences


def in_nested_graphs(model: onnx.ModelProto) -> None:
    """Every initialiser becomes a constant of the branches of an If that returns it."""
    graph, always = model.graph, "always"
    for tensor in list(graph.initializer):
        info = helper.make_tensor_value_info("held", tensor.data_type, list(tensor.dims))
        parts = []
        for name in ("then", "else"):
            copied = onnx.TensorProto()
            copied.CopyFrom(tensor)
            copied.name = "held"
            held = helper.make_node("Constant", [], ["held"], value=copied)
            parts.append(helper.make_graph([held], name, [], [info]))
        chosen = helper.make_node(
            "If", [always], [tensor.name], then_branch=parts[0], else_branch=parts[1]
        )
        graph.node.insert(0, chosen)
    del graph.initializer[:]
    graph.initializer.append(numpy_helper.from_array(np.array(True), always))


def packed(model: onnx.ModelProto) -> None:
    """Every matrix goes into an attribute of an operator that nobody knows; biases stay."""
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    for tensor in [t for t in model.graph.initializer if len(t.dims) == 2]:
        unpack = helper.make_node("Unpack", [], [tensor.name], domain="com.example", packed=tensor)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, unpack)


def test_weights_in_nested_graphs_are_seen(tmp_path: Path) -> None:
    student = moved("0.weight", "2.weight")
    for model, verdict in ((student, "pass"), (layers(), "fail")):
        folder = tmp_path / verdict
        folder.mkdir()
        pair = rewritten_pair(bundle(model, folder), in_nested_graphs)
        report = verified(*pair, only="structure")
        faults = [text for text in report.structure.differences if "fold did not" in text]
        assert bool(faults) == (verdict == "fail")
        assert all("all constants of student.onnx are those of the" in text for text in faults)


def test_nothing_is_said_where_no_weight_is_seen(tmp_path: Path) -> None:
    pair = rewritten_pair(bundle(moved("0.weight", "2.weight"), tmp_path), packed)
    report = verified(*pair, only="structure")
    # The graphs differ in those attributes, and that is all.
    assert not any("the fold did not happen" in text for text in report.structure.differences)


def test_not_all_planned_weights_are_counted_where_one_has_no_name(tmp_path: Path) -> None:
    def renamed(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name.startswith("2.weight"))
        for node in model.graph.node:
            node.input[:] = ["fused" if name == tensor.name else name for name in node.input]
        tensor.name = "fused"

    sentence = refuted(verified(*rewritten_pair(bundle(layers(), tmp_path), renamed)))
    assert sentence.startswith("the fold did not happen: all constants of student.onnx are")
    assert "planned weights" not in sentence
