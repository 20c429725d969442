"""The answers of translation rules are asked for once, and change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnxscript
import pytest
import torch
from onnxscript.values import TracedOnnxFunction
from torch import nn
from torch.onnx._internal.exporter import _schemas

from opdf_compile.io.export import rules
from opdf_compile.io.export.rules import remembered_rules

NAMES = ((TracedOnnxFunction, "function_ir"), (_schemas, "op_signature_from_function"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions whose source is read, by name."""
    found: list[str] = []
    source = inspect.getsource

    def counted(function: Any) -> str:
        found.append(getattr(function, "__name__", "?"))
        return source(function)

    monkeypatch.setattr(inspect, "getsource", counted)
    return found


def exported() -> bytes:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)).eval()
    program = torch.export.export(net, (torch.randn(2, 3),))
    made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert made is not None
    return made.model_proto.SerializeToString()


def test_the_second_export_reads_no_rule_and_makes_the_same_file(read: list[str]) -> None:
    bare = exported()
    # What is saved: several hundred functions are read in every export.
    assert len(read) > 300
    with remembered_rules():
        first = exported()
        read.clear()
        second = exported()
    assert first == second == bare
    assert not read


def test_afterwards_the_libraries_are_as_they_were() -> None:
    before = [vars(owner)[name] for owner, name in NAMES]
    with pytest.raises(KeyError), remembered_rules():
        assert all(vars(o)[n] is not b for (o, n), b in zip(NAMES, before, strict=True))
        raise KeyError
    assert [vars(owner)[name] for owner, name in NAMES] == before


def test_a_function_that_comes_later_is_asked_too() -> None:
    def made(name: str) -> Callable[..., Any]:
        space: dict[str, Any] = {}
        exec(f"def {name}(x: int): return x", space)
        return space[name]

    with remembered_rules():
        asked = _schemas.op_signature_from_function
        for name in ("one", "two"):
            own = made(name)
            assert asked(own, "d").name == name
            # A plain function may be made for one export and is not kept.
            assert asked(own, "d") is not asked(own, "d")
        traced = TracedOnnxFunction(onnxscript.values.Opset("d", 1), made("three"))
        assert asked(traced, "d", "n") is asked(traced, "d", "n")
        assert asked(traced, "d", "other").name == "other"


def test_where_a_library_has_no_such_name_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = SimpleNamespace(there=1)
    asked = [(owner, "gone", lambda found: 2), (owner, "there", lambda found: 2)]
    monkeypatch.setattr(rules, "_questions", lambda: iter(asked))
    with remembered_rules():
        assert vars(owner) == {"there": 2}
    assert vars(owner) == {"there": 1}


def test_blocks_of_two_threads_that_overlap_leave_nothing_behind() -> None:
    before = [vars(owner)[name] for owner, name in NAMES]
    first, second = remembered_rules(), remembered_rules()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert all(vars(o)[n] is not b for (o, n), b in zip(NAMES, before, strict=True))
    second.__exit__(None, None, None)
    assert [vars(owner)[name] for owner, name in NAMES] == before
