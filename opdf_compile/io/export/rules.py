"""What torch's exporter asks of its translation rules, asked once in a process.

Every call of `torch.onnx.export` gathers the rules anew. It asks each of the five hundred functions
that onnxscript brings for its domain, for which onnxscript parses the function's source, and for
its signature, out of the annotations: two thirds and more of the processor time that a lone Linear
layer takes (torch 2.13, onnxscript 0.7). A function's answers are always the same, so they are kept
by function: one that is registered later is asked when it is met.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# The names below are torch's and onnxscript's own affair: where one is gone, nothing is kept.
_MISSING = object()


class _InUse:
    """What the blocks that are open in all threads share: the first puts in, the last takes out."""

    lock = threading.Lock()
    blocks = 0
    stack = ExitStack()


@contextmanager
def remembered_rules() -> Iterator[None]:
    """Within the block no rule is asked twice for what it cannot change."""
    with _InUse.lock:
        if not _InUse.blocks:
            for owner, name, keeping in _questions():
                _InUse.stack.enter_context(_in_place_of(owner, name, keeping))
        _InUse.blocks += 1
    try:
        yield
    finally:
        with _InUse.lock:
            _InUse.blocks -= 1
            if not _InUse.blocks:
                _InUse.stack.close()


def _questions() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    try:
        from onnxscript.values import TracedOnnxFunction
        from torch.onnx._internal.exporter import _schemas
    except ImportError:
        return
    yield TracedOnnxFunction, "function_ir", _kept_property
    yield _schemas, "op_signature_from_function", _kept_function


@contextmanager
def _in_place_of(owner: Any, name: str, keeping: Callable[[Any], Any]) -> Iterator[None]:
    found = vars(owner).get(name, _MISSING)
    if found is _MISSING:
        yield
        return
    setattr(owner, name, keeping(found))
    try:
        yield
    finally:
        setattr(owner, name, found)


@functools.cache
def _kept_property(found: Any) -> Any:
    return property(functools.cache(found.fget))


@functools.cache
def _kept_function(found: Callable[..., Any]) -> Callable[..., Any]:
    from onnxscript.values import OnnxFunction, TracedOnnxFunction

    kept = functools.cache(found)

    @functools.wraps(found)
    def asked(function: Any, *args: Any, **options: Any) -> Any:
        # Rules of ours and of users are plain functions, some of which are made for one export.
        ask = kept if isinstance(function, OnnxFunction | TracedOnnxFunction) else found
        return ask(function, *args, **options)

    return asked
