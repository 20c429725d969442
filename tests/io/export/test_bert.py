"""Hugging Face models through export: names, both dynamic axes, values, evidence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from opdf_compile.artefacts.check_file import read_check
from opdf_compile.io.export.exporting import export_onnx
from opdf_compile.io.torchvision_shim import prepare_torchvision


@pytest.fixture(scope="module")
def bert() -> Any:
    prepare_torchvision()
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return transformers.BertModel(config).train()


@pytest.fixture(scope="module")
def exported(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = torch.randint(0, 60, (1, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    axes = ("batch_size", "sequence_length")
    path = tmp_path_factory.mktemp("bert") / "bert.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return export_onnx(bert, batch, path, dynamic=dict.fromkeys(batch, axes))


@pytest.fixture(scope="module")
def session(exported: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(exported), providers=["CPUExecutionProvider"])


def test_names_and_axes(session: ort.InferenceSession) -> None:
    axes = ["batch_size", "sequence_length"]
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("input_ids", axes),
        ("attention_mask", axes),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("last_hidden_state", [*axes, 32]),
        ("pooler_output", ["batch_size", 32]),
    ]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 64), (3, 7), (8, 1), (8, 64)])
def test_every_batch_and_length(
    bert: Any, session: ort.InferenceSession, batch: int, length: int
) -> None:
    ids = torch.randint(0, 60, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, (length + 1) // 2 :] = 0
    feed = {"input_ids": ids, "attention_mask": mask}
    found = session.run(None, {name: value.numpy() for name, value in feed.items()})
    training = bert.training
    with torch.no_grad():
        wanted = bert.eval()(**feed)
    bert.train(training)
    np.testing.assert_allclose(found[0], wanted.last_hidden_state.numpy(), atol=2e-6)
    np.testing.assert_allclose(found[1], wanted.pooler_output.numpy(), atol=2e-6)


def test_model_stays_in_train(bert: Any, exported: Path) -> None:
    assert exported.exists() and bert.training


def test_runtime_is_as_near_to_the_truth_as_torch(
    exported: Path, session: ort.InferenceSession
) -> None:
    data = read_check(exported.with_suffix(".check.npz"))
    assert [sample.inputs["input_ids"].shape for sample in data.samples] == [
        (1, 12),
        (1, 12),
        (1, 12),
        (13, 6),  # As large as makes 16 rows in all.
    ]
    for sample in data.samples:
        found = session.run(None, dict(sample.inputs))
        for name, value in zip(data.output_names, found, strict=True):
            gap = np.abs(value - sample.outputs[name]).max()
            assert gap <= 10 * sample.error[name] and sample.error[name] < 1e-5


@pytest.mark.slow
def test_t5_whose_attention_lays_memory_out_differently(tmp_path: Path) -> None:
    prepare_torchvision()
    import transformers

    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    ids = torch.randint(0, 60, (2, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    path = export_onnx(
        transformers.T5EncoderModel(config),
        batch,
        tmp_path / "t5.onnx",
        dynamic=dict.fromkeys(batch, ("B", "S")),
    )
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for sample in read_check(path.with_suffix(".check.npz")).samples:
        (found,) = session.run(None, dict(sample.inputs))
        np.testing.assert_allclose(found, sample.outputs["last_hidden_state"], atol=2e-6)
    assert "Identity" not in {node.op_type for node in onnx.load(str(path)).graph.node}
