"""How new values get into a student's own tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from opdf_compile.errors import FoldError


def require_same_names(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Refuse to fill a module of another make; nothing is written then.

    Raises:
        FoldError: Its names are others than those of the values.
    """
    odd = sorted(tensors.keys() ^ values.keys())
    if odd:
        raise FoldError(
            f"the module to fill and the student differ in {odd[0]!r} ({len(odd)} names in all), "
            "wanted an instance built as the student was"
        )


def overwrite(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors new values, on the values' devices; those without a value stay.

    Raises:
        FoldError: A value has another shape.
    """
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = values.get(name)
            if value is None:
                continue  # Not read by any graph: as it was when the student was traced.
            if value.shape != tensor.shape:
                raise FoldError(
                    f"{name!r} came out with shape {tuple(value.shape)}, the student has "
                    f"{tuple(tensor.shape)}; fold with the plan it was expanded with"
                )
            # .data keeps the Parameter object, and with it every tie and hook.
            # The layout of the skeleton (channels_last), the device of what was trained.
            tensor.data = torch.empty_like(tensor, device=value.device).copy_(value)
