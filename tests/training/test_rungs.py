"""Models that torch.export holds in part or not at all: trained, folded, exported or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import TraceError


class Gate(nn.Module):
    """A branch on a value: no graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.sum() > 0 else x


def transformers() -> Any:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    return pytest.importorskip("transformers")


def wav2vec2() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    library = transformers()
    config = library.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=20,
        mask_time_prob=0.0,
    )
    model = library.Wav2Vec2ForCTC(config)
    return model, {"input_values": torch.randn(2, 400)}, {"input_values": ("B", "T")}


def mamba() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    library = transformers()
    config = library.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, state_size=8)
    return library.MambaForCausalLM(config), *ids()


def mixtral() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    library = transformers()
    config = library.MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    return library.MixtralForCausalLM(config), *ids()


def ids() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"input_ids": torch.randint(0, 50, (2, 8))}, {"input_ids": ("B", "S")}


def gate() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    return Gate(), {"x": torch.ones(4, 16)}, {"x": ("B", 16)}


Build = Callable[[], tuple[nn.Module, dict[str, Tensor], dict[str, Any]]]
ROWS = [
    pytest.param(gate, {"train": "module", "eval": "module"}, "", id="gate"),
    pytest.param(
        wav2vec2,
        {"train": "module", "eval": "dynamic"},
        "no graph can hold the model in train (Python code depends on the value of a tensor, at "
        "modeling_wav2vec2.py",
        id="wav2vec2",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        mamba,
        {"train": "auto", "eval": "auto"},
        "axis 1 (S) of input_ids is fixed at 8: the model does not allow another size there",
        id="mamba",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        mixtral,
        {"train": "dynamic", "eval": "dynamic"},
        "config.use_cache was off while the model was traced",
        id="mixtral",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("build", "rungs", "note"), ROWS)
@pytest.mark.filterwarnings("ignore")
def test_trained_and_folded_on_any_rung(
    build: Build, rungs: dict[str, str], note: str, tmp_path: Path
) -> None:
    student, batch, dynamic = build()
    untouched = copy.deepcopy(student)
    traced = opdf.trace(student, batch, dynamic=dynamic)
    assert traced.rungs == rungs
    assert any(note in said for said in traced.notes), traced.notes
    plan = opdf.plan(traced, cores=2)
    optimizer = opdf.Overparam(student, torch.optim.SGD, plan=plan, lr=1e-2)
    # Hoisting changes no bit of the student; each layer of wav2vec2 may be dropped in training.
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    for _step in range(2):
        loss_of(student.train()(**batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(
        not torch.equal(student.get_parameter(e.key), untouched.get_parameter(e.key))
        for e in plan.entries
    )
    folded = opdf.fold(optimizer)
    assert type(folded) is type(untouched)
    assert folded.state_dict().keys() == untouched.state_dict().keys()
    if "eval" not in traced.graphs:
        with pytest.raises(TraceError, match="Gate cannot be exported: no graph can hold its eval"):
            opdf.export_onnx(folded, batch, tmp_path / "out", dynamic=dynamic)
        assert list(tmp_path.iterdir()) == []
        return
    opdf.export_onnx(folded, batch, tmp_path / "out", reference=untouched, dynamic=dynamic)
    report = opdf.verify(tmp_path / "out", only="structure,numerics")
    assert report.verdict == "pass", str(report)


@pytest.mark.filterwarnings("ignore")
def test_experts_go_back_to_their_own_products_after_an_export() -> None:
    from types import SimpleNamespace

    from opdf_compile.io.export.experts import batched_experts

    class TinyExperts(nn.Module):
        pass

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = TinyExperts()
            self.config = SimpleNamespace(_experts_implementation="grouped_mm")

        def set_experts_implementation(self, name: str) -> None:
            self.config._experts_implementation = name

    model = Mixture()
    with pytest.raises(RuntimeError, match="stopped"), batched_experts(model):
        assert model.config._experts_implementation == "batched_mm"
        raise RuntimeError("stopped")
    assert model.config._experts_implementation == "grouped_mm"
    with batched_experts(nn.Linear(2, 2)):
        pass


def loss_of(output: Any) -> Tensor:
    values: Tensor = output if isinstance(output, Tensor) else output.logits
    return values.float().square().mean()
