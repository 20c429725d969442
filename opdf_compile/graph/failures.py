"""Why torch.export could not hold a model, in words that its author can act on."""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from pathlib import Path

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from opdf_compile.errors import first_line

# The code of these packages is not what the author of a model can change.
_NOT_THE_MODEL = tuple(
    str(Path(file).parent)
    for file in (torch.__file__, sys.modules["opdf_compile"].__file__)
    if file is not None
)
# A detector is the usual case: its boxes are chosen by their values, and the layers before are not.
PART_ALONE = (
    "wrap the part that a graph can hold (of a detector: backbone and head, without the choice of "
    "boxes) in a module of its own and export that"
)
_ON_VALUES = "Python code depends on the value of a tensor"
_CANNOT_TAKE_APART = "torch.export cannot take apart"
_UNFOLLOWED = "fake tensor in the exported program constant's list"
_UNKNOWN_CLASS = re.compile(
    r"input type <class '([^']+)'>|Found <class '([^']+)'> in output, which is not a known type"
)
# torch.export's names for sizes and numbers that are read out of tensors.
_FROM_DATA = ("u", "zuf")


def reason_of(error: BaseException) -> str:
    """What went wrong and, where it is known, the line of the model that it comes from."""
    unknown = _UNKNOWN_CLASS.search(str(error))
    if unknown:
        side = "an input" if unknown[1] else "the output"
        name = (unknown[1] or unknown[2]).rpartition(".")[2]
        return (
            f"{side} holds a {name}, which {_CANNOT_TAKE_APART}: it takes tensors, tuples, lists, "
            "dicts, dataclasses and classes registered with pytree"
        )
    if _UNFOLLOWED in str(error):
        return "forward reads a tensor where torch.export cannot follow (`.data`, torch.func)"
    what = _ON_VALUES if _data_dependent(error) else first_line(error)
    where = failing_line(error)
    return f"{what}, at {where}" if where else what


def remedy_of(reason: str) -> str:
    """What to write instead; reads on from "wanted"."""
    if reason.startswith(_ON_VALUES):
        return (
            "a forward without branches on tensor values; write the branch with torch.cond or "
            "torch.where"
        )
    if _CANNOT_TAKE_APART in reason:
        return "inputs and outputs that it can; have forward take and return those"
    return "a forward that torch.export can hold; rewrite that part with torch operations"


def failing_line(error: BaseException) -> str | None:
    """The last line of the model's own code that an error passed through.

    Returns:
        ``model.py:12 in forward: `if x.sum() > 0:` ``, or None where no line of the model was
        running (constraints are checked after the forward has been run).
    """
    for link in reversed(_chain(error)):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if frame.filename.startswith(_NOT_THE_MODEL) or frame.filename.startswith("<"):
                continue
            if not Path(frame.filename).exists() or not frame.lineno:
                continue
            if f"{Path(sys.prefix) / 'bin'}" in frame.filename or frame.name == "<module>":
                continue
            line = linecache.getline(frame.filename, frame.lineno).strip()
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: `{line}`"
    return None


def depends_only_on_data(error: BaseException) -> bool:
    """Whether the model's Python code asked for a value that no size of an input decides."""
    return any(
        all(str(symbol).startswith(_FROM_DATA) for symbol in link.cond.free_symbols)
        for link in _data_dependent(error)
    )


def _data_dependent(error: BaseException) -> list[GuardOnDataDependentSymNode]:
    return [link for link in _chain(error) if isinstance(link, GuardOnDataDependentSymNode)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a limit of the machine, not of the model."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while True:
        cause = chain[-1].__cause__ or chain[-1].__context__
        if cause is None or cause in chain:
            return chain
        chain.append(cause)
