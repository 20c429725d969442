"""The value, the rule, and the warm start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from map_networks import Student
from torch import nn

from opdf_compile.distill.layer_map import LayerMap, copy_layers, every_kth
from opdf_compile.distill.layer_map.rule import partner
from opdf_compile.distill.layer_map.weights import main_weights
from opdf_compile.errors import InputError


def bert(depth: int, width: int = 16, *, head: bool = False) -> Any:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=4 * width,
        max_position_embeddings=16,
    )
    return (BertForSequenceClassification if head else BertModel)(config)


def test_main_weights_are_one_a_layer() -> None:
    names = set(main_weights(Student(1)))
    assert "blocks.0.q.weight" in names and "blocks.0.norm1.weight" in names
    assert not any("bias" in name for name in names)
    assert len(names) == 10


@pytest.mark.parametrize(("n", "others", "wanted"), [
    (3, 6, [1, 3, 5]), (6, 12, [1, 3, 5, 7, 9, 11]), (2, 2, [0, 1]), (2, 3, [1, 2]), (1, 4, [3]),
])  # fmt: skip
def test_the_rule(n: int, others: int, wanted: list[int]) -> None:
    assert [partner(place, n, others) for place in range(n)] == wanted


@pytest.mark.parametrize(("n", "others"), [(3, 6), (6, 12)])
def test_bert_by_the_rule(n: int, others: int) -> None:
    student, teacher = bert(n), bert(others)
    chosen = dict(every_kth(student, teacher))
    assert len(chosen) == 8 * n
    for layer in range(n):
        name = f"encoder.layer.{layer}.output.dense.weight"
        assert chosen[name] == f"encoder.layer.{2 * layer + 1}.output.dense.weight"
    report = copy_layers(student, teacher, every_kth(student, teacher))
    assert not report.kept
    assert len(report.copied) == len(student.state_dict())
    left, right = student.state_dict(), teacher.state_dict()
    for mine, theirs in report.copied:
        assert torch.equal(left[mine], right[theirs])
        moved = mine.replace("layer.0.", "layer.1.") if "layer.0." in mine else mine
        assert "layer.0." not in mine or theirs == moved
    # The wrong answer: the layers of equal numbers.
    key = "encoder.layer.0.attention.self.query.bias"
    teacher.state_dict()[key].add_(1)
    assert not torch.equal(left[key], right[key])


def test_a_base_model_inside_of_another() -> None:
    student, teacher = bert(2, head=True), bert(4)
    report = copy_layers(student, teacher, every_kth(student, teacher))
    assert [name for name, _reason in report.kept] == ["classifier.weight", "classifier.bias"]
    assert ("bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight") in (
        report.copied
    )
    assert "classifier.weight was kept: the teacher has no" in str(report)


class Net(nn.Module):
    """Two stages of residual blocks with running statistics."""

    def __init__(self, *depths: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(n)))
            for n in depths
        )


def test_stages_and_running_statistics() -> None:
    student, teacher = Net(1, 2), Net(1, 4)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    chosen = dict(every_kth(student, teacher))
    assert chosen["stages.1.0.0.weight"] == "stages.1.1.0.weight"
    assert chosen["stages.1.1.0.weight"] == "stages.1.3.0.weight"
    copy_layers(student, teacher, LayerMap.from_mapping(chosen))
    mine, theirs = student.state_dict(), teacher.state_dict()
    assert torch.equal(mine["stages.1.0.1.running_mean"], theirs["stages.1.1.1.running_mean"])
    assert not torch.equal(mine["stages.1.0.1.running_mean"], theirs["stages.1.0.1.running_mean"])


def test_a_block_that_is_not_mapped_is_kept() -> None:
    student, teacher = Student(2), Student(2)
    before = student.blocks[1].q.weight.clone()
    mapped = {s: t for s, t in every_kth(student, teacher) if s.startswith("blocks.0.")}
    report = copy_layers(student, teacher, LayerMap.from_mapping(mapped))
    assert torch.equal(student.blocks[1].q.weight, before)
    assert dict(report.kept)["blocks.1.q.weight"] == "its block is not in the layer map"
    assert torch.equal(student.embed.weight, teacher.embed.weight)
    assert torch.equal(student.blocks[0].norm2.bias, teacher.blocks[0].norm2.bias)


def test_dtype_and_ties_stay_the_students() -> None:
    student, teacher = Student(1).bfloat16(), Student(2).double()
    chosen = every_kth(student, teacher)
    student.blocks[0].k.weight = student.blocks[0].q.weight
    copy_layers(student, teacher, chosen)
    assert student.blocks[0].k.weight is student.blocks[0].q.weight
    assert student.embed.weight.dtype == torch.bfloat16


def test_the_round_trip_through_toml() -> None:
    chosen = every_kth(Student(2), Student(4))
    assert LayerMap.from_toml(chosen.to_toml()) == chosen
    assert LayerMap.from_mapping(chosen.to_mapping()) == chosen
    assert LayerMap.from_toml('"a.b" = "c.d"') == LayerMap((("a.b", "c.d"),))
    odd = LayerMap((('a"\\.weight', "b.é"),))
    assert LayerMap.from_toml(odd.to_toml()) == odd
    assert len(chosen.only({"blocks.0.q.weight"}, dict(chosen).values())) == 1
    assert str(chosen).splitlines()[0].split() == ["student", "teacher"]


def test_what_is_unusual_is_told() -> None:
    student, teacher = Student(2), Student(4)
    right = every_kth(student, teacher)
    assert right.check(student, teacher) == ()
    shown = right.describe(student, teacher)
    assert "2 student weights without a partner: embed.weight, head.weight" in shown
    swap = {"1": "3", "3": "1"}
    crossed = LayerMap(tuple((s, ".".join(swap.get(p, p) for p in t.split("."))) for s, t in right))
    assert "order is crossed" in crossed.check(student, teacher)[0]
    shared = LayerMap(tuple((s, t.replace(".3.", ".1.")) for s, t in right))
    assert "partner of 2 student weights" in shared.check(student, teacher)[0]
    odd = LayerMap((("blocks.0.q.weight", "blocks.0.up.weight"),))
    assert "other proportions" in odd.check(student, teacher)[0]


PAIR = ("blocks.0.q.weight", "blocks.0.q.weight")
MESSAGES = {
    "twice": (lambda: LayerMap((PAIR, PAIR)), "'blocks.0.q.weight' 2 times"),
    "empty": (lambda: LayerMap(()).check(Student(1), Student(1)), "is empty"),
    "student": (
        lambda: LayerMap((("blocks.0.Q.weight", PAIR[1]),)).check(Student(1), Student(1)),
        "which the student has not.*nearest is 'blocks.0",
    ),
    "teacher": (
        lambda: LayerMap(((PAIR[0], "blocks.7.q.weight"),)).check(Student(1), Student(1)),
        "which the teacher has not",
    ),
    "kinds": (
        lambda: LayerMap(((PAIR[0], "blocks.0.norm1.weight"),)).check(Student(1), Student(1)),
        "two weights of one kind",
    ),
    "no toml": (lambda: LayerMap.from_toml("a = "), "no TOML"),
    "no quotes": (lambda: LayerMap.from_toml("a.weight = 'b.weight'"), "in quotes"),
    "widths": (
        lambda: copy_layers(Student(1), Student(1, 16), every_kth(Student(1), Student(1, 16))),
        "nothing can be copied",
    ),
    "names": (lambda: every_kth(Student(1), nn.Linear(2, 2)), "found_map"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_say_what_is_wrong(name: str) -> None:
    call, pattern = MESSAGES[name]
    with pytest.raises(InputError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)
