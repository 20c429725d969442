"""The names in a file of weights, brought to the model's: prefixes that wrappers put before them.

DataParallel writes `module.`, Lightning `model.` or `student.`, torch.compile `_orig_mod.`, and one
inside the other `module._orig_mod.`. transformers saves a bare model without its name (`encoder.0`)
and the same model under a head with it (`bert.encoder.0`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_PREFIXES = ("module.", "model.", "_orig_mod.", "student.")
_DEEPEST = 8


def renamed(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], base: str, path: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under the model's names, and a note about what was changed.

    Args:
        tensors: As the file has them.
        state: The model's state dict.
        base: transformers' name of the bare model ("bert"), or empty.
        path: The file, for the note.
    """
    taken = _wrapper(tensors, state)
    if taken:
        short = {name.removeprefix(taken): tensor for name, tensor in tensors.items()}
        return short, (f"took the prefix {taken!r} off every name in {path}",)
    own = f"{base}."
    if not base or _fits(tensors, state):
        return dict(tensors), ()
    shorter = {name.removeprefix(own): tensor for name, tensor in tensors.items()}
    if len(shorter) == len(tensors) and _fits(shorter, state):
        return shorter, (f"took the prefix {own!r} off the names in {path}",)
    # A name that the model has as it is (a head's) stays.
    longer = {n if n in state else own + n: tensor for n, tensor in tensors.items()}
    if len(longer) == len(tensors) and _fits(longer, state):
        return longer, (f"put the prefix {own!r} before the names in {path}",)
    return dict(tensors), ()


def first_names(names: list[str]) -> str:
    """The first names of a list, for a sentence."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def hint(tensors: Iterable[str], state: Mapping[str, Tensor]) -> str:
    """What to do about names that differ."""
    names = set(tensors)
    anchor = next(iter(state), "")
    for name in sorted(names):
        prefix = name.removesuffix(anchor)
        if anchor and prefix and prefix != name and all(prefix + own in names for own in state):
            others = sorted(found for found in names if not found.startswith(prefix))
            beside = f", beside {first_names(others)}" if others else ""
            return (
                f"the file holds all of them under the prefix {prefix!r}{beside}, so save that "
                "part's own state_dict()"
            )
    return "give the weights that were saved from this model"


def _fits(names: Iterable[str], state: Mapping[str, Tensor]) -> bool:
    """Whether a file's names are all the model's; some of the model's may be tied and absent."""
    return all(name in state for name in names)


def _wrapper(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The chain of wrappers' prefixes that all names share and whose removal makes them fit."""
    if not tensors or any(name in state for name in tensors):
        return ""
    names, taken = list(tensors), ""
    for _ in range(_DEEPEST):
        found = next((p for p in _PREFIXES if all(n.startswith(p) for n in names)), None)
        if found is None:
            return ""
        taken += found
        names = [name.removeprefix(found) for name in names]
        if any(name in state for name in names):
            return taken
    return ""
