"""Example inputs from the command line: `--input`, `--size`, `--inputs`.

--input x=2x3x224x224:float32        a named input
--input 2x3x224x224:float32          the next positional input
--input ids=BxS:int64 --size B=2,S=24    letters are dynamic axes; equal letters, one size
--inputs F.npz                       arrays by name; `arr_0`, `arr_1`, ... are positional
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError, first_line
from opdf_compile.files import DAMAGE, existing_file, read_npz

_FORM = "give it as NAME=SHAPE:DTYPE, for example x=2x3x224x224:float32"
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:=]*)(?::(?P<dtype>[^:=]*))?")
_AXIS = re.compile(r"[0-9]+|[A-Z][0-9]*|[a-wyz]")
_AXES = re.compile(r"(?:[0-9]+|[A-Z][0-9]*|[a-wyz])(?:x(?:[0-9]+|[A-Z][0-9]*|[a-wyz]))*")
MOST_DRAWN = 1 << 31
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "bool"),
    )
}
_SHORT = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
    "int": "int32",
    "long": "int64",
}


@dataclass(frozen=True)
class InputOptions:
    """The options as the user typed them.

    Attributes:
        specs: Each `--input`.
        file: `--inputs`.
        size: `--size`, such as "B=2,S=24".
    """

    specs: tuple[str, ...] = ()
    file: Path | None = None
    size: str | None = None

    def __bool__(self) -> bool:
        return bool(self.specs or self.file or self.size)


@dataclass(frozen=True)
class Hints:
    """What is known about valid values of an input, by its name.

    Attributes:
        limits: Integer inputs are drawn from [0, limit); 2 where nothing is known, which indexes
            any table of two rows or more.
        constants: Inputs that are filled with one number (an attention mask with 1).
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, int] = field(
        default_factory=lambda: {
            "attention_mask": 1,
            "decoder_attention_mask": 1,
            "token_type_ids": 0,
        }
    )


@dataclass(frozen=True)
class ExampleInputs:
    """Example inputs.

    Attributes:
        args: Positional ones.
        kwargs: By name.
        dynamic: For each input a letter (free) or a number (fixed) per axis; None where the user
            gave no letter, so that the first axis of every tensor is free.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, tuple[str | int, ...]] | None = None


@dataclass(frozen=True)
class _Spec:
    text: str
    name: str | None
    axes: tuple[str | int, ...]
    dtype: torch.dtype


def make_examples(
    options: InputOptions, positional: Sequence[str] = (), hints: Hints | None = None
) -> ExampleInputs:
    """Draw the example inputs that the options ask for; the same on every run.

    Args:
        options: What the user typed.
        positional: The names of the model's inputs in order, for the letters of unnamed inputs.
        hints: What values are valid.

    Returns:
        Inputs and dynamic axes: floats are standard normal, integers small, masks ones.

    Raises:
        InputError: An option is malformed or contradicts another one.
        ArtefactError: The `.npz` file cannot be read.
    """
    specs = [_parse(text) for text in options.specs]
    sizes = _sizes(options.size)
    _check_letters(specs, sizes)
    generator = torch.Generator().manual_seed(0)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if options.file is not None:
        args, kwargs = _args_and_kwargs(options.file)
    axes: dict[str, tuple[str | int, ...]] = {}
    for spec in specs:
        name = spec.name or _positional_name(positional, len(args), spec)
        tensor = _draw(spec, name, sizes, generator, hints or Hints())
        if spec.name is None:
            args.append(tensor)
        elif spec.name in kwargs:
            raise InputError(f"the input {spec.name!r} is given twice; give it once")
        else:
            kwargs[spec.name] = tensor
        axes[name] = spec.axes
    letters = any(isinstance(axis, str) for spec in specs for axis in spec.axes)
    return ExampleInputs(tuple(args), kwargs, axes if letters else None)


def rename_axes(examples: ExampleInputs, name_of: Callable[[str, int, str], str]) -> ExampleInputs:
    """Give the letters other names.

    Args:
        examples: Inputs whose `dynamic` holds letters.
        name_of: From input name, axis and letter to the new name. Two letters never become one:
            the second keeps its letter.
    """
    if examples.dynamic is None:
        return examples
    names: dict[str, str] = {}
    renamed = {}
    for name, axes in examples.dynamic.items():
        for index, axis in enumerate(axes):
            if isinstance(axis, str) and axis not in names:
                new = name_of(name, index, axis)
                names[axis] = axis if new in names.values() else new
        renamed[name] = tuple(names[a] if isinstance(a, str) else a for a in axes)
    return ExampleInputs(examples.args, examples.kwargs, renamed)


def _parse(text: str) -> _Spec:
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise InputError(f"--input {text!r} cannot be read; {_FORM}")
    shape, kind = match["shape"].strip(), (match["dtype"] or "float32").strip()
    dtype = _DTYPES.get(_SHORT.get(kind, kind))
    if dtype is None:
        raise InputError(
            f"--input {text!r} has the dtype {kind!r}, wanted one of {', '.join(_DTYPES)}; {_FORM}"
        )
    if not (shape == "scalar" or _AXES.fullmatch(shape)):
        raise InputError(
            f"--input {text!r} has the shape {shape!r}, wanted numbers or letters joined by x; "
            f"{_FORM}"
        )
    parts = [] if shape == "scalar" else _AXIS.findall(shape)
    axes = tuple(int(part) if part.isdigit() else part for part in parts)
    if 0 in axes:
        raise InputError(f"--input {text!r} has an axis of size 0, wanted at least 1; {_FORM}")
    return _Spec(text, match["name"], axes, dtype)


def _sizes(text: str | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        letter, _, number = (piece.strip() for piece in part.partition("="))
        if not (_AXIS.fullmatch(letter) and not letter.isdigit() and number.isdigit()):
            raise InputError(
                f"--size {text!r} cannot be read at {part.strip()!r}; give letters with sizes, "
                "for example B=2,S=24"
            )
        if letter in sizes:
            raise InputError(f"--size {text!r} gives {letter} twice; give it once")
        if int(number) < 1:
            raise InputError(f"--size {text!r} gives {letter} the size 0; give at least 1")
        sizes[letter] = int(number)
    return sizes


def _check_letters(specs: Iterable[_Spec], sizes: Mapping[str, int]) -> None:
    used = {axis for spec in specs for axis in spec.axes if isinstance(axis, str)}
    missing, unused = sorted(used - sizes.keys()), sorted(sizes.keys() - used)
    if missing:
        given = f" (--size gives {', '.join(sizes)})" if sizes else ""
        raise InputError(
            f"the letter {missing[0]} of --input has no size{given}; give it, for example --size "
            f"{','.join(f'{letter}=2' for letter in missing)}"
        )
    if unused:
        raise InputError(
            f"--size gives the letter {unused[0]}, which no --input uses (letters used: "
            f"{', '.join(sorted(used)) or 'none'}); remove it or correct it"
        )


def _positional_name(names: Sequence[str], index: int, spec: _Spec) -> str:
    if index < len(names):
        return names[index]
    if not names:
        return f"arg_{index}"
    raise InputError(
        f"--input {spec.text!r} is positional input number {index + 1}, the model takes "
        f"{len(names)} ({', '.join(names)}); name it or remove it"
    )


def _draw(
    spec: _Spec, name: str, sizes: Mapping[str, int], generator: torch.Generator, hints: Hints
) -> Tensor:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
    elements = math.prod(shape)
    if elements > MOST_DRAWN:
        raise InputError(
            f"--input {spec.text!r} has {elements} elements, at most {MOST_DRAWN} are drawn; "
            "give a smaller example"
        )
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    if name in hints.constants:
        return torch.full(shape, hints.constants[name], dtype=spec.dtype)
    limit = 2 if spec.dtype is torch.bool else hints.limits.get(name, 2)
    drawn = torch.randint(0, max(limit, 1), shape, generator=generator)
    return drawn.to(spec.dtype)


def input_arrays(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The arrays of a `.npz` file by name; objects in it, which would be pickles, are refused.

    Raises:
        InputError: It is no such file.
        ArtefactError: It does not exist.
    """
    file = existing_file(path, wanted="example inputs as .npz")
    try:
        return {name: torch.from_numpy(array) for name, array in read_npz(file).items()}
    except DAMAGE as error:
        raise InputError(
            f"{file} holds no example inputs ({first_line(error, 160)}); write it with "
            "numpy.savez(file, NAME=array, ...)"
        ) from error


def _args_and_kwargs(path: Path) -> tuple[list[Any], dict[str, Any]]:
    arrays = input_arrays(path)
    order = sorted((n for n in arrays if re.fullmatch(r"arr_[0-9]+", n)), key=lambda n: int(n[4:]))
    return [arrays.pop(name) for name in order], arrays
