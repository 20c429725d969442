"""A frozen teacher with small trained modules in it, which teaches while it learns along.

    p       the teacher's own answer              frozen
    p_on    the answer with the side paths        trained: task loss + a KL(p_on || p)
    q       the student's                         trained towards p_on, which gets no gradient of it

The idea is Online Knowledge Distillation's (arXiv 2409.12512): a teacher that moves a little
towards the task, and stays near itself, is easier to follow. No code of the paper is public; what
stands here is a reading of it. The modules are paths of low rank beside Linear weights of the
teacher's graph, and nothing at the start, so that training begins with the teacher as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from opdf_compile.errors import InputError
from opdf_compile.graph import Match, get_attrs, names_of_parameters, trace
from opdf_compile.passes import LINEAR, AddSidePaths, SidePath
from opdf_compile.planning import Globs

USUAL_RANK = 8


class OnlineTeacher(nn.Module):
    """A teacher's eval graph with trained side paths; called as the teacher is.

    Attributes:
        graph: The graph; it shares the teacher's parameters, which do not move.
        keys: The weights that have a path.
        paths: The factors, by the weight's name with dots as slashes: all that is trained.
    """

    def __init__(self, graph: GraphModule, paths: Mapping[str, SidePath]) -> None:
        """Use `online_teacher`."""
        super().__init__()
        self.keys = tuple(paths)
        self.paths = nn.ModuleDict(
            {
                key.replace(".", "/"): nn.ParameterList((path.down, path.up))
                for key, path in paths.items()
            }
        )
        # In a list: its parameters are the teacher's, which are neither trained nor saved here.
        self._graph = [graph]

    @property
    def graph(self) -> GraphModule:
        """The graph module that runs."""
        return self._graph[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher returns, with the paths added."""
        return self.graph(*args, **kwargs)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{len(self.keys)} weights with a path"


def online_teacher(
    teacher: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rank: int = USUAL_RANK,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    dynamic: Any = None,
) -> OnlineTeacher:
    """Put a path of low rank beside a teacher's Linear weights.

    Args:
        teacher: On the device where it will run; it is not changed, and its parameters are shared.
            Its eval phase runs: without dropout, with fixed statistics.
        args: Example inputs, as of `opdf.trace`.
        kwargs: Keyword example inputs.
        rank: Inner size of a path, at least 1; of a smaller weight its own least side.
        include: Globs of weights; all that Linear ops read if None.
        exclude: Globs of weights that get none.
        dynamic: Free axes, as of `opdf.trace`.

    Returns:
        A module whose parameters are the factors: A of Kaiming's uniform start, drawn by torch's
        generator, and B of zeros, so that it answers as the teacher does.

    Raises:
        InputError: The rank is not at least 1, no Linear weight is chosen, or no graph holds the
            teacher.
        PlanError: A glob names no weight.

    Example:
        >>> teacher = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> online_teacher(teacher, (torch.randn(3, 4),), rank=2).keys
        ('0.weight', '1.weight')
    """
    if type(rank) is not int or rank < 1:
        raise InputError(f"the rank of an online teacher is {rank!r}, wanted a number from 1 on")
    traced = trace(teacher, args, kwargs, dynamic=dynamic, phases=("eval",))
    graph = traced.graphs.get("eval")
    if graph is None:
        raise InputError(
            f"no graph holds the teacher ({traced.reasons['eval']}), wanted one that torch.export "
            "takes; distil without online modules"
        )
    paths = {
        key: _path(teacher.get_parameter(key), nodes, rank)
        for key, nodes in _chosen(teacher, graph, include, exclude).items()
    }
    return OnlineTeacher(AddSidePaths(paths)(graph).module, paths)


def _chosen(
    teacher: nn.Module,
    graph: GraphModule,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> dict[str, tuple[str, ...]]:
    """The weights that Linear ops of the graph itself read as they are stored, and these ops."""
    names = names_of_parameters(teacher)
    readers: dict[str, list[str]] = {}
    for node, value in get_attrs(graph):
        for user in node.users:
            if user.target is LINEAR and user.args[1] is node:
                readers.setdefault(names[id(value)][0], []).append(user.name)
    linear = [_row(teacher, names[id(teacher.get_parameter(key))]) for key in readers]
    wanted, unwanted = Globs(include), Globs(exclude)
    wanted.require_used(linear)
    unwanted.require_used(linear)
    chosen = [m.key for m in linear if (not wanted or wanted.name(m)) and not unwanted.name(m)]
    if not chosen:
        raise InputError(
            f"none of the teacher's {len(linear)} Linear weights is left for an online module, "
            "wanted one at least; change include or exclude"
        )
    return {key: tuple(readers[key]) for key in chosen}


def _row(teacher: nn.Module, names: tuple[str, ...]) -> Match:
    weight = teacher.get_parameter(names[0])
    return Match(names[0], tuple(weight.shape), str(weight.dtype), aliases=names[1:])


def _path(weight: Tensor, nodes: tuple[str, ...], rank: int) -> SidePath:
    rows, columns = weight.shape
    size = min(rank, rows, columns)
    # Factors of half precision would lose steps; the path computes in the weight's own dtype.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    down = torch.empty(size, columns, dtype=dtype, device=weight.device)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    up = torch.zeros(rows, size, dtype=dtype, device=weight.device)
    return SidePath(nodes, nn.Parameter(down), nn.Parameter(up), weight.dtype)
