"""Several processes that write, or read, one checkpoint together.

What one rank cannot do, no rank must go on without: a rank that raised alone would leave the others
waiting for it until the process group's timeout. So every fallible step ends with an exchange, and
a failure anywhere is raised everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from opdf_compile.errors import ArtefactError

_T = TypeVar("_T")


class RankGroup:
    """The processes of one run, as seen from one of them.

    Args:
        group: A torch process group. None means all processes where `torch.distributed` is
            initialised, and this process alone where it is not.

    Attributes:
        rank: This process, from 0 on.
        size: How many there are.
    """

    def __init__(self, group: Any | None = None) -> None:
        import torch.distributed as dist

        distributed = dist.is_available() and dist.is_initialized()
        self._group = group if group is not None or not distributed else dist.group.WORLD
        alone = self._group is None
        self.rank: int = 0 if alone else dist.get_rank(self._group)
        self.size: int = 1 if alone else dist.get_world_size(self._group)

    def gather(self, value: _T) -> list[_T]:
        """The values of all ranks, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def together(self, action: Callable[[], _T]) -> _T:
        """Run an action on every rank; it counts only if it succeeds on all of them.

        Returns:
            What the action returned on this rank.

        Raises:
            ArtefactError: It failed on another rank; this rank's own failure is raised as it is.
        """
        failure: Exception | None = None
        result: _T | None = None
        try:
            result = action()
        except Exception as error:  # Raised below, once the other ranks know.
            failure = error
        told = self.gather(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        for rank, message in enumerate(told):
            if message is not None:
                raise ArtefactError(f"rank {rank} of {self.size} stopped: {message}")
        return result  # type: ignore[return-value]
