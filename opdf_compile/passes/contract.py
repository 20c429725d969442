"""What a pass is: a frozen value whose fields are its options, with a truthful result.

`requires` looks at the graph that comes in, `call` rewrites a copy of it, `ensures` looks at what
comes out. Whether a graph was modified is counted from the recorded changes, never asserted.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.fx import GraphModule

from opdf_compile.graph import copied, over_tensors_of

_LOG = logging.getLogger("opdf_compile")


@dataclass(frozen=True)
class GraphChange:
    """One thing that a pass did.

    Attributes:
        key: The weight it is about.
        what: What was done, in words.
    """

    key: str
    what: str


@dataclass(frozen=True, eq=False)
class PassResult:
    """What a pass returns.

    Attributes:
        module: The graph module after the pass. A pass that is called works on a copy; one that
            rewrites (see `GraphPass.rewrite`) gives back the module that it was given.
        changes: Everything that was done.
    """

    module: GraphModule
    changes: tuple[GraphChange, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether anything was done."""
        return bool(self.changes)


class GraphPass(ABC):
    """Base of all passes; subclasses are frozen dataclasses."""

    @property
    def name(self) -> str:
        """Name in logs and dumps."""
        return type(self).__name__

    def requires(self, module: GraphModule) -> None:
        """Raise if the incoming graph is not what this pass works on."""
        del module

    @abstractmethod
    def call(self, module: GraphModule) -> PassResult:
        """Rewrite; `module` is a copy that the pass owns."""

    def ensures(self, result: PassResult) -> None:
        """Raise InternalError if the outgoing graph is not what this pass promises."""
        del result

    def __call__(self, module: GraphModule) -> PassResult:
        """Check, rewrite a copy, check again.

        Args:
            module: Left as it is: the copy has a graph of its own and shares the parameters.
        """
        self.requires(module)
        result = self.rewrite(copy_graph(module))
        # Calling the module runs the code that was generated before the graph was edited.
        result.module.recompile()
        return result

    def rewrite(self, module: GraphModule) -> PassResult:
        """Check, rewrite, check again, without a copy and without new code.

        Args:
            module: Belongs to the caller, who gives it up. What comes back has the new graph and
                the old code: call `recompile` before it is run.
        """
        self.requires(module)
        result = self.call(module)
        result.module.graph.lint()
        self.ensures(result)
        return result


class Observer(Protocol):
    """Sees every pass of a pipeline: timing, dumps, progress."""

    def __call__(self, graph_pass: GraphPass, result: PassResult, seconds: float) -> None:
        """Called after each pass."""


def log_pass(graph_pass: GraphPass, result: PassResult, seconds: float) -> None:
    """The default observer: one line to the logger."""
    _LOG.debug("%s: %d changes in %.3f s", graph_pass.name, len(result.changes), seconds)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, and who watches."""

    passes: Sequence[GraphPass]
    observer: Observer = log_pass

    def __call__(self, module: GraphModule) -> PassResult:
        """Run all passes on one copy; the changes add up."""
        result = self.rewrite(module)
        result.module.recompile()
        return result

    def rewrite(self, module: GraphModule) -> PassResult:
        """Like a call, but no code is generated: for who wants the graph and not to run it.

        Generating code takes a third of the time of an expansion, so it is done once or never,
        not once per pass.
        """
        owned = copy_graph(module)
        changes: list[GraphChange] = []
        for graph_pass in self.passes:
            start = time.perf_counter()
            result = graph_pass.rewrite(owned)
            self.observer(graph_pass, result, time.perf_counter() - start)
            owned = result.module
            changes.extend(result.changes)
        return PassResult(owned, tuple(changes))


def copy_graph(module: GraphModule) -> GraphModule:
    """A graph module with a graph of its own over the same parameters, buffers and subgraphs."""
    fresh = over_tensors_of(module, copied(module.graph, module.graph._codegen))
    fresh.meta = dict(module.meta)
    for name in ("_in_spec", "_out_spec"):
        if hasattr(module, name):
            setattr(fresh, name, getattr(module, name))
    return fresh
