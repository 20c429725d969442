"""What a step asks of a module that is not sharded."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from torch import nn

from opdf_compile.training.hoisted.binding import reshard


def test_a_walk_over_the_modules_is_spared_until_one_is_sharded() -> None:
    from torch.distributed.fsdp import FSDPModule

    class Silent(nn.Linear):
        def modules(self) -> Iterator[nn.Module]:  # type: ignore[override]
            raise NotImplementedError

    gc.collect()
    reshard(Silent(2, 2))

    class Sharded(FSDPModule, nn.Linear):
        """What `fully_shard` makes of a class."""

    with pytest.raises(NotImplementedError):
        reshard(Silent(2, 2))
    assert FSDPModule in Sharded.__mro__
