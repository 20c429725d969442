"""Files of expand and fold: trained where this package is not, folded without a plan."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError, FoldError
from opdf_compile.io.models.program_archive import read_programs, write_programs
from opdf_compile.io.saved.expanded_file import FoldedFile, fold_file, save_expanded
from opdf_compile.training.inline.expanded import Expanded


class Student(nn.Module):
    """A tied weight, a convolution, BatchNorm, dropout, a buffer outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.body = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.mix(self.table(ids).transpose(1, 2))).transpose(1, 2)
        factor = torch.tensor(1.5) if self.training else torch.tensor(1.0)
        hidden = self.drop(self.body(hidden)) * self.scale * factor
        return {"logits": self.head(hidden)}


IDS = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0))
AXES = {"ids": ("B", "S")}


def grow(model: nn.Module, include: list[str] | None = None) -> Expanded:
    traced = opdf.trace(model, (IDS,), dynamic=AXES)
    return opdf.expand(traced, opdf.plan(traced, cores=3, include=include or []))


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student()


# A process in which this package cannot be imported trains the file and saves what it trained.
TRAINER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opdf_compile":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocked())
sys.modules.pop("opdf_compile", None)
import torch
from safetensors.torch import save_file
source, weights, again = sys.argv[1:]
torch.manual_seed(0)
program = torch.export.load(source)
module = program.module()
ids = torch.randint(0, 40, (4, 6))
optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
losses = []
for _ in range(4):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(module(ids)["logits"].flatten(0, 1), ids.flatten())
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert module(torch.cat([ids, ids])[:, :3])["logits"].shape == (8, 3, 40)
assert not any(name.startswith("opdf_compile") for name in sys.modules)
save_file({k: v.detach().clone() for k, v in module.state_dict().items()}, weights)
torch.export.save(torch.export.export(module, (ids,), strict=False), again)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, student: Student) -> dict[str, Path]:
    """An expanded file, the state a stranger trained from it, and the program he saved again."""
    folder = tmp_path_factory.mktemp("artefacts")
    made = {name: folder / name for name in ("expanded.pt2", "trained.safetensors", "again.pt2")}
    made["script"] = folder / "trainer.py"
    made["script"].write_text(TRAINER)
    expanded = grow(student, ["*"])
    save_expanded(expanded, made["expanded.pt2"])
    command = [sys.executable, "-I", *map(str, (made["script"], *list(made.values())[:3]))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made["expanded.safetensors"] = folder / "expanded.safetensors"
    save_expanded(expanded, made["expanded.safetensors"])
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, student: Student) -> dict[str, Any]:
    """An Expanded whose tie is left alone, its state, and its file of each kind by suffix."""
    folder = tmp_path_factory.mktemp("plain")
    expanded = grow(student)
    made: dict[str, Any] = {"expanded": expanded}
    made["state"] = {name: tensor.clone() for name, tensor in expanded.state_dict().items()}
    for suffix in (".pt2", ".safetensors"):
        made[suffix] = folder / f"expanded{suffix}"
        save_expanded(expanded, made[suffix])
    return made


@pytest.fixture(scope="module")
def oracle(files: dict[str, Path], student: Student) -> Iterator[Student]:
    """The trained cores put into an Expanded in this process, and folded; nobody changes it."""
    expanded = grow(student, ["*"])
    expanded.load_state_dict(load_file(files["trained.safetensors"]))
    folded = opdf.fold(expanded)
    assert isinstance(folded, Student)
    before = copy.deepcopy(folded.eval().state_dict())
    yield folded
    equal_states(folded.state_dict(), before)


def equal_states(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def folded(
    files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FoldedFile, Path]:
    """What the stranger trained, folded, and a folder with its files; nobody changes them."""
    made = fold_file(files["expanded.pt2"], weights=files["trained.safetensors"])
    folder = tmp_path_factory.mktemp("folded")
    made.save(folder / "student.pt2")
    made.save(folder / "student.safetensors")
    return made, folder


def test_a_strangers_training_is_folded_with_weights(
    folded: tuple[FoldedFile, Path], student: Student, oracle: Student
) -> None:
    made, folder = folded
    assert made.notes == ()
    equal_states(made.state, oracle.state_dict())
    assert not torch.equal(made.state["body.weight"], student.body.weight)
    assert made.state["norm.num_batches_tracked"] >= 4
    stored = load_file(folder / "student.safetensors")
    equal_states(stored, oracle.state_dict())
    fresh = Student().eval()
    fresh.load_state_dict(stored)
    torch.testing.assert_close(fresh(IDS)["logits"], oracle(IDS)["logits"], rtol=0, atol=0)
    archive = read_programs(folder / "student.pt2")
    result = archive.programs["eval"].module(check_guards=False)(IDS)
    torch.testing.assert_close(result["logits"], oracle(IDS)["logits"])
    longer = torch.cat([IDS, IDS], dim=1)
    wider = archive.programs["eval"].module(check_guards=False)(longer)
    torch.testing.assert_close(wider["logits"], oracle(longer)["logits"])


def test_the_comparison_can_fail(oracle: Student) -> None:
    wanted = oracle.state_dict()
    with pytest.raises(AssertionError, match="body.weight"):
        equal_states({**wanted, "body.weight": wanted["body.weight"] * 1.01}, wanted)


def test_a_program_that_was_exported_again_is_folded_without_its_plan(
    files: dict[str, Path], student: Student, oracle: Student
) -> None:
    assert "plan.json" not in read_programs(files["again.pt2"]).extra
    folded = fold_file(files["again.pt2"])
    wanted = oracle.state_dict()
    # The other name of the tied weight rode along with the plan, and is lost with it.
    equal_states({**folded.state, "head.weight": folded.state["table.weight"]}, wanted)
    assert "holds the training graph only" in folded.notes[0]
    whole = fold_file(files["again.pt2"], model=student)
    equal_states(whole.state, wanted)
    assert list(whole.state) == list(student.state_dict())


@pytest.mark.slow
def test_the_program_that_was_exported_again_gives_the_weights(
    files: dict[str, Path], oracle: Student
) -> None:
    folded = fold_file(files["expanded.pt2"], weights=files["again.pt2"])
    equal_states(folded.state, oracle.state_dict())


@pytest.mark.slow
def test_a_program_saved_again_as_it_is(
    plain: dict[str, Any], tmp_path: Path, student: Student
) -> None:
    torch.export.save(torch.export.load(plain[".pt2"]), tmp_path / "saved.pt2")
    folded = fold_file(tmp_path / "saved.pt2", model=student)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(folded.state[name], tensor, rtol=1e-5, atol=1e-7)


def test_what_the_pt2_holds(files: dict[str, Path]) -> None:
    archive = read_programs(files["expanded.pt2"])
    assert set(archive.programs) == {"model", "eval"}
    notes = json.loads(archive.extra["opdf.json"])
    assert notes["axes"] == {"ids": {"0": "B", "1": "S"}}
    assert notes["aliases"] == {"table.weight": ["head.weight"]}
    assert json.loads(archive.extra["plan.json"])["schema"] == "opdf-plan/1"
    state = archive.model.state_dict
    assert "scale" not in state
    assert {"table.weight_cores.0", "body.weight_cores.2", "norm.running_mean"} <= set(state)


def test_both_phases_of_the_pt2_compute_what_the_expanded_does(
    files: dict[str, Path], student: Student
) -> None:
    expanded = grow(student, ["*"])
    archive = read_programs(files["expanded.pt2"])
    evaluated = archive.programs["eval"].module(check_guards=False)(IDS)["logits"]
    torch.testing.assert_close(evaluated, expanded.eval()(IDS)["logits"])
    torch.manual_seed(1)
    trained = archive.model.module(check_guards=False)(IDS)["logits"]
    torch.manual_seed(1)
    torch.testing.assert_close(trained, expanded.train()(IDS)["logits"])
    assert not torch.allclose(trained, evaluated)


def test_axis_names_survive_expand_and_fold(
    files: dict[str, Path], folded: tuple[FoldedFile, Path]
) -> None:
    for path in (files["expanded.pt2"], folded[1] / "student.pt2"):
        notes = json.loads(read_programs(path).extra["opdf.json"])
        assert notes["axes"] == {"ids": {"0": "B", "1": "S"}}


# safetensors


def test_safetensors_with_the_plan_in_the_header(
    files: dict[str, Path], student: Student, tmp_path: Path
) -> None:
    folded = fold_file(files["expanded.safetensors"])
    assert folded.notes == ()
    equal_states(folded.state, opdf.fold(grow(student, ["*"])).state_dict())
    assert folded.state["mix.weight"].shape == (16, 16, 3)
    with pytest.raises(ArtefactError, match="needs a graph, the expanded file holds tensors only"):
        folded.save(tmp_path / "student.pt2")
    assert not (tmp_path / "student.pt2").exists()


def test_safetensors_with_trained_weights(files: dict[str, Path], oracle: Student) -> None:
    folded = fold_file(files["expanded.safetensors"], weights=files["trained.safetensors"])
    equal_states(folded.state, oracle.state_dict())


def test_bare_tensors_fold_with_the_student(
    files: dict[str, Path], student: Student, oracle: Student
) -> None:
    folded = fold_file(files["trained.safetensors"], model=student)
    equal_states(folded.state, oracle.state_dict())
    assert list(folded.state) == list(student.state_dict())


def test_bare_tensors_fold_as_matrices_and_say_so(files: dict[str, Path], oracle: Student) -> None:
    folded = fold_file(files["trained.safetensors"])
    wanted = oracle.state_dict()
    torch.testing.assert_close(folded.state["body.weight"], wanted["body.weight"])
    assert folded.state["mix.weight"].shape == (16, 48)
    assert "holds no plan: each weight is taken as a matrix" in folded.notes[0]
    assert "(--model)" in folded.notes[0]


def test_half_precision_through_both_routes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)).to(torch.bfloat16)
    traced = opdf.trace(model, (torch.randn(2, 16, dtype=torch.bfloat16),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    for suffix in (".pt2", ".safetensors"):
        save_expanded(expanded, tmp_path / f"expanded{suffix}")
        folded = fold_file(tmp_path / f"expanded{suffix}")
        equal_states(folded.state, model.state_dict())


def test_a_stack_stored_in_by_out_needs_the_student(tmp_path: Path) -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf = 24
            self.weight = nn.Parameter(torch.randn(16, 24))
            self.bias = nn.Parameter(torch.randn(24))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    model = Conv1D()
    traced = opdf.trace(model, (torch.randn(2, 16),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    torch.testing.assert_close(opdf.fold(expanded).weight, model.weight)
    for suffix in (".pt2", ".safetensors"):
        save_expanded(expanded, tmp_path / f"expanded{suffix}")
        folded = fold_file(tmp_path / f"expanded{suffix}").state["weight"]
        torch.testing.assert_close(folded, model.weight.detach(), rtol=1e-5, atol=1e-6)
    save_file(expanded.state_dict(), tmp_path / "bare.safetensors")
    folded = fold_file(tmp_path / "bare.safetensors", model=model).state["weight"]
    torch.testing.assert_close(folded, model.weight.detach(), rtol=1e-5, atol=1e-6)


# errors


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


WRONG = [
    (
        lambda s: without(s, "body.weight_cores.1"),
        r"'body.weight_cores.1' \(0 unknown, 1 cores missing",
    ),
    (lambda s: {**s, "other": torch.ones(2)}, r"'other' \(1 unknown, 0 cores missing"),
    (
        lambda s: {**s, "body.bias": torch.ones(2)},
        r"'body.bias' \(0 unknown, 0 .* 1 of other shape\)",
    ),
    (
        lambda s: {"x": torch.ones(1)},
        "do not belong to .*; give the state dict of the program that",
    ),
]


# Both kinds of file read their weights alike: one sentence of a program in every run.
@pytest.mark.parametrize(
    ("change", "sentence", "route"),
    [
        pytest.param(
            *(*row, route),
            id=f"{row[1][:12]}-{route}",
            marks=() if row is WRONG[0] or route != ".pt2" else pytest.mark.slow,
        )
        for row in WRONG
        for route in (".pt2", ".safetensors")
    ],
)
def test_wrong_weights(
    plain: dict[str, Any], tmp_path: Path, route: str, change: Any, sentence: str
) -> None:
    save_file(change(plain["state"]), tmp_path / "trained.safetensors")
    with pytest.raises(ArtefactError, match="the trained weights do not belong to") as caught:
        fold_file(plain[route], weights=tmp_path / "trained.safetensors")
    assert re.search(sentence, str(caught.value))


@pytest.mark.parametrize("route", quick([".pt2", ".safetensors"], {".safetensors"}))
def test_diverged_weights(plain: dict[str, Any], tmp_path: Path, route: str) -> None:
    state = {**plain["state"]}
    state["body.weight_cores.0"] = torch.full_like(state["body.weight_cores.0"], float("nan"))
    save_file(state, tmp_path / "trained.safetensors")
    with pytest.raises(FoldError, match="the cores of 'body.weight' give NaN or infinity"):
        fold_file(plain[route], weights=tmp_path / "trained.safetensors")


@pytest.mark.parametrize("route", quick([".pt2", ".safetensors"], {".safetensors"}))
def test_another_students_model(plain: dict[str, Any], route: str) -> None:
    other = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(
        (ArtefactError, FoldError), match="belong to .*model: .* (is missing|missing)"
    ):
        fold_file(plain[route], model=other)


def test_bare_tensors_and_a_model_that_lacks_their_weight(tmp_path: Path) -> None:
    cores = {f"x.weight_cores.{i}": torch.ones(1, 2, 2, 1) for i in range(2)}
    save_file(cores, tmp_path / "bare.safetensors")
    with pytest.raises(
        FoldError, match="the cores of 'x.weight' belong to no weight of the plan or"
    ):
        fold_file(tmp_path / "bare.safetensors", model=nn.Linear(4, 4))


def test_bare_tensors_that_are_no_chain(tmp_path: Path) -> None:
    save_file({"w_cores.0": torch.ones(2, 2)}, tmp_path / "flat.safetensors")
    with pytest.raises(FoldError, match="the cores of 'w' have 2 axes, wanted 4"):
        fold_file(tmp_path / "flat.safetensors")
    cores = {f"w_cores.{i}": torch.ones(1, 2, 2, 1) for i in (0, 2)}
    save_file(cores, tmp_path / "gap.safetensors")
    with pytest.raises(
        FoldError, match=r"holds the cores \[0, 2\] of 'w', wanted 0 to 2 without a"
    ):
        fold_file(tmp_path / "gap.safetensors")
    cores = {f"w_cores.{i}": torch.ones(1, 2, 2, 1) for i in (0, 1)}
    save_file(cores, tmp_path / "truncated.safetensors")
    with pytest.raises(FoldError, match="full bonds want"):
        fold_file(tmp_path / "truncated.safetensors")


def test_a_damaged_plan_in_the_header(plain: dict[str, Any], tmp_path: Path) -> None:
    save_file(plain["state"], tmp_path / "bad.safetensors", metadata={"opdf.plan": "{"})
    with pytest.raises(FoldError, match="the plan in the file's header is damaged .* --model"):
        fold_file(tmp_path / "bad.safetensors")


def test_a_student_that_is_folded_already(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "plain.safetensors")
    with pytest.raises(FoldError, match="holds no cores, wanted a file that expand wrote"):
        fold_file(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("name", ["expanded.pth", "expanded"])
def test_other_suffixes(plain: dict[str, Any], tmp_path: Path, name: str) -> None:
    sentence = "has the suffix .*, wanted .pt2 .programs. or .safetensors .tensors.; choose"
    with pytest.raises(ArtefactError, match=sentence):
        save_expanded(plain["expanded"], tmp_path / name)
    with pytest.raises(ArtefactError, match=sentence):
        fold_file(tmp_path / name)
    with pytest.raises(ArtefactError, match=sentence):
        fold_file(plain[".safetensors"]).save(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_missing_files(plain: dict[str, Any], tmp_path: Path) -> None:
    for suffix in (".pt2", ".safetensors"):
        with pytest.raises(ArtefactError, match="missing"):
            fold_file(tmp_path / f"missing{suffix}")
    with pytest.raises(ArtefactError, match="nothing"):
        fold_file(plain[".safetensors"], weights=tmp_path / "nothing.safetensors")


@pytest.mark.slow
def test_damaged_notes_are_refused_and_missing_ones_cost_the_tied_name(
    files: dict[str, Path], tmp_path: Path
) -> None:
    programs = read_programs(files["expanded.pt2"]).programs
    notes = ("{", "[]", '{"aliases": 3}', '{"aliases": {"a": "bc"}}', '{"aliases": {"a": [1]}}')
    for index, note in enumerate(notes):
        path = tmp_path / f"{index}.pt2"
        write_programs(path, {"model": programs["model"]}, {"opdf.json": note})
        # Without its notes the student would lose a key, unnoticed.
        with pytest.raises(ArtefactError, match="damaged notes about tied weights"):
            fold_file(path)
    # A user who saves a trained program again drops them; the weight is there under one name.
    write_programs(tmp_path / "again.pt2", {"model": programs["model"]})
    state = fold_file(tmp_path / "again.pt2").state
    assert "table.weight" in state and "head.weight" not in state
