"""Every weight of a linear or convolution op is a match or a refusal with a sentence.

A match is one Parameter with all its uses: tied names and shared modules are one match. A refusal
may carry the match it would be (`Refusal.offer`): a plan that names it with `include` takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from opdf_compile.errors import require_type
from opdf_compile.graph.convolution import convolution_groups
from opdf_compile.graph.flops import passes, weight_op_flops
from opdf_compile.graph.flow import Flow, Meeting, meetings
from opdf_compile.graph.gradients import differentiated
from opdf_compile.graph.layout import orientation
from opdf_compile.graph.module_match import bare, layer_rows, module_rows
from opdf_compile.graph.ops import (
    FROZEN,
    FUNCTION,
    LOOKUP,
    NOT_DENSE,
    TIED,
)
from opdf_compile.graph.provenance import example_shape
from opdf_compile.graph.rows import Match, MatchReport, Refusal, Use
from opdf_compile.graph.sharing import is_weight_dtype, names_of_parameters
from opdf_compile.graph.traced import MODULE_RUNG, Phase, Traced

SCALE = (
    "is stretched over the weight that {} reads (one number for a row or a block): a scale, "
    "not a matrix"
)


def match(model: Traced | nn.Module) -> MatchReport:
    """Find every weight that can be over-parameterised, and say why the others cannot.

    A weight is replaced where it is stored, so every reader gets the composed one, and views and
    arithmetic between the Parameter and the op (a transpose, a slice, a norm, a mask) change
    nothing: such a weight is a match too, and its uses say what it goes through.

    Args:
        model: A traced model; or a module, whose Linear and Conv submodules are then taken as they
            stand (no uses, no FLOPs, no view of functional calls).

    Returns:
        Matches and refusals, in the order of the model's parameters.

    Raises:
        InputError: The model is neither.

    Example:
        >>> import torch
        >>> [m.key for m in match(torch.nn.Sequential(torch.nn.Linear(4, 4))).matches]
        ['0.weight']
    """
    if isinstance(model, nn.Module):
        return module_rows(bare(model))
    require_type(model, Traced, "the model", "a torch.nn.Module or opdf.trace(program)")
    found = _Findings(parameters=_parameters(model))
    for phase, graph in model.graphs.items():
        found.note(phase, meetings(graph))
    trained = {node for graph in model.graphs.values() for node in differentiated(graph)}
    judged = ((key, _judge(key, seen, trained)) for key, seen in found.sightings.items())
    rows: dict[str, Match | Refusal] = {key: row for key, row in judged if row is not None}
    layers = _layers(model)
    for row in (*found.constants, *_unread(model, found, layers)):
        rows.setdefault(row.key, row)
    rows |= dict(_as_layers_store(rows, layers))
    order = {names[0]: index for index, names in enumerate(found.parameters.values())}
    ordered = sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))
    return MatchReport(
        matches=tuple(row for row in ordered if isinstance(row, Match)),
        refusals=tuple(row for row in ordered if isinstance(row, Refusal)),
        notes=model.notes,
        rung=model.rung,
        source="modules" if model.rung == MODULE_RUNG else "graph",
    )


@dataclass
class _Sighting:
    """All meetings of one Parameter, by kind."""

    parameter: Tensor
    aliases: tuple[str, ...]
    uses: list[tuple[Phase, Meeting]] = field(default_factory=list)
    weak: list[tuple[Phase, Meeting]] = field(default_factory=list)
    lookups: list[Meeting] = field(default_factory=list)
    never: list[Meeting] = field(default_factory=list)
    asides: list[Meeting] = field(default_factory=list)

    def add(self, phase: Phase, meeting: Meeting) -> None:
        if meeting.kind in ("use", "weak"):
            (self.uses if meeting.kind == "use" else self.weak).append((phase, meeting))
            return
        kinds = {"lookup": self.lookups, "never": self.never, "aside": self.asides}
        kinds[meeting.kind].append(meeting)


@dataclass
class _Findings:
    parameters: dict[int, tuple[str, ...]]
    sightings: dict[str, _Sighting] = field(default_factory=dict)
    constants: list[Refusal] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)

    def note(self, phase: Phase, flow: Flow) -> None:
        for key, reader in flow.read.items():
            name = self.parameters.get(key, ("",))[0]
            self.read.setdefault(name, str(reader.target))
        for meeting in flow.meetings:
            origin = meeting.origin
            if origin is None:
                shape = flow.shapes.get(meeting.constant, ())
                self.constants.append(Refusal(meeting.constant, meeting.reason, shape=shape))
                continue
            names = self.parameters.get(id(origin.parameter), (origin.target,))
            fresh = _Sighting(origin.parameter, names[1:])
            self.sightings.setdefault(names[0], fresh).add(phase, meeting)


def _parameters(traced: Traced) -> dict[int, tuple[str, ...]]:
    """All names of each Parameter. The source module's own order and names come first."""
    if isinstance(traced.source, nn.Module):
        return names_of_parameters(traced.source)
    names: dict[int, tuple[str, ...]] = {}
    for graph in traced.graphs.values():
        for key, found in names_of_parameters(graph).items():
            names.setdefault(key, found)
    return names


def _judge(key: str, seen: _Sighting, trained: Collection[Node]) -> Match | Refusal | None:
    """A match, a refusal, or None for what is no matrix and never stood where one stands.

    `trained` are the nodes whose values get a gradient.
    """
    weight = seen.parameter
    # A product with a constant counts where no product with an input does.
    uses = [row for row in seen.uses if _as_matrix(row[1])]
    uses = uses or [row for row in seen.weak if _as_matrix(row[1])]
    if not uses:
        reason = _why_no_use(seen)
        return None if reason is None else Refusal(key, reason, shape=tuple(weight.shape))
    found = _match(key, seen, tuple(_use(*row, trained) for row in uses), uses[0][1])
    reason, optional = _reason(seen, uses)
    if reason is None:
        return found
    return Refusal(key, reason, shape=found.shape, offer=found if optional else None)


def _as_matrix(meeting: Meeting) -> bool:
    origin = meeting.origin
    return origin is not None and not origin.scales and not origin.gathered


def _match(key: str, seen: _Sighting, uses: tuple[Use, ...], first: Meeting) -> Match:
    weight, sizes = seen.parameter, tuple(seen.parameter.shape)
    assert first.origin is not None
    roles = [_role(first, axis) for axis in range(len(sizes))]
    transposed, kernel, rows = orientation(sizes, roles) if len(sizes) > 1 else (False, 1, 1)
    return Match(
        key=key,
        shape=sizes,
        dtype=str(weight.dtype).removeprefix("torch."),
        uses=uses,
        transposed=transposed,
        kernel=kernel,
        aliases=seen.aliases,
        row_axes=rows,
        groups=convolution_groups(first.node),
    )


def _role(meeting: Meeting, axis: int) -> str:
    """The labels of the operand's axes that run over one axis of the Parameter, each once."""
    assert meeting.origin is not None
    over = zip(meeting.labels, meeting.origin.layout, strict=False)
    return "".join(sorted({label for label, axes in over if axis in axes}))


def _use(phase: Phase, meeting: Meeting, trained: Collection[Node]) -> Use:
    node, origin = meeting.node, meeting.origin
    assert origin is not None
    shape = example_shape(meeting.operand) or tuple(origin.parameter.shape)
    flops = weight_op_flops(node, shape, meeting.labels)
    often = passes(node, meeting.operand, trained)
    return Use(phase, node.name, str(node.target), flops, origin.through, often)


def _why_no_use(seen: _Sighting) -> str | None:
    """Why a Parameter that meets a product or a layer is not its weight."""
    if seen.never:
        return seen.never[0].reason
    if seen.asides:
        return seen.asides[0].reason
    if seen.lookups or any(m.origin and m.origin.gathered for _p, m in seen.uses + seen.weak):
        return LOOKUP
    if seen.parameter.ndim < 2:
        return None
    _phase, meeting = (seen.uses + seen.weak)[0]
    return SCALE.format(meeting.node.target)


def _reason(seen: _Sighting, uses: list[tuple[Phase, Meeting]]) -> tuple[str | None, bool]:
    """Why a weight with linear uses is left alone, and whether a plan may include it."""
    weight = seen.parameter
    if not is_weight_dtype(weight):
        return NOT_DENSE.format(weight.dtype), False
    if weight.ndim < 2:
        return "has one axis: there is nothing to factorise", False
    if weight.numel() == 0:
        return "is empty", False
    if seen.never:
        return seen.never[0].reason, False
    if not weight.requires_grad:
        return FROZEN, False
    if seen.lookups:
        return TIED.format(weight.shape[0]), True
    functions = [m.origin.function if m.origin else "" for _phase, m in uses]
    if all(functions):
        return FUNCTION.format(uses[0][1].node.target, f"aten.{functions[0]}"), True
    return None, False


def _layers(traced: Traced) -> MatchReport:
    """What the modules of the source say of their own weights."""
    if isinstance(traced.source, ExportedProgram):
        return MatchReport(())
    return layer_rows(traced.source)


def _as_layers_store(
    rows: dict[str, Match | Refusal], layers: MatchReport
) -> Iterator[tuple[str, Match]]:
    """Matches of layers with the rows and columns of their layer, whichever way an op reads them.

    A file of cores without its plan knows the layers alone. For a square weight that is read the
    other way round (x @ linear.weight) no size would tell rows from columns.
    """
    for layer in layers.matches:
        row = rows.get(layer.key)
        if isinstance(row, Match):
            yield (
                layer.key,
                replace(
                    row,
                    transposed=layer.transposed,
                    kernel=layer.kernel,
                    row_axes=layer.row_axes,
                ),
            )


def _unread(traced: Traced, found: _Findings, report: MatchReport) -> Iterator[Match | Refusal]:
    """Linear and Conv modules whose weight no op reads as a weight."""
    if isinstance(traced.source, ExportedProgram):
        return
    if traced.rung == MODULE_RUNG:
        # The phase without a graph may read any of them, so the modules' own word counts.
        report = module_rows(traced.source)
        yield from report.matches
        yield from report.refusals
        return
    for row in report.matches:
        reader = found.read.get(row.key)
        if reader is None:
            reason = "is not read by forward with these inputs"
        else:
            reason = f"is read by {reader}, and reaches no linear or convolution op as its weight"
        yield Refusal(row.key, reason, shape=row.shape)
    # A weight that is computed before each use has no Parameter; its sources have their own rows.
    known = {name for name, _parameter in traced.source.named_parameters(remove_duplicate=False)}
    yield from (row for row in report.refusals if row.key in known)
