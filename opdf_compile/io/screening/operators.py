"""Which operators a model file may name.

torch resolves an operator's name by walking attributes from the `torch` module
(torch/_export/serde/serialize.py, `deserialize_operator`), and any callable it finds there becomes
a node of the graph, also one of a module that torch happens to import, or an operator that works on
files. Here a name must be a registered operator of a known kind, or one of the pure functions of
sizes.
"""

from __future__ import annotations

import functools
import re

import torch

from opdf_compile.io.screening.syntax import NotPlain

_OVERLOAD = re.compile(r"torch\.ops\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.([A-Za-z_]\w*)", re.ASCII)
_SIZES = re.compile(
    r"_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor"
    r"|not_|invert|lshift|rshift|getitem)"
    r"|math\.(?:trunc|floor|ceil|sqrt|log|log2|exp|sin|cos|tan|tanh|pow)"
    r"|torch\.(?:sym_[a-z0-9_]+|_sym_[a-z0-9_]+)",
    re.ASCII,
)
# Control flow and modes whose bodies are graphs in the file, so that the same checks apply inside.
# Left out on purpose: kernels given as source text (triton), calls into compiled libraries and
# delegates, TorchScript objects, and those that print.
_CONTROL_FLOW = frozenset(
    (
        *("cond", "while_loop", "scan", "associative_scan", "map", "map_impl", "invoke_subgraph"),
        *("wrap", "wrap_with_set_grad_enabled", "wrap_with_autocast", "wrap_activation_checkpoint"),
        *("tag_activation_checkpoint", "hints_wrapper", "out_dtype", "strict_mode", "with_effects"),
        *("auto_functionalized", "auto_functionalized_v2"),
        *("flex_attention", "flex_attention_backward"),
    )
)
_ARITHMETIC = frozenset({"aten", "prims", "quantized_decomposed", "torchvision", "torchao"})
# Namespaces of torch itself that reach past arithmetic: raw memory, processes, files, prints.
_INTERNAL = frozenset(
    (
        *("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem", "_dtensor"),
        *("prim", "rngprims", "static_runtime", "inductor", "inductor_prims", "_native", "export"),
        *("profiler", "debugprims", "debug_mode_ops", "_test", "higher_order"),
    )
)
# The few operators without a tensor that torch.export writes. The others reach past arithmetic:
# some print what a file says, one changes the process's seed.
_OF_NUMBERS = frozenset(["sym_constrain_range", "sym_constrain_range_for_size", "_assert_scalar"])
# An operator may map a file of the user's, or create or change it.
_FILE_WORDS = ("file", "path")


@functools.cache
def check_operator(name: str) -> None:
    """Accept a registered arithmetic operator, control flow, or a pure function of sizes.

    Raises:
        NotPlain: Anything else; the message names it.
    """
    if _SIZES.fullmatch(name):
        return
    higher = _HIGHER_ORDER.fullmatch(name)
    if higher:
        if higher[1] not in _CONTROL_FLOW:
            raise NotPlain(f"the operator {name!r} is not arithmetic or control flow")
        return
    overload = _OVERLOAD.fullmatch(name)
    if not overload:
        raise NotPlain(f"{name[:80]!r} is not the name of an operator")
    namespace, operator, variant = overload.groups()
    if namespace in _INTERNAL:
        raise NotPlain(f"the operator {name!r} is not arithmetic or control flow")
    _check_schema(name, namespace, operator, variant)


def _check_schema(name: str, namespace: str, operator: str, variant: str) -> None:
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    found = getattr(packet, variant, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise NotPlain(
            f"the operator {name!r} is not registered in this process (import the package that "
            "defines it)"
        )
    schema = found._schema
    kinds = [str(value.type) for value in (*schema.arguments, *schema.returns)]
    if operator not in _OF_NUMBERS and not any("Tensor" in kind for kind in kinds):
        raise NotPlain(f"the operator {name!r} computes no tensor")
    for argument in schema.arguments:
        text = "str" in str(argument.type)
        if text and any(word in argument.name.lower() for word in _FILE_WORDS):
            raise NotPlain(f"the operator {name!r} opens files")
        if text and namespace not in _ARITHMETIC:
            raise NotPlain(f"the operator {name!r} takes texts and is not one of torch's own")
    if operator == "save":
        raise NotPlain(f"the operator {name!r} opens files")
