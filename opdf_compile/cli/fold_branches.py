"""The part of `fold` that is about branches which a model brought itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.cli.formats import count, size_of_file, table
from opdf_compile.cli.loading import ModelOptions, load
from opdf_compile.cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.foreign import By, FoldedModel

# Residual sums of an ordinary network are among them; the JSON has all.
_SHOWN = 5


def fold_own(terminal: Terminal, asked: ModelOptions, out: Path, by: By, norms: bool) -> None:
    """Loads a model, folds its branches and writes what is left.

    Raises:
        UserError: The model cannot be used, has nothing to fold, or would change its function.
    """
    loaded = load(terminal, asked)
    from opdf_compile.foreign import fold_model

    with terminal.busy(f"folding the branches of {loaded.name}"):
        folded = fold_model(
            loaded.model, loaded.args, loaded.kwargs, dynamic=loaded.dynamic, by=by, norms=norms
        )
    with terminal.busy(f"writing {out}"):
        folded.save(out)
    for note in folded.notes:
        terminal.warn(note)
    terminal.show(
        _calls(folded) if folded.by == "method" else _folds(folded),
        *_refused(folded),
        f"{folded.operations[0]} operations before, {folded.operations[1]} after; equal in "
        "float64 within the rounding of the weights",
        f"Wrote {out} ({size_of_file(out.stat().st_size)})",
    )
    terminal.result(_as_json(folded, asked.model, out))


def _folds(folded: FoldedModel) -> Table:
    columns = ("branches", "layers", "norms", "operations")
    rows = table("Folded by graph", "weight", *columns, numbers=columns)
    for fold in folded.folds:
        cells = (fold.branches, fold.layers, fold.norms, fold.operations)
        rows.add_row(fold.key, *map(count, cells))
    return rows


def _calls(folded: FoldedModel) -> Table:
    columns = ("tensors before", "after")
    rows = table("Folded by method", "module", "method", *columns, numbers=columns)
    for call in folded.calls:
        rows.add_row(call.key or "(the model)", call.method, count(call.before), count(call.after))
    return rows


def _refused(folded: FoldedModel) -> list[str]:
    lines = [f"left alone: {refusal}" for refusal in folded.refused[:_SHOWN]]
    more = len(folded.refused) - _SHOWN
    return [*lines, f"left alone: {more} more (--json lists all)"] if more > 0 else lines


def _as_json(folded: FoldedModel, model: str, out: Path) -> dict[str, Any]:
    before, after = folded.operations
    return {
        "schema": "opdf-fold-branches/1",
        "model": model,
        "out": str(out),
        "by": folded.by,
        "operations": {"before": before, "after": after},
        "regions": [
            {
                "weight": fold.key,
                "branches": fold.branches,
                "layers": fold.layers,
                "norms": fold.norms,
                "operations": fold.operations,
                "replaced": list(fold.replaced),
            }
            for fold in folded.folds
        ],
        "calls": [vars(call) for call in folded.calls],
        "refused": [vars(refusal) for refusal in folded.refused],
        "notes": list(folded.notes),
    }
