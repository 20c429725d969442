"""Unharmed files of every kind: what the refused ones are made from, and the positive controls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import CheckData, Sample, check_path, write_check
from opdf_compile.files.atomic import sha256
from opdf_compile.io.models.program_archive import write_programs
from opdf_compile.io.models.safetensors_file import write_tensors
from opdf_compile.io.saved.expanded_file import save_expanded


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def write_good_files(folder: Path) -> None:
    """model.pt2, expanded.pt2, cores.safetensors, weights, shards, plan, inputs, ONNX, a bundle."""
    model, example = student(), (torch.randn(3, 8),)
    program = torch.export.export(
        model, example, dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    write_programs(folder / "model.pt2", {"model": program}, {"plan.json": "{}"})
    write_tensors(folder / "weights.safetensors", dict(model.state_dict()))
    traced = opdf.trace(model, example)
    plan = opdf.plan(traced, cores=2)
    plan.save(folder / "plan.json")
    expanded = opdf.expand(traced, plan)
    save_expanded(expanded, folder / "expanded.pt2")
    save_expanded(expanded, folder / "cores.safetensors")
    np.savez(folder / "inputs.npz", np.ones((2, 8), np.float32))
    _write_onnx(folder / "student.onnx", 1)
    _write_onnx(folder / "reference.onnx", 2)
    _write_shards(folder / "shards", dict(model.state_dict()))


def _write_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    files = {name: f"part-{place}.safetensors" for place, name in enumerate(state)}
    for name, file in files.items():
        write_tensors(folder / file, {name: state[name]})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _write_onnx(path: Path, seed: int) -> None:
    """One product, with the evidence for its numbers beside it."""
    weight = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 8]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        value[:1],
        value[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    truth = x.astype(np.float64) @ weight.astype(np.float64)
    error = np.abs(x @ weight - truth)
    sample = Sample(
        {"x": x},
        {"y": truth},
        {"y": float(error.max())},
        {"y": float(np.sqrt((error**2).mean()))},
        {"y": float(np.abs(truth).max())},
    )
    write_check(check_path(path), CheckData(("x",), ("y",), "float32", (sample,), sha256(path)))
