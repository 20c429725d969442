"""Values as JSON, with the tensors among them set apart.

An optimizer's state mixes tensors with numbers (a step count, a learning rate). Tensors go into a
shard, the rest into the manifest, where ``{"$tensor": NAME}`` stands for a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, InputError

TENSOR = "$tensor"
_KINDS = "None, a truth value, a number, a text, a list, or a dict with texts as keys"


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value for `value`; its tensors are added to `tensors`.

    Args:
        value: A tensor, a number, a text, None, or lists and dicts of such.
        name: What a tensor is called in the shard; what lies deeper gets its place behind it.
        tensors: Changed in place.

    Raises:
        ArtefactError: The value holds something else, or two tensors would have one name.
    """
    if isinstance(value, Tensor):
        if name in tensors:
            raise ArtefactError(
                f"two tensors would be called {name!r} in the checkpoint, wanted distinct names; "
                "take the slashes out of the model's parameter names"
            )
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise ArtefactError(
                f"{name} is a {type(value).__name__} on {value.device}, wanted a whole, plain "
                "tensor; of what is sharded over ranks a checkpoint holds the weights and what "
                "belongs to one parameter each: wrap another optimizer"
            )
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, list | tuple):
        return [pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, dict) and TENSOR not in value and all(isinstance(k, str) for k in value):
        return {key: pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtefactError(
        f"{name} is a {type(value).__name__}, wanted tensors, numbers, texts, and lists and dicts "
        "of them; a checkpoint cannot hold it, so take it out of the optimizer or the module"
    )


def unpack(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The inverse of `pack`; tuples come back as lists.

    Args:
        value: A packed value, checked by `check_packed`.
        tensor: Gives the tensor of a name.
    """
    if isinstance(value, list):
        return [unpack(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensor(value[TENSOR])
    return {key: unpack(item, tensor) for key, item in value.items()}


def check_packed(value: Any) -> Any:
    """Return a JSON value if `pack` could have written it.

    Raises:
        ValueError: It could not.
    """
    if isinstance(value, dict):
        if TENSOR in value and (len(value) > 1 or not isinstance(value[TENSOR], str)):
            raise ValueError(f"{TENSOR} does not stand alone with a name")
        for item in value.values():
            check_packed(item)
    elif isinstance(value, list):
        for item in value:
            check_packed(item)
    return value


def json_text(value: Any, name: str) -> str:
    """`value` as JSON text that reads back as the same value (tuples as lists).

    Infinities and NaN are written as Python's json module writes them: schedulers keep them.

    Raises:
        InputError: It holds something that JSON does not know; the sentence says where.
    """
    try:
        _check_json(value, name)
        return json.dumps(value)
    except RecursionError as error:
        raise InputError(
            f"{name} is nested too deeply, or contains itself, wanted a JSON value; give less"
        ) from error
    except ValueError as error:  # A number with more digits than Python reads back.
        raise InputError(f"{name} cannot be written as JSON ({error}); leave it out") from error


def _check_json(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(
                    f"{place} has the key {key!r}, a {type(key).__name__}, wanted texts as keys, "
                    f"which is all that JSON knows; write {str(key)!r}"
                )
            _check_json(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{place}[{index}]")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise InputError(
            f"{place} is a {type(value).__name__}, wanted a JSON value ({_KINDS}); convert it "
            "first, for instance with float() or .tolist()"
        )
