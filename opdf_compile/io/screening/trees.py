"""How inputs and outputs are nested: the tree specs and sample inputs of a model file.

torch rebuilds a tree spec with `torch.utils._pytree.treespec_loads`, which *imports modules by
name* for enum keys and for `defaultdict`. Names of keyword inputs become source code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.screening.syntax import NotPlain

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SAFE_TEXT = re.compile(r"[^\"'\\`{}\x00-\x1f\x7f-\x9f\u2028\u2029]{0,1024}")
_DEEPEST = 64
MOST_VALUES = 100_000
_CONTAINERS = frozenset(
    {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)
_NAMED_TUPLE = "collections.namedtuple"
_DEFAULT_DICT = "collections.defaultdict"
_NUMBERS = (int, float, bool, complex, type(None), torch.dtype, torch.device, torch.Size)


def check_safe_text(text: Any) -> None:
    """Accept a text without quotes, backslashes or control characters.

    Raises:
        NotPlain: torch would paste the text between quotes in source code.
    """
    if not isinstance(text, str) or not _SAFE_TEXT.fullmatch(text):
        raise NotPlain(f"the text {str(text)[:60]!r} could end a quotation in generated code")


def check_treespec(text: str, *, keywords: bool = False) -> None:
    """Accept a serialized tree of plain containers and types known to this process.

    Args:
        text: What `treespec_dumps` wrote: JSON `[1, {"type", "context", "children_spec"}]`.
        keywords: The tree is (args, kwargs), whose keywords become names of `forward`.

    Raises:
        NotPlain: Something else is in it.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotPlain("the tree of inputs or outputs is no JSON") from error
    if not (isinstance(document, list) and len(document) == 2 and document[0] == 1):
        raise NotPlain("the tree of inputs or outputs has an unknown version")
    _check_node(document[1], 0)
    if keywords:
        _check_keywords(document[1])


def _check_keywords(root: dict[str, Any]) -> None:
    children = root["children_spec"]
    if root["type"] != "builtins.tuple" or len(children) != 2:
        return
    if children[1]["type"] == "builtins.dict":
        for key in json.loads(children[1]["context"]):
            if not (isinstance(key, str) and _IDENTIFIER.fullmatch(key)):
                raise NotPlain(f"the input name {str(key)[:60]!r} is not a plain name")


def _check_node(node: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise NotPlain(f"inputs or outputs are nested deeper than {_DEEPEST}")
    if not isinstance(node, dict) or not {"type", "context", "children_spec"} <= node.keys():
        raise NotPlain("the tree of inputs or outputs is malformed")
    kind, children = node["type"], node["children_spec"]
    if not isinstance(children, list) or not (kind is None or isinstance(kind, str)):
        raise NotPlain("the tree of inputs or outputs is malformed")
    if kind in _CONTAINERS or kind is None:
        _check_context(node["context"])
    else:
        _check_registered(kind, node["context"])
    for child in children:
        _check_node(child, depth + 1)


def _check_context(context: Any) -> None:
    """A container's context is JSON in a text: null, or the list of keys."""
    if context is None:
        return
    if not isinstance(context, str):
        raise NotPlain("the tree of inputs or outputs is malformed")
    try:
        keys = json.loads(context)
    except (ValueError, RecursionError) as error:
        raise NotPlain("the tree of inputs or outputs is no JSON") from error
    if keys is None:
        return
    if not isinstance(keys, list):
        raise NotPlain("the keys of the inputs or outputs are no list")
    for key in keys:
        if isinstance(key, str):
            check_safe_text(key)
        elif type(key) not in (int, bool, float, type(None)):
            # An enum key is written as a mapping; reading it imports the module it names.
            raise NotPlain("a key of the inputs or outputs is neither text nor number")


def _check_registered(kind: str, context: Any) -> None:
    """A type that some package registered in this process, read by torch's own JSON reader."""
    from torch.utils import _pytree

    if kind == _DEFAULT_DICT:
        raise NotPlain("inputs or outputs contain a defaultdict, which names a module to import")
    python_type = _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(kind)
    if python_type is None:
        raise NotPlain(
            f"inputs or outputs contain a {kind[:80]}, which this process does not know (import "
            "the package that defines it, or export a model that returns plain tensors)"
        )
    if kind == _NAMED_TUPLE:
        return  # Its context is looked up among the registered named tuples, nothing else.
    if _pytree.SUPPORTED_SERIALIZED_TYPES[python_type].from_dumpable_context is not None:
        raise NotPlain(f"inputs or outputs contain a {kind[:80]}, which has a reader of its own")
    _check_context(context)


def check_sample(value: Any) -> None:
    """Accept sample inputs made of tensors, numbers, plain texts and plain containers.

    Raises:
        NotPlain: Something else is in it, or more than a model takes.
    """
    left = MOST_VALUES
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        left -= 1
        # A pickle may name one list in many places, so its length does not bound its values.
        if left < 0:
            raise NotPlain(f"the sample inputs hold more than {MOST_VALUES} values")
        if depth > _DEEPEST:
            raise NotPlain(f"the sample inputs are nested deeper than {_DEEPEST}")
        waiting.extend((part, depth + 1) for part in _sample_parts(found))


def _sample_parts(value: Any) -> Iterable[Any]:
    if type(value) is Tensor:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise NotPlain("the sample inputs contain a tensor that is no plain array of numbers")
        return ()
    if type(value) in _NUMBERS:
        return ()
    if isinstance(value, str):
        check_safe_text(value)
        return ()
    if type(value) in (tuple, list):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, dict):
        raise NotPlain(f"the sample inputs contain a {type(value).__name__}")
    for key in value:
        if not isinstance(key, int):
            check_safe_text(key)
    return value.values()
