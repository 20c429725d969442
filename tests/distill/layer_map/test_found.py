"""Maps found on graphs, where names tell nothing; and on the architectures that people use."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from map_networks import Student, Teacher, example, right_map
from torch import nn

from opdf_compile.distill.layer_map import LayerMap, copy_layers, every_kth, found_map
from opdf_compile.distill.layer_map.finding import assignment
from opdf_compile.errors import InputError
from opdf_compile.graph.tracing import trace


def find(student: nn.Module, teacher: nn.Module, args: Any) -> Any:
    return found_map(*(trace(model.eval(), args, phases=("eval",)) for model in (student, teacher)))


@pytest.mark.parametrize(("depth", "width"), [pytest.param(2, 8, marks=pytest.mark.slow), (4, 16)])
def test_names_and_order_of_registration_do_not_matter(depth: int, width: int) -> None:
    chosen = find(Student(2), Teacher(depth, width), example())
    assert set(chosen) == right_map(2, depth)
    # The wrong answer: the blocks in the order of their names.
    swapped = {(s, t.replace("stack.0", "stack.1")) for s, t in right_map(2, depth)}
    assert set(chosen) != swapped


def test_a_warm_start_by_it_computes_what_the_teacher_does() -> None:
    student, teacher = Student(2), Teacher(2)
    report = copy_layers(student, teacher, find(student, teacher, example()))
    assert not report.kept
    (x,) = example()
    assert torch.allclose(student(x), teacher(x), atol=1e-6)
    # The wrong answer: query and key for value and query.
    other = Student(2)
    wrong = {"q": "z", "v": "x"}
    mapped = {(s, t) for s, t in right_map(2, 2)}
    pairs = [
        (s, t[:-8] + wrong[s.split(".")[2]] + ".weight") if s.split(".")[2] in wrong else (s, t)
        for s, t in mapped
        if s.startswith("blocks")
    ]
    copy_layers(other, teacher, LayerMap((*pairs, ("embed.weight", "enter.weight"))))
    assert not torch.allclose(other(x), teacher(x), atol=1e-2)


def test_networks_that_have_nothing_in_common() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    (image,) = (torch.randn(1, 3, 8, 8),)
    student = trace(Student(1).eval(), example(), phases=("eval",))
    with pytest.raises(InputError, match="alike in kind"):
        found_map(student, trace(convolutions, (image,), phases=("eval",)))


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(seed: int) -> None:
    """Against every order-preserving choice of pairs."""
    rng = random.Random(seed)
    scores = [[rng.choice([None, rng.random()]) for _ in range(5)] for _ in range(3)]

    def total(pairs: list[tuple[int, int]]) -> float:
        return sum(scores[i][j] or 0.0 for i, j in pairs)

    best = 0.0
    for size in range(4):
        for rows in itertools.combinations(range(3), size):
            for columns in itertools.combinations(range(5), size):
                pairs = list(zip(rows, columns, strict=True))
                if all(scores[i][j] is not None for i, j in pairs):
                    best = max(best, total(pairs))
    chosen = assignment(3, 5, lambda i, j: scores[i][j])
    assert total(chosen) == pytest.approx(best)
    assert chosen == sorted(chosen) and len({j for _i, j in chosen}) == len(chosen)


@pytest.mark.slow
def test_distilbert_from_bert() -> None:
    """Other names for the same parts, every second layer."""
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    small = {"vocab_size": 40, "max_position_embeddings": 16}
    student = DistilBertModel(
        DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=64, **small)
    )
    teacher = BertModel(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=64,
            **small,
        )
    )
    with pytest.raises(InputError, match="found_map"):
        every_kth(student, teacher)
    chosen = dict(find(student, teacher, {"input_ids": torch.randint(0, 40, (2, 8))}))
    parts = {
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    }
    for layer, (mine, theirs) in itertools.product(range(3), parts.items()):
        partner = f"encoder.layer.{2 * layer + 1}.{theirs}.weight"
        assert chosen[f"transformer.layer.{layer}.{mine}.weight"] == partner


def vit(depth: int, width: int) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, depth=depth, num_heads=2, num_classes=5
    )


def resnet(name: str) -> Any:
    import timm

    return timm.create_model(name, num_classes=10)


def llama(depth: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
        )
    )


PAIRS = {
    "vit": (lambda: (vit(2, 16), vit(6, 32)), lambda: (torch.randn(2, 3, 16, 16),)),
    "resnet": (
        lambda: (resnet("resnet18"), resnet("resnet34")),
        lambda: (torch.randn(2, 3, 32, 32),),
    ),
    "llama": (
        lambda: (llama(2), llama(4)),
        lambda: {"input_ids": torch.randint(0, 40, (2, 8))},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_it_agrees_with_the_rule_where_names_are_equal(name: str) -> None:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    models, args = PAIRS[name]
    student, teacher = models()
    chosen = find(student, teacher, args())
    rule = every_kth(student, teacher)
    assert len(rule) > 10 and set(rule) <= set(chosen)
    assert chosen.check(student, teacher) == ()
