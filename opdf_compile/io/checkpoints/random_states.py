"""The random number generators of one process: torch's, python's, numpy's.

Without them a resumed run drops out other units and shuffles other batches than the uninterrupted
one. States are tried on generators that nobody uses before any real one is set.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import ArtefactError, first_line

_LOG = logging.getLogger("opdf_compile")


def random_states() -> dict[str, Any]:
    """The states as tensors and numbers, by the name of the generator."""
    version, words, gauss = random.getstate()
    # Asking for its state would initialise CUDA in a process that does not use it.
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if uses_cuda else [],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": _numpy_state(),
    }


def restorer(states: dict[str, Any], source: str) -> Callable[[], None]:
    """What sets the generators, after trying every state.

    Args:
        states: What `random_states` returned, read back.
        source: Where they come from, for the sentence.

    Raises:
        ArtefactError: A state is none.
    """
    try:
        actions = [
            _torch(states["torch"]),
            *_cuda(states["cuda"]),
            _python(states["python"]),
            *_numpy(states["numpy"]),
        ]
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, OverflowError) as error:
        raise ArtefactError(
            f"{source}: its random number states cannot be restored "
            f"({first_line(error, 100)}); load with rng=False to go on with other random numbers"
        ) from error
    return partial(_run, actions)


def _run(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _torch(state: Tensor) -> Callable[[], None]:
    torch.Generator().set_state(state)
    return partial(torch.set_rng_state, state)


def _cuda(states: list[Tensor]) -> list[Callable[[], None]]:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states) > found:
        _LOG.warning(
            "the checkpoint holds random number states of %d CUDA devices and this machine has "
            "%d: those of the others are not restored",
            len(states),
            found,
        )
    actions: list[Callable[[], None]] = []
    for index, state in enumerate(states[:found]):
        torch.Generator(device=f"cuda:{index}").set_state(state)
        actions.append(partial(torch.cuda.set_rng_state, state, index))
    return actions


def _python(state: list[Any]) -> Callable[[], None]:
    version, words, gauss = state
    whole = (version, tuple(words.tolist()), gauss)
    random.Random().setstate(whole)
    return partial(random.setstate, whole)


def _numpy_state() -> list[Any] | None:
    import numpy as np

    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return None  # Somebody chose another global generator; its state has another form.
    inner: Any = state["state"]
    key = torch.tensor(inner["key"].tolist(), dtype=torch.int64)
    return [key, int(inner["pos"]), int(state["has_gauss"]), float(state["gauss"])]


def _numpy(state: list[Any] | None) -> list[Callable[[], None]]:
    if state is None:
        return []
    import numpy as np

    key, position, has_gauss, gauss = state
    whole = ("MT19937", np.array(key.tolist(), dtype=np.uint32), position, has_gauss, gauss)
    np.random.RandomState().set_state(whole)
    return [partial(np.random.set_state, whole)]
