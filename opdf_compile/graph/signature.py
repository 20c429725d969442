"""Names for what goes into and comes out of a model.

Inputs are named by the parameters of ``forward``; a tensor inside a container gets the container's
name and its own path (``states_0``, ``batch_mask``). Outputs are named by the keys of the model's
output; positions of a tuple become ``output_0``, ``output_1``, and a lone tensor ``output``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from opdf_compile.errors import InputError, require_type

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]


def normalise_inputs(args: Any, kwargs: Mapping[str, Any] | None) -> CallArguments:
    """Accept a tuple, a list, one tensor or one mapping (a batch) as example inputs.

    Returns:
        A tuple of positional inputs and a dict of keyword inputs.

    Raises:
        InputError: The value is none of these.
    """
    require_type(kwargs, Mapping | None, "kwargs", "a mapping of input names; {'mask': mask}, say")
    keywords = dict(kwargs or {})
    if isinstance(args, Mapping):
        clash = sorted(set(args) & set(keywords))
        if clash:
            raise InputError(
                f"the batch and kwargs both give {clash[0]!r}, wanted each input once; "
                "remove it from one of them"
            )
        return (), {**args, **keywords}
    if isinstance(args, Tensor):
        return (args,), keywords
    if isinstance(args, tuple | list):
        return tuple(args), keywords
    raise InputError(
        f"example inputs are a {type(args).__name__}, wanted a tuple of positional inputs or one "
        "mapping of keyword inputs; pass (x,) or {'x': x}"
    )


def bind_forward(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs by the names of ``forward``'s parameters, in its order.

    Raises:
        InputError: They do not fit the signature.
    """
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError as error:
        if not args and not kwargs:
            raise InputError(_none_given(forward)) from error
        raise InputError(
            f"the example inputs do not fit forward{inspect.signature(forward)}: {error}; "
            "name the inputs as forward names them"
        ) from error
    return dict(bound.arguments)


def _none_given(forward: Callable[..., Any]) -> str:
    signature = inspect.signature(forward)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]
    return (
        f"forward{signature} needs inputs and no example was given, wanted one for "
        f"{', '.join(names)}; pass example inputs, on the command line "
        f"--input {names[0]}=2x3x224x224:float32 with sizes and dtype of your own"
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among the leaves of a value, in pytree order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def tensor_names(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[str]:
    """One name for every tensor of ``(args, kwargs)``, in pytree order."""
    tops = [*forward_names(forward, len(args)), *kwargs]
    names: list[str] = []
    for top, value in zip(tops, [*args, *kwargs.values()], strict=True):
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, Tensor):
                names.append("_".join(filter(None, (top, path_name(path)))))
    return names


def forward_names(forward: Callable[..., Any], count: int) -> list[str]:
    """Names of the first `count` positional inputs; ``xs_0``, ``xs_1`` for those of ``*xs``."""
    names: list[str] = []
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            rest = count - len(names)
            return [*names, *(f"{parameter.name}_{index}" for index in range(rest))]
        names.append(parameter.name)
    return names[:count]


def path_name(path: Sequence[Any]) -> str:
    """A key path of pytree as one identifier: ``(0, 'mask')`` gives ``0_mask``."""
    return "_".join(str(_key(entry)).replace(".", "_") for entry in path)


def _key(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def output_names(spec: pytree.TreeSpec) -> list[str]:
    """One name for every leaf of the output, from the output's own structure."""
    if spec.is_leaf():
        return ["output"]
    names = []
    for prefix, child in zip(_child_keys(spec, top=True), spec.children(), strict=True):
        names.extend(_below(prefix, child))
    return names


def _below(prefix: str, spec: pytree.TreeSpec) -> list[str]:
    if spec.is_leaf():
        return [prefix]
    names = []
    for key, child in zip(_child_keys(spec, top=False), spec.children(), strict=True):
        names.extend(_below(f"{prefix}_{key}", child))
    return names


def _child_keys(spec: pytree.TreeSpec, *, top: bool) -> list[str]:
    """Keys of a dict-like node; positions for everything else."""
    keys = _mapping_keys(spec)
    if keys is not None:
        return [str(key).replace(".", "_") for key in keys]
    fields = getattr(spec.context, "_fields", None)  # A namedtuple's class.
    if fields is not None and len(fields) == spec.num_children:
        return list(fields)
    positions = [str(index) for index in range(spec.num_children)]
    return [f"output_{index}" for index in positions] if top else positions


def _mapping_keys(spec: pytree.TreeSpec) -> list[Any] | None:
    # dict, OrderedDict and Hugging Face's ModelOutput all keep their keys as the node's context.
    # A registered dataclass keeps [field names, names of fields that were None].
    context = spec.context
    if isinstance(context, list) and context and isinstance(context[0], list | tuple):
        context = list(context[0])
    if isinstance(context, list | tuple) and len(context) == spec.num_children:
        return list(context)
    return None


def plain_spec(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The same tree with library classes replaced by dict, list and tuple.

    A file must open in a process that never imported the library whose output class it was.
    """
    if spec.is_leaf():
        return spec
    children = [plain_spec(child) for child in spec.children()]
    if spec.type in (tuple, list, dict):
        return pytree.TreeSpec(spec.type, spec.context, children)
    keys = _mapping_keys(spec)
    if keys is not None:
        return pytree.TreeSpec(dict, keys, children)
    return pytree.TreeSpec(tuple, None, children)


def request_tree(leaves: Sequence[Any], spec: pytree.TreeSpec) -> Any:
    """A tree of requests in the form that torch.export compares with the inputs' tree.

    Args:
        leaves: One per leaf, in pytree order.
        spec: The tree of the inputs. Where it holds a registered class, the request holds a list.
    """
    rest = iter(leaves)

    def build(node: pytree.TreeSpec) -> Any:
        if node.is_leaf():
            return next(rest)
        children = [build(child) for child in node.children()]
        if node.type not in pytree.BUILTIN_TYPES:
            return children
        return pytree.tree_unflatten(children, _one_level(node))

    return build(spec)


def _one_level(node: pytree.TreeSpec) -> pytree.TreeSpec:
    leaf = pytree.tree_structure(0)
    return pytree.TreeSpec(node.type, node.context, [leaf] * node.num_children)
