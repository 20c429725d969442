"""A forest plot: differences with Holm's intervals, a panel per setting, a colour per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quality.rows import Row
from quality.tables import OPTIMIZERS, SETTINGS, is_primary

_METHODS = ("mpo", "svd", "powerprop", "wide", "ema")
# Diverged rivals would squeeze everything else together.
_WIDEST = 15.0


def forest(rows: Sequence[Row], path: Path) -> None:
    """Draw every task's endpoint against plain distillation, in points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r for r in rows if r.endpoint in ("accuracy", "cosine") and r.baseline == "plain"]
    settings = [s for s in SETTINGS if any((r.optimizer, r.start, r.length) == s for r in shown)]
    tasks = list(dict.fromkeys(r.task for r in shown))
    methods = [name for name in _METHODS if any(r.method == name for r in shown)]
    columns = 2
    lines = max(1, -(-len(settings) // columns))
    figure, axes = plt.subplots(
        lines, columns, figsize=(11, 3.6 * lines), sharey=True, squeeze=False, layout="constrained"
    )
    for place, axis in enumerate(axes.flat):
        if place >= len(settings):
            axis.set_visible(False)
            continue
        optimizer, start, length = settings[place]
        here = [r for r in shown if (r.optimizer, r.start, r.length) == settings[place]]
        primary = ""
        if place == 0:
            # The text task was trained with AdamW and belongs to the family that decides.
            here += [r for r in shown if is_primary(r) and r not in here]
            primary = "  (primary)"
        _panel(axis, here, tasks, methods)
        name = OPTIMIZERS[optimizer]
        axis.set_title(f"{name}, {start} start, {length} run{primary}", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(methods), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: object, rows: Sequence[Row], tasks: Sequence[str], methods: Sequence[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    axis.axvline(0, color="0.3", linewidth=1)
    limit = 1.0
    for number, method in enumerate(methods):
        mine = [r for r in rows if r.method == method]
        places = [tasks.index(r.task) + (number - (len(methods) - 1) / 2) * 0.14 for r in mine]
        centres = [100 * r.difference for r in mine]
        errors = [
            [100 * (r.difference - r.ci_low) for r in mine],
            [100 * (r.ci_high - r.difference) for r in mine],
        ]
        bold = method == "mpo"
        axis.errorbar(
            centres, places, xerr=errors, fmt="D" if bold else "o", label=method,
            markersize=6 if bold else 4, linewidth=2 if bold else 1,
            color=f"C{_METHODS.index(method)}",
        )  # fmt: skip
        limit = max([limit, *(abs(100 * end) for r in mine for end in (r.ci_low, r.ci_high))])
    limit = min(1.05 * limit, _WIDEST)
    axis.set_xlim(-limit, limit)
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_xlabel("100 x accuracy (lee-minilm: cosine) above plain distillation", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
