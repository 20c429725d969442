"""The second look at a batch: what it holds, what models answer to it, what is learned from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.distill.augmenting import Augmentation, augmentation
from opdf_compile.distill.engine import Teaching, TrainingStep, machine_for, set_up
from opdf_compile.distill.losses import MixedLabels, TaskLoss
from opdf_compile.distill.mixed_rows import MixedRows
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run import run
from opdf_compile.distill.run.events import Stepped
from opdf_compile.errors import InputError

Make = Callable[..., Job]


def look(kind: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return Augmentation(kind, ("x",))({"x": x}, np.random.default_rng(seed))


def test_mixup_is_a_line_between_two_examples() -> None:
    x = torch.randn(8, 3, 4, 4).double()
    found = look("mixup", x)
    share, partner = found["augmented.share"], found["augmented.partner"]
    assert share.unique().numel() == 1 and 0 < float(share[0]) < 1
    assert sorted(partner.tolist()) == list(range(8))
    wanted = share[0] * x + (1 - share[0]) * x[partner]
    torch.testing.assert_close(found["augmented.x"], wanted, rtol=0, atol=1e-15)
    assert torch.equal(found["x"], x)


@pytest.mark.parametrize("shape", [(6, 3, 8, 10), (6, 2, 16), (6, 40)])
def test_cutmix_exchanges_a_box_and_tells_what_is_left(shape: tuple[int, ...]) -> None:
    """Every entry is that of one of the two, the box's share of them the partner's."""
    x = torch.arange(float(np.prod(shape))).view(shape).double()
    boxes = set()
    for seed in range(20):
        found = look("cutmix", x, seed)
        made, partner = found["augmented.x"], found["augmented.partner"]
        own, other = made == x, made == x[partner]
        assert bool((own | other).all())
        moved = [row for row in range(6) if int(partner[row]) != row]
        for row in moved:
            share = float(own[row].double().mean())
            assert share == pytest.approx(float(found["augmented.share"][row]))
            boxes.add(share)
    assert len(boxes) > 10, "the box is drawn anew each time"


def test_cutout_hides_a_quarter_of_each_axis() -> None:
    x = torch.ones(4, 1, 16, 16)
    hidden = [int((look("cutout", x, seed)["augmented.x"][0] == 0).sum()) for seed in range(30)]
    assert max(hidden) == 16 and min(hidden) >= 4
    assert float(look("cutout", x)["augmented.share"][0]) == 1


class Words(nn.Module):
    """Looks words up in a table by function, positions by module; a mask leaves words out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 5))
        self.positions = nn.Embedding(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows = F.embedding(ids, self.table) + self.positions(torch.arange(4)[None])
        return self.pooled(rows, mask)

    def pooled(self, rows: Tensor, mask: Tensor) -> Tensor:
        kept = mask[..., None].to(rows.dtype)
        logits: Tensor = self.head(torch.tanh((rows * kept).sum(1) / kept.sum(1)))
        return logits


@pytest.fixture
def words() -> Words:
    torch.manual_seed(0)
    return Words().double()


BATCH = {
    "ids": torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0], [6, 7, 8, 1]]),
    "mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]),
}


def test_rows_of_embeddings_are_mixed_and_masks_joined(words: Words) -> None:
    """The oracle mixes by hand behind the table; positions, the same for all, stay."""

    def forward(batch: Any) -> Tensor:
        return words(batch["ids"], batch["mask"])

    made = augmentation("mixup", 0.4, forward, BATCH, ("ids", "mask"))
    assert made.looked_up == {"ids"}
    batch = made(BATCH, np.random.default_rng(1))
    share, partner = batch["augmented.share"], batch["augmented.partner"]
    assert partner.tolist() != [0, 1, 2]

    with made.mixing(batch):
        found = forward(made.view(batch))

    rows = words.table[BATCH["ids"]]
    mixed = share[:, None, None] * rows + (1 - share[:, None, None]) * rows[partner]
    joined = BATCH["mask"] | BATCH["mask"][partner]
    wanted = words.pooled(mixed + words.positions(torch.arange(4)[None]), joined)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, forward(BATCH))
    torch.testing.assert_close(forward(BATCH), words(**BATCH), rtol=0, atol=0)


def test_gradients_reach_both_rows(words: Words) -> None:
    """By finite differences."""
    partner, share = torch.tensor([1, 2, 0]), torch.full((3,), 0.3).double()

    def loss(table: Tensor) -> Tensor:
        with MixedRows(partner, share, BATCH):
            found = torch.func.functional_call(words, {"table": table}, kwargs=BATCH)
        return found.square().sum()

    assert torch.autograd.gradcheck(loss, (words.table.detach().requires_grad_(),))


@pytest.mark.parametrize(
    ("kind", "batch", "sentence"),
    [
        ("cutmix", BATCH, "cutmix takes a box out of numbers and ids holds whole numbers"),
        ("mixup", {"mask": BATCH["mask"]}, "look up no rows of an embedding"),
    ],
)
def test_what_cannot_be_mixed(kind: Any, batch: Any, sentence: str, words: Words) -> None:
    def forward(given: Any) -> Tensor:
        return words(given.get("ids", BATCH["ids"][: len(given["mask"])]), given["mask"])

    with pytest.raises(InputError, match=sentence):
        augmentation(kind, None, forward, batch, tuple(batch))


def test_labels_are_mixed_by_their_shares() -> None:
    """By hand; rows without a label of their own count for nothing, nor does such a partner."""
    answer = torch.randn(3, 4).double()
    labels, partner = torch.tensor([2, -100, 1]), torch.tensor([2, 0, 1])
    share = torch.tensor([0.75, 0.5, 0.25]).double()
    term = MixedLabels(
        TaskLoss(reduction="none"), "logits", "labels", partner="partner", share="share"
    )
    logs = -torch.log_softmax(answer, -1)
    wanted = (0.75 * logs[0, 2] + 0.25 * logs[0, 1]) + 0.5 * logs[1, 2] + 0.25 * logs[2, 1]

    total, count = term.pieces(
        {"logits": answer}, None, {"labels": labels, "partner": partner, "share": share}
    )

    torch.testing.assert_close(total, wanted)
    assert float(count) == 2


AUGMENT = '[augment]\\nkind = "mixup"\\nalpha = 0.7\\nteacher = 0.6\\nlabels = 0.8'


def test_a_step_is_the_gradient_of_both_looks(make: Make) -> None:
    """By hand: the recipe's losses on the batch, and weighted on the mix."""
    training = 'steps = 2\\nprecision = "fp64"\\n[schedule]\\nkind = "constant"\\nwarmup = 0'
    given = {"student": "student", "optimizer": "SGD", "rate": "0.1"}
    job = make(**given, options=f"momentum = 0.0\\n{AUGMENT}", training=training)
    machine = machine_for(job.recipe.training)
    student = machine.widened(job.make_student(0))
    setup = set_up(job, machine, student, None, seed=0)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    teacher = teaching.teacher
    assert teacher is not None
    (places,) = setup.order.batches(0)
    batch = setup.looked_at_twice(setup.batches.of(job.data.train, places), 0, 0, 0)
    x, y, counts = batch["x"], batch["labels"], batch["mask"] != 0
    j, share = batch["augmented.partner"], batch["augmented.share"]
    mix = share[:, None] * x + (1 - share[:, None]) * x[j]

    def distilled(at: Tensor) -> Tensor:
        q, p = (torch.log_softmax(model(at) / 4, -1) for model in (student, teacher))
        soft = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        return 16 * soft[counts].mean()

    def entropy(of: Tensor) -> Tensor:
        return F.cross_entropy(student(mix), of)

    task = 0.5 * F.cross_entropy(student(x), y)
    both = share[0] * entropy(y) + (1 - share[0]) * entropy(y[j])
    total = distilled(x) + task + 0.6 * distilled(mix) + 0.8 * 0.5 * both
    parameters = list(student.parameters())
    before = [p.detach().clone() for p in parameters]
    grads = torch.autograd.grad(total, parameters)

    TrainingStep(setup, teaching)(0)

    for found, value, grad in zip(parameters, before, grads, strict=True):
        torch.testing.assert_close(found.detach(), value - 0.1 * grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("weight", "forwards"), [("0.6", 2), ("0.0", 1)])
def test_the_teacher_is_asked_of_the_mix_where_a_loss_reads_it(
    weight: str, forwards: int, make: Make
) -> None:
    given = AUGMENT.replace("teacher = 0.6", f"teacher = {weight}")
    job = make(options=given, training="steps = 2")
    machine = machine_for(job.recipe.training)
    setup = set_up(job, machine, machine.widened(job.make_student(0)), None, seed=0)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    assert teaching.teacher is not None
    asked: list[None] = []
    teaching.teacher.register_forward_hook(lambda *_: asked.append(None))

    TrainingStep(setup, teaching)(0)

    assert len(asked) == forwards


class Killed(BaseException):
    """Ends a run where it is raised."""


@pytest.mark.parametrize("cache", ["false", "true"])
def test_three_interruptions_leave_the_bits_alone(
    cache: str, make: Make, tmp_path: Path, outcome: Callable[[Path], dict[str, Any]]
) -> None:
    """Each step draws what belongs to its number; the second look is never cached."""
    hidden = '\\n[[loss]]\\nkind = "hidden"\\nprojection = "learned"'
    given = {"cache": cache, "options": f"{AUGMENT}{hidden}"}
    training = "epochs = 2\\ncheckpoint_every = 3"
    run(make(**given, training=training), tmp_path / "whole")
    for number in (2, 5, 7):

        def watch(event: object, number: int = number) -> None:
            if isinstance(event, Stepped) and event.step == number:
                raise Killed

        with pytest.raises(Killed):
            run(make(**given, training=training), tmp_path / "parts", watch=watch)
    run(make(**given, training=training), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
