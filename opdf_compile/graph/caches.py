"""Models that return a cache of past keys and values, for generation, unless they are told not to.

The cache is an object of its own class, which torch.export cannot take apart; training has no use
for it. Models of transformers have a switch in their configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

NOTE = (
    "config.use_cache was off while the model was traced: its graphs return no past keys and "
    "values, which generation needs and training does not"
)


@contextlib.contextmanager
def without_cache(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Switch the caches of a model off while the block runs.

    Args:
        model: Any module; its configuration is as before afterwards.

    Yields:
        A sentence if something was switched, else nothing.
    """
    configs = {id(c): c for m in model.modules() for c in _configs(getattr(m, "config", None))}
    caching = [c for c in configs.values() if vars(c).get("use_cache") is True]
    for config in caching:
        config.use_cache = False
    try:
        yield (NOTE,) if caching else ()
    finally:
        for config in caching:
            config.use_cache = True


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it (text_config, decoder, ..)."""
    if not hasattr(config, "__dict__"):
        return
    yield config
    yield from (part for part in vars(config).values() if hasattr(part, "use_cache"))
