"""The hoisted form: a weight program beside the user's own module.

    refresh()    W <- compose(cores)            once per optimizer step
    [the user's forward and backward, on plain W, as often as wanted]
    backward()   dL/dcores += pulled dL/dW; W.grad <- None
    inner.step() on parameters()

The module keeps its class, its forward and its plain weights; nothing is registered on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import compress
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from opdf_compile.errors import FoldError, InputError, WeightsChanged
from opdf_compile.graph import deep_copy, named_tensors
from opdf_compile.planning import Plan, PlanEntry, retract
from opdf_compile.training.branched.branching import fold_branches, has_branches
from opdf_compile.training.folding import overwrite, require_same_names
from opdf_compile.training.hoisted.binding import Bound, is_sharded, reshard, whole
from opdf_compile.training.hoisted.direct import Direct, strays
from opdf_compile.training.hoisted.ranks import ProgramRanks
from opdf_compile.training.hoisted.records import LITTLE, Records
from opdf_compile.training.hoisted.remaking import remake, seed
from opdf_compile.training.hoisted.unit import Unit, Way

FoldSource = Literal["cores", "weights"]


class WeightProgram:
    """Cores, and what makes a module's weights of them; made by `hoist`.

    Attributes:
        module: The user's own module.
        plan: What is over-parameterised, and how.
        units: What this rank composes.
        ranks: Who composes what.
        direct: The weights whose methods hold no cores; every rank has them all.
        of_overparam: Whether an Overparam steps these as their methods want it.
        hooks: What `opdf.attach` gave to other optimizers, before whose steps they are called.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        units: Iterable[Unit],
        bounds: Mapping[str, Bound],
        ranks: ProgramRanks,
        *,
        recompute: bool,
        direct: Iterable[Direct] = (),
    ) -> None:
        """Use `hoist`; this only stores its parts and records the weights as they are."""
        self.module = module
        self.plan = plan
        self.units = tuple(units)
        self.recompute = recompute
        self._bounds = dict(bounds)
        self.ranks = ranks
        self.direct = tuple(direct)
        self.of_overparam = False
        self.hooks: list[Callable[..., None]] = []
        reshard(module)
        sizes = (bound.local().nbytes for bound in self._bounds.values())
        self._records = Records(copying=sum(sizes) <= LITTLE)
        self._record(self._bounds)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing: torch copies no hooks of an optimizer."""
        return vars(self) | {"of_overparam": False, "hooks": []}

    @property
    def entries(self) -> tuple[PlanEntry, ...]:
        """The plan's entries that have cores."""
        return tuple(entry for entry in self.plan.entries if not entry.metric)

    @property
    def process_group(self) -> Any:
        """The ranks that the program is shared out over; None if every rank runs all of it."""
        return self.ranks.group

    def device(self, key: str) -> torch.device:
        """Where a planned weight lives."""
        return self._bounds[key].device

    def owned(self) -> tuple[str, ...]:
        """Names of the weights whose cores this rank holds, in the plan's order."""
        mine = {key for unit in self.units for key in unit.keys}
        return tuple(entry.key for entry in self.entries if entry.key in mine)

    def matched(self) -> dict[str, nn.Parameter]:
        """The planned weights that have cores, as the student holds them now, by name.

        Raises:
            InputError: The student was rebuilt since, see `require_held`.
        """
        self.require_held()
        return {key: bound.parameter for key, bound in self._bounds.items()}

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer steps: the cores that are trained, and what is not matched."""
        reshard(self.module)
        for unit in self.units:
            yield from unit.trained
        matched = {id(bound.parameter) for bound in self._bounds.values()}
        for parameter in self.module.parameters():
            if parameter.requires_grad and id(parameter) not in matched:
                yield parameter

    def clip_norm_parameters(self) -> list[nn.Parameter]:
        """Those of `parameters()` whose gradients make a clip norm: all but gains.

        For loops that clip between `backward` and the step; see `Expanded.clip_norm_parameters`.
        """
        left_out = {name for entry in self.entries for name in entry.outside_clip_norm}
        gains = {
            id(core)
            for unit in self.units
            for name, core in zip(unit.members[0], unit.storage, strict=True)
            if name in left_out
        }
        return [p for p in self.parameters() if id(p) not in gains]

    def cores(self, key: str) -> tuple[Tensor, ...]:
        """The cores of one weight, in order; of a method without cores what it keeps.

        Raises:
            InputError: The plan has no such weight, or another rank holds its cores.
        """
        direct = next((d for d in self.direct if d.key == key), None)
        if direct is not None:
            return direct.tensors()
        entry = next((e for e in self.plan.entries if e.key == key), None)
        unit = next((u for u in self.units if key in u.keys), None)
        if entry is None or unit is None:
            raise InputError(
                f"no cores of {key!r} are held here; the {len(self.owned())} weights whose cores "
                f"are held here are {', '.join(self.owned()[:3])}.."
            )
        named = unit.named_cores()
        return tuple(named[name] for name in entry.core_names)

    def weights(self, keys: Collection[str]) -> dict[str, Tensor]:
        """Weights as the module holds them now, whole: those whose cores are held here.

        A sharded weight is gathered by all ranks together, so all of them must ask for the same.
        """
        reshard(self.module)
        self.require_held()
        mine = self.owned()
        reading = ((key, self._bounds[key].read()) for key in self._bounds if key in keys)
        return {key: weight for key, weight in reading if key in mine}

    def backward(self) -> tuple[str, ...]:
        """Pull dL/dW of every matched weight back to the cores; W.grad becomes None.

        Call it after the last micro-batch's backward, before unscaling and clipping. It adds to
        the cores' gradients, as autograd does.

        The cores of a weight without a gradient get none, so that an optimizer passes over them. In
        a batch they cannot be told apart from the others: there such a weight counts as one with a
        zero gradient, unless none of the batch has one.

        Returns:
            Names of the weights that had a gradient.
        """
        reshard(self.module)
        self.require_held()
        mine = self.owned()
        # Taking a sharded gradient is collective, so every rank takes all of them in one order.
        taking = ((key, bound.take_grad()) for key, bound in self._bounds.items())
        taken = {key: grad for key, grad in taking if key in mine}
        way = Way()
        found = tuple(key for unit in self.units for key in unit.pull(taken, way))
        way.go()
        return found

    def require_held(self) -> None:
        """Refuse to go on over a student that was rebuilt since.

        Raises:
            InputError: A planned weight is gone, of another layer or of another shape.
        """
        for bound in (*self._bounds.values(), *(direct.bound for direct in self.direct)):
            bound.require_held()

    def refresh(self, source: FoldSource | None = None) -> None:
        """Compose the weights and write them into the module, in place.

        It computes in the cores' dtype, float32 for half weights, as the inline form does, and
        casts once. `fold` composes in float64 instead, so the student that ships may differ from
        the one in training by the rounding of float32 sums.

        Args:
            source: "cores" overwrites weights that something else has changed.

        Raises:
            InputError: The student was rebuilt since, see `require_held`.
            WeightsChanged: A weight changed since the last refresh, and `source` is not given.
        """
        if source not in (None, "cores"):
            raise FoldError(f"source is {source!r}, wanted one of 'cores'")
        reshard(self.module)
        self.require_held()
        if self.direct and not (self.of_overparam or self.hooks):
            first = self.direct[0]
            raise InputError(
                f"{first.entry.parametrization}, planned for {first.key!r}, acts around the step "
                "of an optimizer, and none was attached; call opdf.attach(program, optimizer) "
                "before the first step, or use opdf.Overparam"
            )
        if source is None:
            self.require_unchanged()
        self.retract([unit for unit in self.units if unit.moved])
        self.write()

    def retract(self, units: Iterable[Unit] | None = None) -> None:
        """Bring cores to where a step must leave them (md: the norm that is held), in place.

        `refresh` does it, and `Overparam` after each step; for most parametrizations there is
        nothing to do.

        Args:
            units: Whose cores; those of all if None.
        """
        found = self.units if units is None else units
        retract(pair for unit in found if unit.retracts for pair in unit.by_weight())

    def write(self, keys: Collection[str] | None = None) -> None:
        """What `refresh` does, for callers that have checked the weights already.

        Args:
            keys: The weights whose cores moved, all if None; the others keep their very bits.
        """
        reshard(self.module)
        keep = not self.recompute
        written = self.ranks.deliver(self.units, self._bounds, keep=keep, keys=keys)
        self._record(written)

    def absorb(self) -> tuple[str, ...]:
        """Take the weights as they are now: those that changed are decomposed again.

        A gradient that their cores hold is dropped: it belongs to other cores.

        Returns:
            Names of the weights that changed; an optimizer's state of their cores is stale.

        Raises:
            InputError: A weight holds NaN or infinity, or ranks that share the program hold
                different weights; nothing is changed then.
        """
        changed = self.changed()
        self.ranks.require_same(self._bounds)
        # A sharded weight is gathered by all ranks together, also by those without cores.
        reading = ((bound.entry, bound.read()) for bound in map(self._bounds.__getitem__, changed))
        making = ((entry, partial(entry.decompose, weight)) for entry, weight in reading)
        remake(self.units, self.ranks, making)
        reshard(self.module)
        self._record(self._bounds)
        return changed + self._absorb_direct()

    def _absorb_direct(self) -> tuple[str, ...]:
        """What methods without cores keep is made anew of weights that it no longer fits."""
        odd = strays(self.direct)
        for direct in (direct for direct in self.direct if direct.key in odd):
            direct.kept.update(
                zip(direct.kept, direct.entry.decompose(direct.bound.read()), strict=True)
            )
        return odd

    def seed(self) -> tuple[str, ...]:
        """Start along the gradients that the weights hold now, where a parametrization can (delta).

        It belongs between the first backward and the first step, before `backward`. Weights and
        their gradients stay as they are, and so do the cores of weights without a gradient.

        Returns:
            Names of the weights whose cores are others now; an optimizer's state of them is stale.

        Raises:
            WeightsChanged: Something else has changed the weights.
            InputError: A gradient holds NaN or infinity; nothing is changed then.
        """
        self.require_unchanged()
        return seed(self.units, self._bounds, self.ranks)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the cores, of the matched weights and of everything else."""
        tensors = [*self.module.parameters(), *(c for unit in self.units for c in unit.storage)]
        for tensor in tensors:
            if set_to_none:
                tensor.grad = None
            elif tensor.grad is not None:
                tensor.grad.detach_().zero_()

    def changed(self) -> tuple[str, ...]:
        """Names of the weights that hold something else than the last refresh wrote.

        Where ranks share the weights, the answer is the same on all of them.
        """
        reshard(self.module)
        self.require_held()
        return self._differing(list(self._bounds), Bound.local)

    def replaced(self, keys: Collection[str]) -> tuple[str, ...]:
        """Record weights anew whose Parameters others have replaced: a rank may hold a shard now.

        All ranks give the same keys.

        Returns:
            Names of those that hold something else than before. These are not recorded.
        """
        of = [key for key in self._bounds if key in keys]
        # Recorded was the sum over whole weights; a shard's own sum takes its place below.
        odd = self._differing(of, Bound.read)
        same = [key for key in of if key not in odd]
        self._record(same)
        return odd

    def _differing(self, keys: list[str], held: Callable[[Bound], Tensor]) -> tuple[str, ...]:
        """Of these weights those that are not as they were recorded; alike on all ranks."""
        if not keys:
            return ()
        differs = self._records.differing((key, held(self._bounds[key])) for key in keys)
        return tuple(compress(keys, self.ranks.any(differs, self._bounds)))

    def require_unchanged(self, keys: Collection[str] | None = None) -> None:
        """Refuse to go on over weights that something else has changed.

        Raises:
            WeightsChanged: With the two ways out.
        """
        changed = tuple(key for key in self.changed() if keys is None or key in keys)
        if changed:
            self.refuse(changed)

    def refuse(self, changed: tuple[str, ...]) -> NoReturn:
        """Refuse to go on over these weights, which something else has changed.

        Raises:
            WeightsChanged: Always, with the two ways out.
        """
        count = len(changed)
        some = f"{count} weights" if count > 1 else f"1 of {len(self._bounds)} weights"
        names = ", ".join(changed[:3]) + (", .." if count > 3 else "")
        raise WeightsChanged(
            f"{some} changed since the last refresh (a checkpoint was loaded, or another optimizer "
            "stepped them). Keep them: absorb(). Keep the cores: fold(program, source='cores'). "
            f"Changed: {names}.{self.cast(changed)}"
        )

    def cast(self, changed: tuple[str, ...]) -> str:
        """A further sentence where the module was cast, which moves every bit; else nothing."""
        for bound in (self._bounds[key] for key in changed):
            found = str(bound.parameter.dtype).removeprefix("torch.")
            if found != bound.entry.spec.dtype:
                return (
                    f" The dtype of {bound.key} is {found} now, it was {bound.entry.spec.dtype}: "
                    "cast the student first and build the optimizer (or hoist) afterwards."
                )
        return ""

    def checksums(self) -> dict[str, Tensor]:
        """The recorded checksum of every weight, two 64-bit integers each."""
        return self._records.checksums()

    def expect(self, checksums: Mapping[str, Tensor]) -> None:
        """Take recorded checksums over from a saved state: the weights must be those of then."""
        self._records.expect({k: v for k, v in checksums.items() if k in self._bounds})

    def state_dict(self) -> dict[str, Tensor]:
        """Cores under their names, and `KEY_checksum` of the weights that they made.

        The tensors are the live ones, as in any state_dict.
        """
        state = {n: c.detach() for unit in self.units for n, c in unit.named_cores().items()}
        state.update({name: kept for direct in self.direct for name, kept in direct.kept.items()})
        # Copies: those of all weights may share memory, which some file formats refuse.
        state.update({f"{key}_checksum": sum_.clone() for key, sum_ in self.checksums().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the cores over; load the module's own state too, before or after.

        Raises:
            InputError: A core is missing or has another shape; nothing is changed then.
        """
        wanted = {n: c for unit in self.units for n, c in unit.named_cores().items()}
        wanted.update({name: kept for direct in self.direct for name, kept in direct.kept.items()})
        for name, core in wanted.items():
            shape = tuple(state[name].shape) if name in state else None
            if shape != tuple(core.shape):
                raise InputError(
                    f"the state holds {name!r} with shape {shape}, wanted {tuple(core.shape)}; "
                    "load a state that was saved with this plan"
                )
        self.fill({name: state[name] for name in wanted})
        sums = {key: state.get(f"{key}_checksum") for key in self._bounds}
        self.expect({key: value for key, value in sums.items() if value is not None})

    def compile(self, **options: Any) -> None:
        """Run every compose through torch.compile from now on; options as torch.compile's."""
        for unit in self.units:
            unit.compile(**options)

    def fill(self, cores: Mapping[str, Tensor]) -> None:
        """Overwrite cores by name; the weights stay as they are until the next refresh."""
        for unit in self.units:
            unit.fill(cores)
        for direct in self.direct:
            for name, kept in direct.kept.items():
                if name in cores:
                    kept.copy_(cores[name])

    def fold(self, source: FoldSource | None = None, into: nn.Module | None = None) -> nn.Module:
        """The student with plain weights; see `opdf.fold`."""
        if source not in (None, "cores", "weights"):
            raise FoldError(f"source is {source!r}, wanted 'cores', 'weights' or nothing")
        if source != "weights":
            self.require_held()
        if source is None:
            self.require_unchanged()
        module = self.module
        reshard(module)  # An unsharded module does not look like a sharded one.
        if any(map(is_sharded, module.parameters())) and into is None:
            raise FoldError(
                f"the {type(module).__name__} is sharded, and a copy of it would be sharded too; "
                "give a plain student to fill: fold(program, into=student)"
            )
        # Gathering is collective, so every rank reads every tensor, in one order.
        values = {name: whole(tensor.detach()) for name, tensor in named_tensors(module).items()}
        if source != "weights":
            folded = self.folded_weights()
            for entry in self.entries:
                values.update(dict.fromkeys((entry.key, *entry.aliases), folded[entry.key]))
        student = deep_copy(module) if into is None else into
        tensors = named_tensors(student)
        require_same_names(tensors, values)
        overwrite(tensors, values)
        return fold_branches(student) if has_branches(student) else student

    def folded_weights(self) -> dict[str, Tensor]:
        """Every weight that has cores, by name: composed in float64, rounded once; on all ranks."""
        mine = [self._bounds[key] for key in self.owned()]
        folded = self.ranks.together(lambda: {b.key: _folded(b, self.cores(b.key)) for b in mine})
        return self.ranks.gather(folded, self._bounds)

    def _record(self, keys: Iterable[str]) -> None:
        kept = {key: value for unit in self.units for key, value in unit.kept().items()}
        self._records.take(((key, self._bounds[key].local()) for key in keys), kept)


def _folded(bound: Bound, cores: tuple[Tensor, ...]) -> Tensor:
    return bound.entry.fold(map(whole, cores), bound.parameter.dtype)
