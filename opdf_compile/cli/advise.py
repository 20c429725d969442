"""`opdf-compile advise`: whether over-parameterisation pays for a recipe, by a race."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.loading import load_job
from opdf_compile.cli.terminal import Terminal, opened, require_folder

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.distill.advise import Advice, Side

NAME = "advise"
EXAMPLES = (
    "$ opdf-compile distill --init digits.toml\n\n"
    "$ opdf-compile advise digits.toml\n\n"
    "$ opdf-compile advise digits.toml --budget 1800 --json advice.json --plot advice.png"
)
_SHOWN = 3
_SIDES = ("plain", "over-parameterised")


def command(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.toml", help="What would be trained.", show_default=False),
    ],
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time that the whole race may take.")
    ] = 600.0,
    pairs: Annotated[
        int, typer.Option(metavar="N", help="Pairs of final runs that are enough.")
    ] = 30,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="F.png", help="Draw the tuning and the paired gains."),
    ] = None,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Race plain against over-parameterised training on a recipe's own student and data.

    Both sides get the same time to find their best learning rate and weight decay, and the same
    time for each run. Fresh seeds and fresh examples then compare the two. The recipe stays as it
    is: the advice is printed.
    """
    started = time.perf_counter()
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.distill.advise import (
            advice_json,
            advise,
            plot_advice,
            require_limits,
            require_picture,
        )

        if plot is not None:
            require_picture(plot)
            require_folder(plot)

        require_limits(budget, pairs)
        job = load_job(terminal, recipe)
        with terminal.busy(f"advice on {recipe}") as say:
            advice = advise(
                job,
                budget_seconds=budget,
                most_pairs=pairs,
                spent_seconds=time.perf_counter() - started,
                progress=say,
            )
        _show(terminal, advice)
        terminal.result({**advice_json(advice), "recipe": str(recipe)})
        if plot is not None:
            plot_advice(advice, plot)
            terminal.show("", f"Wrote {plot}")


def _show(terminal: Terminal, advice: Advice) -> None:
    from opdf_compile.distill.advise import recipe_lines, recommendation

    sides = (advice.plain, advice.over)
    terminal.show(
        *(tried_table(side, name, advice.metric) for side, name in zip(sides, _SIDES, strict=True)),
        sides_table(advice),
        pairs_table(advice),
        f"Time: {advice.seconds:.0f} s, {advice.spent:.0f} s of them for loading; "
        f"{advice.final_share:.0%} of the race in the final comparison.",
    )
    for note in advice.notes:
        terminal.warn(note)
    lines = recipe_lines(advice).splitlines()
    terminal.show("", recommendation(advice), *[""] * bool(lines), *lines)


def tried_table(side: Side, name: str, metric: str) -> Table:
    """The best settings of each rung of one side."""
    numbers = ("rung", "lr", "decay", "steps", "seeds", metric)
    title = f"Tuning, {name}: the best {_SHOWN} of each rung"
    made = table(title, "rung", "method", *numbers[1:], numbers=numbers)
    for rung, group in groupby(side.tried, key=lambda row: row.rung):
        rows = list(group)
        for place, row in enumerate(rows[:_SHOWN]):
            made.add_row(
                "" if place else str(rung),
                row.method,
                f"{row.lr:g}",
                f"{row.weight_decay:g}",
                str(row.steps),
                str(row.seeds),
                _score(row.score),
            )
        if len(rows) > _SHOWN:
            made.add_row("", f"and {len(rows) - _SHOWN} more")
    return made


def sides_table(advice: Advice) -> Table:
    """What each side chose, and what its runs cost; a column per side, as names can be long."""
    made = table("Equal time for both", "what", *_SIDES, numbers=_SIDES)
    plain, over = (_side_cells(side, len(advice.seeds)) for side in (advice.plain, advice.over))
    for what, cell in plain.items():
        made.add_row(what, cell, over[what])
    return made


def _side_cells(side: Side, runs: int) -> dict[str, str]:
    return {
        "chosen": side.method,
        "learning rate": f"{side.lr:g}",
        "weight decay": f"{side.weight_decay:g}",
        "tuning runs": str(side.tuning_runs),
        "tuning, seconds": f"{side.tuning_seconds:.3g}",
        "final, seconds": f"{side.final_seconds:.3g}",
        "seconds per final run": f"{side.final_seconds / runs:.3g}",
        "steps per final run": str(side.final_steps),
        "milliseconds per step": f"{1000 * side.step_seconds:.3g}",
        "seconds of set-up": f"{side.setup_seconds:.2g}",
    }


def pairs_table(advice: Advice) -> Table:
    """The final comparison, seed by seed; the last row is the mean with its interval."""
    way = "higher" if advice.higher_is_better else "lower"
    heads, title = (advice.plain.method, advice.over.method, "gain"), "Final comparison"
    made = table(f"{title}: {advice.metric}, {way} is better", "seed", *heads, numbers=heads)
    sign = 1 if advice.higher_is_better else -1
    for seed, plain, over in zip(
        advice.seeds, advice.plain.scores, advice.over.scores, strict=True
    ):
        gap = "none" if plain is None or over is None else f"{sign * (over - plain):+.3g}"
        made.add_row(str(seed), _score(plain), _score(over), gap)
    found = advice.comparison
    if found is not None:
        interval = f"{found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
        made.add_section()
        made.add_row("mean", _mean(advice.plain), _mean(advice.over), interval)
    return made


def _mean(side: Side) -> str:
    scores = [score for score in side.scores if score is not None]
    return _score(sum(scores) / len(scores))


def _score(score: float | None) -> str:
    return "diverged" if score is None else f"{score:.4g}"
