"""What a recipe becomes: models, plan, optimizer, metric, against what is written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.distill import losses
from opdf_compile.distill.recipe import Job, parse_recipe, prepare
from opdf_compile.distill.recipe.job import named_outputs
from opdf_compile.distill.recipe.loss_terms import make_losses
from opdf_compile.distill.recipe.metrics import make_metric
from opdf_compile.distill.recipe.wording import loss_kinds
from opdf_compile.errors import RecipeError

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, depth, width=8):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x, weight=None):
        for block in self.blocks:
            x = torch.relu(block(x))
        return {"states": x, "logits": self.head(self.norm(x))}

def student(): return Net(2)
def teacher(): return Net(4)

def data():
    x = torch.linspace(-1, 1, 320).reshape(40, 8)
    return {"x": x, "mask": torch.arange(40) % 4 != 0, "labels": torch.arange(40) % 3}

def worst(student, teacher, batch):
    return student["logits"].abs().max(), 1

worst.higher_is_better = False
"""

RECIPE = """
[student]
model = "code.py:student"
{student}
[teacher]
model = "code.py:teacher"
[data]
source = "code.py:data"
inputs = ["x"]
batch = 8
[[loss]]
kind = "hinton"
mask = "mask"
[[loss]]
kind = "task"
weight = 0.5
[optimizer]
name = "SGD"
weight_decay = 0.1
{optimizer}
[training]
steps = 4
{more}
"""

# A batch of 8 pays for no chain by itself.
CORES = "[plan]\ncores = 3"

Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Prepares the recipe with some more lines in it."""
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")

    def prepared(student: str = "", optimizer: str = "lr = 0.1", more: str = "") -> Job:
        text = RECIPE.format(student=student, optimizer=optimizer, more=more)
        return prepare(parse_recipe(text), base=tmp_path)

    return prepared


def rows(job: Job) -> dict[str, Tensor]:
    return job.data.collate([job.data.train[row] for row in range(8)])


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_seed_gives_its_student_and_leaves_the_generators_alone(make: Make) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    job = make()
    first, again, other = (weights(job.make_student(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert job.make_student(1).training


def test_the_teacher_is_in_eval_mode_and_has_no_gradients(make: Make) -> None:
    teacher = make().teacher
    assert teacher is not None
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_weights_of_a_file_come_with_every_seed(make: Make, tmp_path: Path) -> None:
    start = make().make_student(7).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    job = make(student='weights = "start.safetensors"')
    for seed in (1, 2):
        found = job.make_student(seed).state_dict()
        assert all(torch.equal(found[name], start[name]) for name in start)


def test_a_warm_start_copies_every_second_block(make: Make) -> None:
    job = make(student="warm_start = true")
    student, teacher = job.make_student(3).state_dict(), job.teacher
    assert teacher is not None
    theirs = teacher.state_dict()
    for mine, other in ((0, 1), (1, 3)):
        for name in ("weight", "bias"):
            left, right = student[f"blocks.{mine}.{name}"], theirs[f"blocks.{other}.{name}"]
            assert torch.equal(left, right)
    assert torch.equal(student["head.weight"], theirs["head.weight"])


def test_a_written_map_is_followed(make: Make) -> None:
    table = 'warm_start = true\n[student.layer_map]\n"blocks.0.weight" = "blocks.2.weight"'
    job = make(student=table)
    teacher = job.teacher
    assert teacher is not None
    found = job.make_student(0).get_parameter("blocks.0.weight")
    assert torch.equal(found, teacher.get_parameter("blocks.2.weight"))


def test_a_map_of_nothing_names_its_line(make: Make) -> None:
    table = 'warm_start = true\n[student.layer_map]\n"blocks.9.weight" = "blocks.2.weight"'
    with pytest.raises(RecipeError, match=r"recipe\.toml:5: .*blocks\.9\.weight"):
        make(student=table)


def test_the_losses_are_the_weighted_sum(make: Make) -> None:
    job = make()
    batch, student = rows(job), job.make_student(0)
    assert job.teacher is not None
    found, theirs = job.forward(student, batch), job.forward(job.teacher, batch)
    z, t = found["logits"].detach().double() / 4, theirs["logits"].double() / 4
    rows_kl = (t.softmax(-1) * (t.log_softmax(-1) - z.log_softmax(-1))).sum(-1) * 16
    soft = rows_kl[batch["mask"]].mean()
    hard = nn.functional.cross_entropy(found["logits"].double(), batch["labels"])
    assert torch.allclose(job.losses()(found, theirs, batch).double(), soft + 0.5 * hard, rtol=1e-5)


def test_every_kind_makes_its_loss_with_its_options() -> None:
    made = {
        "correlation": (losses.CorrelationLoss, "rank = 2.0", "rank", 2.0),
        "cosine": (losses.CosineLoss, "", "projection", None),
        "hidden": (losses.HiddenStateLoss, "", "projection", None),
        "hinton": (losses.HintonKD, "temperature = 2.0", "temperature", 2.0),
        "reverse-skew-kl": (losses.ReverseSkewKL, "alpha = 0.2", "alpha", 0.2),
        "skew-kl": (losses.SkewKL, "alpha = 0.3", "alpha", 0.3),
        "task": (losses.TaskLoss, 'of = "mse"', "kind", "mse"),
    }
    assert set(made) == set(loss_kinds())
    for name, (kind, option, attribute, value) in made.items():
        (term,) = loss_of(f'kind = "{name}"\n{option}', width=3).terms.values()
        assert type(term.loss) is kind
        assert getattr(term.loss, attribute) == value


def test_states_of_unequal_widths_want_a_projection() -> None:
    with pytest.raises(RecipeError, match=r"^it:11: the hidden loss compares 3 .* with 5 .* equal"):
        loss_of('kind = "hidden"', width=5)
    (term,) = loss_of('kind = "hidden"\nprojection = "learned"', width=5).terms.values()
    assert isinstance(term.loss, losses.HiddenStateLoss)
    assert term.loss.projection is not None
    assert term.loss.projection.weight.shape == (5, 3)


def loss_of(section: str, width: int) -> losses.WeightedSum:
    """The loss of a section, between a student of 3 numbers and a teacher of so many."""
    head, _, tail = RECIPE.format(student="", optimizer="lr = 0.1", more="").partition("[[loss]]")
    text = f"{head}[[loss]]\n{section}\n[optimizer]{tail.partition('[optimizer]')[2]}"
    outputs = {"logits": torch.ones(2, 3)}, {"logits": torch.ones(2, width)}
    return make_losses(parse_recipe(text, name="it"), *outputs, "labels")


def test_the_optimizer_is_plain_without_a_plan_and_overparam_with_one(make: Make) -> None:
    optimizer = 'lr = 0.1\nmomentum = 0.9\nno_decay = ["*.bias", "norm.*"]'
    job = make(optimizer=optimizer, more=CORES)
    student = job.make_student(0)
    plain = job.optimizer(student, None)
    assert type(plain) is torch.optim.SGD
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in plain.param_groups] == [
        (0.1, 0.9, 0.1),
        (0.1, 0.9, 0.0),
    ]
    free = {id(p) for p in plain.param_groups[1]["params"]}
    assert free == {id(p) for n, p in student.named_parameters() if "bias" in n or "norm" in n}
    plan = job.plan(student)
    found = job.optimizer(student, plan, lr=0.2, weight_decay=0.3)
    assert isinstance(found, opdf.Overparam)
    assert [(g["lr"], g["weight_decay"]) for g in found.param_groups] == [(0.2, 0.3), (0.2, 0.0)]


def test_a_student_has_the_plan_of_another_as_its_own(make: Make) -> None:
    job = make(more=CORES)
    first, second = job.make_student(0), job.make_student(1)
    plans = job.plan(first), job.plan(second)
    assert plans[0] == plans[1]
    assert plans[1] is not None and plans[1].model is second
    assert make(more="[plan]\nenabled = false").plan(first) is None


def test_a_recipe_that_asks_for_nothing_gets_what_its_batch_pays_for(
    make: Make, tmp_path: Path
) -> None:
    """24 rows pay for three cores of bond 4 in 8 x 8 weights, the example's 8 for two of bond 2.

    The first layer runs two products of its plain step where others run three: two cores there.
    """
    make()
    text = RECIPE.format(student="", optimizer="lr = 0.1", more="").replace("= 8", "= 24")
    job = prepare(parse_recipe(text), base=tmp_path)
    plan = job.plan(job.make_student(0))
    assert plan is not None and plan.request == {"overhead_per_weight": 1.25}
    bonds = {e.key: e.spec.chain.bonds for e in plan.entries}  # type: ignore[attr-defined]
    assert bonds == {"blocks.0.weight": (1, 4, 1), "blocks.1.weight": (1, 4, 4, 1)}
    said = make(more='[plan]\nparametrization = "mpo"')
    assert said.plan(said.make_student(0)).request == {"cores": 3}


def test_rules_say_what_each_weight_becomes(make: Make) -> None:
    rules = '[plan.rules]\n"blocks.*" = "gains"\n"head.*" = "wide(expansion=2)"\n'
    job = make(more=rules)
    plan = job.plan(job.make_student(0))
    found = {entry.key: entry.parametrization for entry in plan.entries}
    assert found == {"blocks.0.weight": "gains", "blocks.1.weight": "gains"}
    assert list(plan.request["rules"]) == ["blocks.*", "head.*", "*"]
    # The order is part of a run's lock: two rules may name one weight.
    pairs = [["blocks.*", "gains"], ["head.*", "wide(expansion=2)"]]
    assert job.recipe.model_dump(mode="json")["plan"]["rules"] == pairs


def test_a_parametrization_that_fits_no_weight_is_named_with_its_line(make: Make) -> None:
    more = '[plan]\n# What each weight becomes.\nparametrization = "wide(expansion=99)"\n'
    job = make(more=more)
    line = RECIPE.format(student="", optimizer="lr = 0.1", more="@").split("@")[0].count("\n") + 3
    with pytest.raises(RecipeError, match=rf":{line}: expansion is 99"):
        job.plan(job.make_student(0))


def test_a_rule_for_nothing_names_its_line(make: Make) -> None:
    job = make(more='[plan.rules]\n"block.*" = "gains"\n')
    with pytest.raises(RecipeError, match=r"^recipe.toml:\d+: the glob 'block\.\*' names none of"):
        job.plan(job.make_student(0))


def test_an_alignment_pulls_the_cores(make: Make) -> None:
    job = make(student='layer_map = "every-kth"', more="[alignment]\nweight = 2.0")
    student = job.make_student(0)
    assert job.alignment is not None
    alignment = job.alignment()
    optimizer = job.optimizer(student, job.plan(student), alignment=alignment)
    job.forward(student, rows(job))["logits"].sum().backward()
    optimizer.step()
    last = getattr(alignment, "last", None)
    assert last is not None and float(last) > 0
    assert make().alignment is None


@pytest.mark.parametrize("name", ["accuracy", "agreement", "cosine", "kl"])
def test_a_metric_is_what_its_name_says(name: str, make: Make) -> None:
    job = make(more=f'metric = "{name}"')
    batch, student = rows(job), job.make_student(0)
    assert job.teacher is not None
    with torch.no_grad():
        found, theirs = job.forward(student, batch), job.forward(job.teacher, batch)
    total, count = job.metric.pieces(found, theirs, batch)
    z, t, mask = found["logits"].double(), theirs["logits"].double(), batch["mask"]
    # The task loss has no mask, the loss that reads the teacher has one.
    expected = {
        "accuracy": (z.argmax(-1) == batch["labels"]).double(),
        "agreement": (z.argmax(-1) == t.argmax(-1)).double()[mask],
        "cosine": ((z * t).sum(-1) / z.norm(dim=-1) / t.norm(dim=-1))[mask],
        "kl": (t.softmax(-1) * (t.log_softmax(-1) - z.log_softmax(-1))).sum(-1)[mask],
    }[name]
    assert int(count) == len(expected)
    assert torch.allclose(total, expected.sum(), rtol=1e-12, atol=1e-14)
    assert job.metric.higher_is_better == (name != "kl")


def test_a_metric_of_ones_own(make: Make) -> None:
    job = make(more='metric = "code.py:worst"')
    assert (job.metric.name, job.metric.higher_is_better) == ("worst", False)
    batch = rows(job)
    found = job.forward(job.make_student(0), batch)
    total, count = job.metric.pieces(found, None, batch)
    assert float(total) == float(found["logits"].abs().max())
    assert int(count) == 1


def test_the_usual_metric_follows_the_labels(make: Make) -> None:
    job = make()
    batch = rows(job)
    assert job.metric.name == "accuracy"
    numbers = {**batch, "labels": batch["labels"].double()}
    assert make_metric(job.recipe, job.base, job.losses(), "labels", numbers).name == "mse"
    assert make_metric(job.recipe, job.base, job.losses(), None, batch).name == "kl"


def test_outputs_have_names() -> None:
    x = torch.zeros(1)
    assert list(named_outputs(x)) == ["logits"]
    assert list(named_outputs((x, [x, {"a": x}]))) == ["0", "1.0", "1.1.a"]
    assert list(named_outputs({"h": (x, x), "n": None})) == ["h.0", "h.1"]
    assert named_outputs("text") == {}


def test_axes_of_the_export(make: Make) -> None:
    assert make().dynamic is None
    assert make(more='[export]\naxes = {x = "Nx8"}').dynamic == {"x": ("N", 8)}
    with pytest.raises(RecipeError, match=r"axes of x .* wanted 2 letters"):
        make(more='[export]\naxes = {x = "NxSx8"}')
    with pytest.raises(RecipeError, match="has no input y"):
        make(more='[export]\naxes = {y = "NxS"}')
