"""check: the cores that a graph reads are there, and have the shapes that its plan says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from opdf_compile.errors import InternalError
from opdf_compile.graph import attribute
from opdf_compile.passes.contract import GraphPass, PassResult
from opdf_compile.planning import Plan


@dataclass(frozen=True)
class CheckShapes(GraphPass):
    """Changes nothing; refuses a graph whose cores do not fit the plan.

    Attributes:
        plan: What the graph was expanded by.
    """

    plan: Plan

    def requires(self, module: GraphModule) -> None:
        """Compare every core with its spec.

        Raises:
            InternalError: A core is missing, or has another shape or dtype.
        """
        read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        for entry in self.plan.entries:
            wanted, shapes = entry.core_dtype, entry.by.shapes(entry.spec)
            for name, shape in zip(entry.core_names, shapes, strict=True):
                core = attribute(module, name)
                if core is None and name not in read:
                    continue  # This phase does not read the weight.
                if not isinstance(core, Tensor):
                    raise InternalError(f"the core {name!r} is missing; please report it")
                if tuple(core.shape) != tuple(shape) or core.dtype != wanted:
                    raise InternalError(
                        f"the core {name!r} is {tuple(core.shape)} {core.dtype}, its plan says "
                        f"{tuple(shape)} {wanted}; please report it"
                    )

    def call(self, module: GraphModule) -> PassResult:
        """Return the graph as it is."""
        return PassResult(module)
