"""Programs that are there already: from torch.export, or from an archive."""

from __future__ import annotations

from collections.abc import Mapping

import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram

from opdf_compile.errors import TraceError
from opdf_compile.graph.axes import Dynamic
from opdf_compile.graph.phases import share
from opdf_compile.graph.recorded import recorded_axes
from opdf_compile.graph.signature import output_names
from opdf_compile.graph.traced import PHASES, Phase, Traced


def trace_programs(
    programs: Mapping[str, ExportedProgram],
    source: nn.Module | ExportedProgram | None = None,
    *,
    dynamic: Dynamic = None,
) -> Traced:
    """Take programs that are there already: "model" (trained), and "eval" where it was kept.

    Args:
        programs: ExportedPrograms by name.
        source: What the caller came with; the "model" program if None.
        dynamic: Names for the axes that the programs keep free, by input.

    Raises:
        TraceError: There is no program "model".
    """
    if "model" not in programs:
        raise TraceError(
            f"the archive holds the programs {', '.join(programs) or 'none'}, wanted one called "
            "'model'; write it with torch.export.save or opdf-compile expand"
        )
    model = programs["model"]
    evaluation = programs.get("eval", model)
    notes = () if "eval" in programs else ("one program: its graph serves train and eval alike",)
    by_phase: dict[Phase, ExportedProgram] = {"train": model, "eval": evaluation}
    axes = recorded_axes(evaluation, dynamic if isinstance(dynamic, Mapping) else {})
    return Traced(
        source=model if source is None else source,
        programs=by_phase,
        graphs=share(by_phase, None),
        args=(),
        kwargs={},
        input_names=tuple(axes),
        output_names=tuple(output_names(out_spec(evaluation))),
        axis_names=axes,
        dynamic_shapes=None,
        rungs=dict.fromkeys(PHASES, "given"),
        notes=notes,
    )


def out_spec(program: ExportedProgram) -> pytree.TreeSpec:
    """The tree of the program's output."""
    spec: pytree.TreeSpec = program.call_spec.out_spec
    return spec
