"""A forward with ``*args`` or ``**kwargs``, as torch.export wants to read it.

torch.export matches the request for dynamic shapes to the parameters of ``forward`` and fails on
inputs that come in through ``*args`` or ``**kwargs``. For the length of one export such a forward
shows a signature that names each of them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from opdf_compile.graph.signature import CallArguments, forward_names

_KIND = inspect.Parameter
_COLLECTS = (_KIND.VAR_POSITIONAL, _KIND.VAR_KEYWORD)


@contextlib.contextmanager
def explicit_forward(model: nn.Module, inputs: CallArguments) -> Iterator[None]:
    """Give ``model.forward`` one parameter per input while the block runs, where it has none.

    Its class is not changed, and its own `forward` is back afterwards.
    """
    original = model.forward
    parameters = inspect.signature(original).parameters.values()
    bound = inspect.signature(original).bind(*inputs[0], **inputs[1]).arguments
    if not any(p.kind in _COLLECTS and p.name in bound for p in parameters):
        yield
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    places = forward_names(original, len(inputs[0]))
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(_KIND(name, _KIND.POSITIONAL_OR_KEYWORD) for name in places),
            *(_KIND(name, _KIND.KEYWORD_ONLY) for name in inputs[1]),
        ]
    )
    own = vars(model).get("forward")  # Some libraries set a forward on the instance.
    vars(model)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own
