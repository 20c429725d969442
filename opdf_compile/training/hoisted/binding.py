"""Weights of the user's own module, found by name at each use.

FSDP2 and others replace Parameter objects, so none is kept. A sharded Parameter (a DTensor) is
gathered to be read and cut to be written; the cut is local, because every rank has the whole value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError, PlanError, require_type
from opdf_compile.graph import bare, names_of_parameters, owner
from opdf_compile.planning import PlanEntry
from opdf_compile.spelling import did_you_mean
from opdf_compile.training.branched.site import BranchedSite


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile's and DDP's wrappers.

    Raises:
        InputError: It is no module, or wrapped by PEFT.
    """
    require_type(module, nn.Module, "the student", "a torch.nn.Module")
    student = bare(module)
    adapter = next((m for m in student.modules() if _is_adapter(m)), None)
    if adapter is not None:
        raise InputError(
            f"the student is wrapped by PEFT (found a {type(adapter).__name__}): its weights are "
            "frozen under adapters, and cores would not be trained; call merge_and_unload() first, "
            "then requires_grad_(True)"
        )
    return student


def _is_adapter(module: nn.Module) -> bool:
    return any(cls.__module__.split(".")[0] == "peft" for cls in type(module).__mro__)


def _require_branches(plan: Any, module: nn.Module) -> None:
    """Branches run on the batch, so that only the module itself can have them."""
    there = {m.key: m.spec for m in module.modules() if isinstance(m, BranchedSite)}
    missing = [site.key for site in plan.sites if there.get(site.key) != site.spec]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise PlanError(
            f"the plan puts branches beside {missing[0]!r}{more}, which the student does not have "
            "and no optimizer can add; train opdf.branch(student, plan), with the same plan here, "
            "or leave them out of the plan"
        )


def _require_own_memory(plan: Any, owned: Mapping[str, nn.Parameter]) -> None:
    planned = {id(owned[entry.key]) for entry in plan.entries}
    first: dict[Any, str] = {}
    for name, parameter in owned.items():
        # A shard, of another type, may have its memory elsewhere; 0 is none.
        if type(parameter) is nn.Parameter and (start := parameter.data_ptr()):
            one = first.setdefault((parameter.device, start), name)
            if owned[one] is not parameter and planned & {id(parameter), id(owned[one])}:
                raise InputError(
                    f"the student's {one!r} and {name!r} are two Parameters on one memory (files "
                    "keep ties so): each would be overwritten with the other; tie them as one"
                )


def validate(plan: Any, module: nn.Module) -> None:
    """Check that every planned weight is a Parameter of the module, as the plan says.

    Raises:
        PlanError: A name, shape, dtype or tie differs, or the module lacks the plan's branches.
        InputError: A weight is on the meta device, or another Parameter lies on its memory.
    """
    _require_branches(plan, module)
    names = names_of_parameters(module)
    owned = dict(module.named_parameters(remove_duplicate=False))
    for entry in plan.entries:
        if entry.key not in owned:
            raise PlanError(
                f"the plan names {entry.key!r}, the student has no such parameter"
                f"{did_you_mean(entry.key, owned)}; make a plan for this student "
                "(opdf.plan(student))"
            )
        weight = owned[entry.key]
        if weight.is_meta:
            raise InputError(
                f"the weight {entry.key!r} cannot be factorised: it has no values (the meta "
                "device); give the student its weights first"
            )
        found = {
            "shape": (list(entry.spec.shape), list(weight.shape)),
            "dtype": (entry.spec.dtype, str(weight.dtype).removeprefix("torch.")),
            "names": (sorted((entry.key, *entry.aliases)), sorted(names[id(weight)])),
        }
        for what, (planned, present) in found.items():
            if planned != present:
                raise PlanError(
                    f"the plan gives {entry.key!r} the {what} {planned}, the student has {present};"
                    " make a plan for this student (opdf.plan(student))"
                )
    _require_own_memory(plan, owned)


class Bound:
    """One planned weight of a module."""

    def __init__(self, module: nn.Module, entry: PlanEntry) -> None:
        """Find the submodule that holds the weight."""
        self.entry = entry
        self._holder, self._name = owner(module, entry.key)
        self._shape = tuple(entry.spec.shape)
        self._path = _links(module, entry.key.split(".")[:-1])

    @property
    def key(self) -> str:
        """The weight's name in the student."""
        return self.entry.key

    @property
    def parameter(self) -> nn.Parameter:
        """The Parameter that the module holds now."""
        found = self._holder._parameters.get(self._name)
        if found is None:
            raise InputError(self._lost("no Parameter any more"))
        return found

    def require_held(self) -> None:
        """Refuse to go on where the student no longer holds the weight under its name.

        A layer that was taken out can still be written to, and nobody would read it.

        Raises:
            InputError: The name is gone, leads to another layer, or its weight has another shape.
        """
        for parent, name, child in self._path:
            if parent._modules.get(name) is not child:
                raise InputError(self._lost("gone, or that of another layer now"))
        found = self.parameter.shape
        if found != self._shape:
            raise InputError(self._lost(f"of shape {tuple(found)} now, it was {self._shape}"))

    def _lost(self, what: str) -> str:
        return (
            f"the student's {self.key!r} is {what} (a conversion, an adapter, a parametrization "
            "that was added or removed, an assignment), wanted the layers and parameters that its "
            "cores were made from; fold before the student is rebuilt, and build the optimizer (or "
            "hoist) after it"
        )

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        return self.parameter.device

    def local(self) -> Tensor:
        """What this rank holds of the weight: all of it, or its shard."""
        return local(self.parameter.detach())

    def read(self) -> Tensor:
        """The whole weight; every rank must call it where the weight is sharded."""
        return whole(self.parameter.detach())

    def take_grad(self) -> Tensor | None:
        """The whole gradient, which the Parameter loses; None where no backward reached it."""
        parameter = self.parameter
        grad, parameter.grad = parameter.grad, None
        return None if grad is None else whole(grad)

    def write(self, value: Tensor) -> None:
        """Put a whole weight into the Parameter, in place, cast once to its dtype."""
        with torch.no_grad():
            parameter = self.parameter
            local(parameter.detach()).copy_(cut(value, like=parameter))


def _links(root: nn.Module, names: Sequence[str]) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    """The (parent, name, child) on the way from a module to the submodule of a dotted name."""
    links = []
    for name in names:
        child = root.get_submodule(name)
        links.append((root, name, child))
        root = child
    return tuple(links)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    result: Tensor = tensor if gather is None else gather()
    return result


def local(tensor: Tensor) -> Tensor:
    """The shard of this rank; of any other tensor all of it."""
    to_local = getattr(tensor, "to_local", None)
    result: Tensor = tensor if to_local is None else to_local()
    return result


def cut(value: Tensor, *, like: Tensor) -> Tensor:
    """This rank's share of a whole value that every rank has, laid out as `like` is."""
    # What `is_sharded` asks, without its call: this is once per weight and step.
    return local(sharded_as(value, like)) if hasattr(like, "device_mesh") else value


def sharded_as(value: Tensor, like: Any) -> Tensor:
    """A whole value as a DTensor that is cut as another one is."""
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole value, so none needs to be sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def is_sharded(tensor: Any) -> bool:
    """Whether a value is a DTensor."""
    return hasattr(tensor, "device_mesh")


def mesh_groups(parameters: Iterable[Tensor]) -> list[Any]:
    """The process groups that shards lie on, one for each axis of each mesh; in one order."""
    meshes = [mesh for p in parameters if (mesh := getattr(p, "device_mesh", None)) is not None]
    distinct = [mesh for place, mesh in enumerate(meshes) if mesh not in meshes[:place]]
    return [group for mesh in distinct for group in mesh.get_all_groups()]


def reshard(module: nn.Module) -> None:
    """Bring every FSDP2 module back to its shards.

    After an eval forward the root stays unsharded: its shards may then be read stale, and what is
    written to them is ignored by the next forward.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    # Some libraries import it for everybody, and each step of an Overparam asks several times.
    if fsdp is None or not _wraps_modules(fsdp.FSDPModule):
        return
    for part in module.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()


def _wraps_modules(kind: type) -> bool:
    """Whether a module was given a class made of this one, as `fully_shard` does."""
    made: list[type] = kind.__subclasses__()
    return any(issubclass(c, nn.Module) or _wraps_modules(c) for c in made)
