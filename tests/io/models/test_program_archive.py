"""One archive, one program per phase: shared payloads, ties, extra texts, plain torch."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from opdf_compile.errors import ArtefactError, InternalError
from opdf_compile.io.models.program_archive import read_programs, retie, write_programs


class Student(nn.Module):
    """Ties, equal-valued biases, BatchNorm, dropout, a frozen weight, a non-persistent buffer."""

    scale: Tensor

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.a = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 16)
        self.head.weight = self.embed.weight
        nn.init.zeros_(self.a.bias)
        self.other = nn.Parameter(torch.zeros(width))
        self.a.weight.requires_grad_(False)
        self.register_buffer("scale", torch.full((width,), 2.0), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.drop(self.norm(self.a(self.embed(ids)) + self.other)) * self.scale
        return {"logits": self.head(hidden)}


def both_phases(model: nn.Module, args: tuple[Tensor, ...]) -> dict[str, ExportedProgram]:
    batch = {"ids": {0: Dim("batch")}} if isinstance(model, Student) else None
    programs = {}
    for name, training in (("model", True), ("eval", False)):
        model.train(training)
        programs[name] = torch.export.export(model, args, dynamic_shapes=batch, strict=False)
    return programs


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student]:
    torch.manual_seed(0)
    model = Student()
    path = tmp_path_factory.mktemp("archive") / "student.pt2"
    programs = both_phases(model, (torch.arange(4),))
    write_programs(path, programs, {"plan.json": '{"a": "\u00e9"}'})
    return path, model


def test_both_phases_come_back(archive: tuple[Path, Student]) -> None:
    path, model = archive
    loaded = read_programs(path)
    assert list(loaded.programs) == ["model", "eval"]
    assert loaded.extra == {"plan.json": '{"a": "\u00e9"}'}
    ids = torch.arange(6)
    got = loaded.programs["eval"].module()(ids)["logits"]
    assert torch.equal(got, model.eval()(ids)["logits"])
    train = loaded.model.module()
    assert not torch.equal(train(ids)["logits"], train(ids)["logits"])
    assert loaded.model.example_inputs is not None


def test_programs_share_parameters_and_buffers(archive: tuple[Path, Student]) -> None:
    loaded = read_programs(archive[0])
    model, evaluation = (loaded.programs[name].state_dict for name in ("model", "eval"))
    assert set(model) == set(evaluation)
    assert all(model[name] is evaluation[name] for name in model)
    assert loaded.model.constants["scale"] is loaded.programs["eval"].constants["scale"]
    assert not model["a.weight"].requires_grad and model["embed.weight"].requires_grad


def test_invariant_3_ties_survive_the_file(archive: tuple[Path, Student]) -> None:
    loaded = read_programs(archive[0])
    state = loaded.model.state_dict
    assert state["embed.weight"] is state["head.weight"]
    graph = loaded.model.module()
    assert len(list(graph.parameters())) == len(list(archive[1].parameters()))


def test_plain_torch_leaves_two_parameters_which_retie_makes_one(
    archive: tuple[Path, Student],
) -> None:
    program = torch.export.load(str(archive[0]))
    state = program.state_dict
    assert state["embed.weight"] is not state["head.weight"]
    assert retie(program) == (("embed.weight", "head.weight"),)
    assert state["embed.weight"] is state["head.weight"]
    assert retie(program) == (("embed.weight", "head.weight"),)


def test_equal_values_are_not_ties(archive: tuple[Path, Student]) -> None:
    for program in read_programs(archive[0]).programs.values():
        state = program.state_dict
        with torch.no_grad():
            state["a.bias"].add_(1)
        assert torch.equal(state["other"], torch.zeros(8))
        with torch.no_grad():
            state["a.bias"].sub_(1)


def test_equal_biases_stay_apart_in_plain_torch(archive: tuple[Path, Student]) -> None:
    state = torch.export.load(str(archive[0])).state_dict
    assert state["a.bias"].data_ptr() != state["other"].data_ptr()


def test_weights_are_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Dropout(), nn.Linear(256, 256))
    weights = sum(p.numel() * 4 for p in model.parameters())
    write_programs(tmp_path / "both.pt2", both_phases(model, (torch.randn(2, 256),)))
    assert weights < (tmp_path / "both.pt2").stat().st_size < 1.2 * weights
    assert read_programs(tmp_path / "both.pt2").programs.keys() == {"model", "eval"}


def test_old_torch_packs_weights_twice_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.export.pt2_archive import _package

    package = _package.package_pt2

    def package_pt2(path: str, **keywords: object) -> None:
        monkeypatch.undo()
        package(path, **keywords)  # type: ignore[arg-type]

    model = nn.Linear(4, 4)
    programs = both_phases(model, (torch.randn(2, 4),))
    monkeypatch.setattr(_package, "package_pt2", package_pt2)
    monkeypatch.delattr(_package, "_package_extra_files")
    write_programs(tmp_path / "both.pt2", programs, {"a": "b"})
    loaded = read_programs(tmp_path / "both.pt2")
    assert loaded.extra == {"a": "b"}
    both = loaded.programs["eval"].state_dict
    assert loaded.model.state_dict["weight"] is both["weight"]


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opdf_compile":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
program = torch.export.load(sys.argv[1])
module = program.module()
out = module(torch.arange(5))["logits"]
out.sum().backward()
assert any(p.grad is not None for n, p in module.named_parameters() if n == "head.weight")
torch.export.save(program, sys.argv[2])
print(tuple(out.shape))
"""


@pytest.mark.slow
def test_a_process_without_opdf_compile_opens_trains_and_saves(
    archive: tuple[Path, Student], tmp_path: Path
) -> None:
    again = tmp_path / "again.pt2"
    command = [sys.executable, "-c", ALONE, str(archive[0]), str(again)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(5, 16)"
    loaded = read_programs(again)
    assert list(loaded.programs) == ["model"]
    state = loaded.model.state_dict
    assert state["embed.weight"] is state["head.weight"]


def test_programs_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first = both_phases(nn.Linear(4, 4), (torch.randn(2, 4),))
    second = both_phases(nn.Linear(4, 4), (torch.randn(2, 4),))
    mixed = {"model": first["model"], "eval": second["eval"]}
    write_programs(tmp_path / "mixed.pt2", mixed)
    with pytest.raises(ArtefactError, match="contradicts itself: (weight|bias) differs"):
        read_programs(tmp_path / "mixed.pt2")


def test_what_cannot_be_written_is_a_sentence(
    archive: tuple[Path, Student], tmp_path: Path
) -> None:
    programs = read_programs(archive[0]).programs
    with pytest.raises(ArtefactError, match="end in .pt2"):
        write_programs(tmp_path / "x.zip", programs)
    with pytest.raises(InternalError, match="called 'model'"):
        write_programs(tmp_path / "x.pt2", {"eval": programs["eval"]})
    with pytest.raises(ArtefactError, match="does not exist; create it"):
        write_programs(tmp_path / "none" / "x.pt2", programs)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    programs = both_phases(nn.Linear(64, 64), (torch.randn(2, 64),))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
    try:
        with pytest.raises(ArtefactError, match="cannot write .*big.pt2: .*free space"):
            write_programs(tmp_path / "big.pt2", programs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_the_programs_as_they_were(tmp_path: Path) -> None:
    programs = both_phases(nn.Linear(4, 4), (torch.randn(2, 4),))
    program = programs["model"]
    program._guards_code = ["double(1) == 2", "L['input'].size()[0] >= 2"]
    inputs = program.example_inputs
    write_programs(tmp_path / "x.pt2", programs)
    assert len(program._guards_code) == 2 and program.example_inputs is inputs
    assert torch.export.load(str(tmp_path / "x.pt2"))._guards_code == ["L['input'].size()[0] >= 2"]
    assert read_programs(tmp_path / "x.pt2").model._guards_code == []
