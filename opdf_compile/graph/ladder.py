"""The ladder: ask for everything, and give up as little as it takes, one phase at a time.

dynamic, auto -> auto-given -> by-axis -> static -> module        (see `traced`)

Each phase climbs by itself: a branch that is drawn while training (LayerDrop) does not keep the
eval graph from being exported. What the model's own forward rejects is an error, and no rung.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from opdf_compile.graph import dynamic_axes as axes_of
from opdf_compile.graph.backwards import LostBackward, backwards_kept
from opdf_compile.graph.containers import register_dataclasses
from opdf_compile.graph.dynamic_axes import AxisNames
from opdf_compile.graph.explicit import explicit_forward
from opdf_compile.graph.failures import depends_only_on_data, is_out_of_memory, reason_of
from opdf_compile.graph.phases import export_phase
from opdf_compile.graph.probe import ForwardRun, rejected, run_model
from opdf_compile.graph.signature import CallArguments, bind_forward
from opdf_compile.graph.traced import MODULE_RUNG, Phase

# Each unit of the rung by-axis is one export.
_MOST_UNITS = 6
_LOG = logging.getLogger("opdf_compile")


@dataclass(frozen=True, eq=False)
class Held:
    """Where one phase came to rest.

    Attributes:
        rung: The rung that held.
        program: Its program; None on the rung "module".
        shapes: The request that torch.export granted.
        failures: (rung, reason) of those that did not hold.
        notes: Other sentences.
    """

    rung: str
    program: ExportedProgram | None = None
    shapes: dict[str, Any] | None = None
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why the last rung that was tried did not hold."""
        return self.failures[-1][1] if self.failures else ""


@dataclass(frozen=True, eq=False)
class Ladder:
    """One model with its example and the axes that are asked to stay dynamic.

    Attributes:
        model: The module; its weights, buffers and flags are as before afterwards.
        inputs: The example.
        names: The name of each tensor of the inputs.
        wanted: The axes asked for, by input name.
    """

    model: nn.Module
    inputs: CallArguments
    names: list[str]
    wanted: AxisNames

    def climb(self, phase: Phase) -> Held:
        """Try the rungs of one phase from the strictest request down.

        Raises:
            TraceError: The model's own forward rejects the example in eval.
        """
        failures: list[tuple[str, str]] = []
        stuck = False
        for rung, attempt in self._attempts(phase):
            if stuck and rung != "static":
                continue  # No request for axes changes what the model asks of its values.
            try:
                held = attempt()
            except LostBackward as error:
                # Every lower rung would lose it too, and train a graph of wrong gradients.
                return Held(MODULE_RUNG, failures=((rung, str(error)),))
            except Exception as error:  # torch.export raises whatever the model's own code raises.
                if is_out_of_memory(error):
                    raise
                failures.append((rung, reason_of(error) + self._scripted()))
                stuck = depends_only_on_data(error)
            else:
                return replace(held, rung=self._name(rung, held), failures=tuple(failures))
            _LOG.info("trace: %s: the rung %r did not hold: %s", phase, *failures[-1])
            if len(failures) > 1:
                continue  # The model's own forward was asked once; no rung changes its answer.
            run = self._run(phase)
            if run.error is not None:
                if phase == "eval":
                    raise rejected(self.model, self.inputs, self.names, run.error) from run.error
                reason = f"forward in train rejects the example: {reason_of(run.error)}"
                return Held(MODULE_RUNG, failures=((rung, reason),))
            registered = register_dataclasses(run.output)
            if registered:
                # The rung may have failed for these classes alone. It comes here once: the second
                # time they are known.
                again = self.climb(phase)
                return replace(again, notes=(*registered, *again.notes))
        return Held(MODULE_RUNG, failures=tuple(failures))

    def _name(self, rung: str, held: Held) -> str:
        """AUTO that fixed nothing is what DYNAMIC insists on; one export serves both rungs."""
        assert held.program is not None
        fixed = axes_of.static_axes(held.program, list(self.wanted), self.wanted)
        return "dynamic" if rung == "auto" and not fixed else rung

    def _attempts(self, phase: Phase) -> Iterator[tuple[str, Callable[[], Held]]]:
        wanted = self.wanted
        if any(wanted.values()):
            # AUTO, not DYNAMIC: the strict request is refused where AUTO gives the very same graph
            # with an axis fixed, so that one export answers for two rungs (see `_name`).
            yield "auto", lambda: self._export(phase, wanted)
            given = axes_of.not_one(self.inputs, self.names, wanted)
            if given != wanted and any(given.values()):
                yield "auto-given", lambda: self._export(phase, given)
            units = self._units()
            if len(units) > 1:
                yield "by-axis", lambda: self._by_axis(phase, units)
        yield "static", lambda: self._export(phase, {})

    def _export(self, phase: Phase, axes: AxisNames) -> Held:
        # Only what this rung keeps free is widened: a model may take no batch but the example's.
        wide = axes_of.widen_axes(self.inputs, self.names, axes)
        # In eval nobody asks for a gradient.
        guard = backwards_kept() if phase == "train" else contextlib.nullcontext()
        with explicit_forward(self.model, wide), guard:
            request = axes_of.request_axes(wide, self.names, axes, Dim.AUTO)
            shapes = bind_forward(self.model.forward, *request) if axes else None
            return Held("", export_phase(self.model, phase, wide, shapes), shapes)

    def _by_axis(self, phase: Phase, units: list[AxisNames]) -> Held:
        """Free one axis after the other; what does not hold stays fixed.

        Raises:
            Exception: None of them holds; the error of the last one.
        """
        # Greedy, each on top of those that held: all subsets would take 2^n exports.
        kept: AxisNames = {}
        held: Held | None = None
        last: Exception | None = None
        for unit in units:
            more = {name: {**kept.get(name, {}), **unit.get(name, {})} for name in self.wanted}
            try:
                held, kept = self._export(phase, more), more
            except LostBackward:
                raise  # No matter of axes: see climb.
            except Exception as error:  # As in climb.
                if is_out_of_memory(error):
                    raise
                last = error
        if held is None:
            assert last is not None
            raise last
        return held

    def _units(self) -> list[AxisNames]:
        """Axes that stand or fall together: those of one letter, or else those of one input."""
        letters = dict.fromkeys(a for axes in self.wanted.values() for a in axes.values())
        if len(letters) > 1:
            return [
                {
                    n: {i: a for i, a in axes.items() if a == letter}
                    for n, axes in self.wanted.items()
                }
                for letter in list(letters)[:_MOST_UNITS]
            ]
        inputs = [name for name, axes in self.wanted.items() if axes]
        return [{name: self.wanted[name]} for name in inputs[:_MOST_UNITS]]

    def _scripted(self) -> str:
        """A hint at the torch.jit modules inside: the error of one names no line of the model."""
        modules = self.model.named_modules()
        found = next((n for n, m in modules if isinstance(m, torch.jit.ScriptModule)), None)
        return "" if found is None else f"; {found or 'it'} is a torch.jit module, compiled code"

    def _run(self, phase: Phase) -> ForwardRun:
        """The model's own forward; a batch of one may be too small for a batch norm in training."""
        run = run_model(self.model, phase, self.inputs)
        if run.error is None:
            return run
        # What the rungs export is the widened example: a model that takes that one is not at fault.
        wide = run_model(
            self.model, phase, axes_of.widen_axes(self.inputs, self.names, self.wanted)
        )
        return wide if wide.error is None else run
