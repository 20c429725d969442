"""Values as plain ones and back: every kind, every refusal, and nothing that a file may choose."""

from __future__ import annotations

import io
import json
import types
from collections import Counter, OrderedDict, defaultdict, deque
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer.plain_reading import PlainReader
from opdf_compile.training.optimizer.plain_values import PlainWriter, written_options
from opdf_compile.training.optimizer.weight_state import equal, own

CORE = nn.Parameter(torch.ones(2))
WRITER = PlainWriter("Wrapped", {id(CORE): "0.weight_cores.0"})
READER = PlainReader({"0.weight_cores.0": CORE})


class Pair(Tensor):
    """A tensor of two others, which knows no clone, as quantised states are."""

    codes: Tensor
    scale: Tensor
    signed: bool

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, signed: bool) -> Pair:
        made: Pair = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale, made.signed = codes, scale, signed
        return made

    def __tensor_flatten__(self) -> tuple[list[str], list[bool]]:
        return ["codes", "scale"], [self.signed]

    @classmethod
    def __tensor_unflatten__(cls, parts: Any, context: Any, size: Any, stride: Any) -> Pair:
        return cls(parts["codes"], parts["scale"], *context)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of a Pair")


class Undeclared(Pair):
    """The same, but nobody told torch that files may hold it."""


class Norm(IntEnum):
    """A setting."""

    SIGN = 1
    SPECTRAL = 2


def pair(kind: type[Pair] = Pair) -> Pair:
    return kind(torch.arange(4, dtype=torch.uint8), torch.tensor([0.5]), True)


torch.serialization.add_safe_globals([Pair])

VALUES: dict[str, Any] = {
    "numbers": [1, 2.5, True, None, "text", -float("inf")],
    "tuple": (1, (2, [3])),
    "set": {1, "a"},
    "frozenset": frozenset({(1, 2)}),
    "numbers as keys": {0: {"exp_avg": torch.ones(2)}, "a": 1},
    "pairs as keys": {(0, 1): torch.zeros(1)},
    "marks as keys": {"$tuple": [1], "$tensor": "x"},
    "ordered": OrderedDict(b=1, a=2),
    "counter": Counter("abca"),
    "defaults": defaultdict(dict, {3: {"a": 1}}),
    "deque": deque([1, 2], maxlen=5),
    "dtype and device": {"dtype": torch.bfloat16, "device": torch.device("cpu")},
    "size": torch.Size([2, 3]),
    "complex": 1 + 2j,
    "array": np.arange(3, dtype=np.int16),
    "number of numpy": np.float32(0.1),
}


def through_files(value: Any) -> Any:
    """By torch's file and by JSON: what a plain value must survive."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    tensors: list[Tensor] = []

    def apart(item: Any) -> Any:
        if isinstance(item, Tensor):
            tensors.append(item)
            return {"place": len(tensors) - 1}
        if isinstance(item, dict):
            return {key: apart(inside) for key, inside in item.items()}
        return [apart(inside) for inside in item] if isinstance(item, list) else item

    def together(item: Any) -> Any:
        if isinstance(item, dict):
            if item.keys() == {"place"}:
                return tensors[item["place"]]
            return {key: together(inside) for key, inside in item.items()}
        return [together(inside) for inside in item] if isinstance(item, list) else item

    loaded = torch.load(stream, weights_only=True)
    assert equal(together(json.loads(json.dumps(apart(value)))), loaded)
    return loaded


def kinds(value: Any) -> Any:
    """The types of a value, all the way down."""
    if isinstance(value, dict):
        return type(value), {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return type(value), [kinds(item) for item in value]
    return type(value)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_through_files(name: str) -> None:
    value = VALUES[name]
    back = READER.read(through_files(WRITER.write(value, "state")))
    assert kinds(back) == kinds(value)
    assert equal(back, value)
    if isinstance(value, deque):
        assert back.maxlen == value.maxlen
    if isinstance(value, defaultdict):
        assert back["new"] == {}


def test_plain_values_stay_as_they_are() -> None:
    value = {"step": 3, "list": [torch.ones(2), None], "text": "a.b"}
    written = WRITER.write(value, "state")
    assert written.keys() == value.keys() and kinds(written) == kinds(value)
    assert READER.read({0: (1, {2})}) == {0: (1, {2})}, "a state of an earlier version"


@pytest.mark.parametrize("key", ["exp_avg", "a.b", "$x", 0, (0, 1), None, True, CORE])
def test_a_key_comes_back(key: Any) -> None:
    text = WRITER.key(key, "state")
    assert type(text) is str
    back = READER.key(text)
    assert back is key or (back == key and type(back) is type(key))


def test_the_optimizers_own_parameters_are_written_by_name() -> None:
    written = WRITER.write({CORE: {"slow": CORE}, "of": [CORE]}, "state")
    assert "0.weight_cores.0" in json.dumps(written)
    back = READER.read(through_files(written))
    assert next(iter(back)) is CORE and back["of"][0] is CORE
    assert WRITER.write(nn.Parameter(torch.ones(2)), "state").requires_grad is False
    with pytest.raises(InputError, match=r"holds '\$parameter' in a form"):
        PlainReader({}).read(written)


def test_a_tensor_of_a_declared_class_comes_back() -> None:
    value = pair()
    back = READER.read(through_files(WRITER.write([value], "state")))[0]
    assert type(back) is Pair and back.signed
    assert torch.equal(back.codes, value.codes) and torch.equal(back.scale, value.scale)
    copied = own(value)
    assert copied.codes.data_ptr() != value.codes.data_ptr()
    assert torch.equal(copied.codes, value.codes)


def test_settings_are_compared_and_never_taken_from_a_file() -> None:
    held = {"schedule": b"some bytes", "cast": torch.add, "kind": nn.Linear, "count": 3}
    held["norm"] = Norm.SIGN
    written = through_files(PlainWriter("Wrapped", settings=True).write(held, "state_dict()"))
    assert "some bytes" not in repr(written)
    assert READER.read(written, {**held, "count": 9}) == held
    back = READER.read(written, {**held, "norm": Norm.SPECTRAL})
    assert back["norm"] is Norm.SIGN, "which member is a value, the enum is the optimizer's"
    for key, other in {
        "schedule": b"other bytes",
        "cast": torch.sub,
        "kind": nn.Conv2d,
        "norm": 2,
    }.items():
        with pytest.raises(InputError, match="saved with the setting .*found .* here; build"):
            READER.read(written, {**held, key: other})
    with pytest.raises(InputError, match="found None here"):
        READER.read(written)
    given = {"params": [CORE], "kind": nn.Linear, "betas": (0.9, 0.99), "in": torch.float64}
    assert written_options(given) == {
        "in": {"$dtype": "float64"},
        "kind": {"$named": "torch.nn.modules.linear.Linear"},
        "betas": (0.9, 0.99),
    }


REFUSED: dict[str, tuple[Any, str]] = {
    "object": ([1, {"a": object()}], r"keeps a object in state\[1\]\['a'\], which no state holds"),
    "generator": (torch.Generator(), "keeps a Generator in state"),
    "bytes of a parameter": (b"x", "keeps a bytes in state"),
    "an enum of a parameter": (Norm.SIGN, "keeps a Norm in state"),
    "a function": (torch.add, "keeps a builtin_function_or_method in state"),
    "a dict of its own": (types.SimpleNamespace(), "keeps a SimpleNamespace"),
    "defaults of its own": (defaultdict(lambda: 1), "keeps a defaultdict in state"),
    "an undeclared tensor": (pair(Undeclared), "the class Undeclared .*add_safe_globals"),
    "a sparse tensor": (torch.ones(2).to_sparse(), "the layout sparse_coo in state"),
    "a stranger as key": ({torch.ones(2): 1}, r"a tensor of shape \(2,\) that it does not step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_state_holds_is_refused_with_its_place(name: str) -> None:
    value, sentence = REFUSED[name]
    with pytest.raises(InputError, match=sentence):
        WRITER.write(value, "state")


def test_functions_without_a_name_are_no_settings() -> None:
    with pytest.raises(InputError, match="keeps a function in state"):
        PlainWriter("Wrapped", settings=True).write(lambda: 1, "state")


BROKEN: dict[str, Any] = {
    "an unknown kind": {"$import": "os"},
    "an unknown class": {"$class": "a.B", "parts": {}, "context": [], "size": [], "stride": []},
    "no dtype": {"$dtype": "nn"},
    "no pair": {"$dict": [[1]], "kind": "dict"},
    "an unknown dict": {"$dict": [], "kind": "type"},
    "an unknown default": {"$dict": [], "kind": "defaultdict", "default": "print"},
    "a number as a set": {"$set": 3},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_no_writer_wrote_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="in a form that cannot be read"):
        READER.read(BROKEN[name])
