"""`opdf-compile advise`: what pays for a recipe, by a race on its own data."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.contest import show_ruling
from opdf_compile.cli.formats import table
from opdf_compile.cli.loading import load_job
from opdf_compile.cli.terminal import Terminal, opened, require_folder
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.distill.advise import Advice, Side
    from opdf_compile.distill.recipe import Job

NAME = "advise"
EXAMPLES = (
    "$ opdf-compile distill --init digits.toml\n\n"
    "$ opdf-compile advise digits.toml\n\n"
    "$ opdf-compile advise digits.toml --budget 1800 --json advice.json --plot advice.png\n\n"
    "$ opdf-compile advise digits.toml --contenders plain,repvgg,gains,muon --after int8"
)
Equal = Literal["steps", "time", "both"]
After = Literal["int8"]
_SHOWN = 3
_SIDES = ("plain", "over-parameterised")


def command(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.toml", help="What would be trained.", show_default=False),
    ],
    contenders: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Race these against plain: parametrizations, adamw, sgd, muon, recipe (its own "
            "plan), joined by + (gains+muon), with more steps by @ (plain@2x).",
        ),
    ] = None,
    equal: Annotated[
        Equal | None,
        typer.Option(help="What contenders have as much of as plain; both by default."),
    ] = None,
    after: Annotated[
        After | None,
        typer.Option(help="Also measure what quantisation costs each contender."),
    ] = None,
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
    time for each run. Fresh seeds and fresh examples then compare the two. With --contenders any
    number of ways to train race, at equal steps and at equal time, and more steps of the plain
    student beside them. The recipe stays as it is: the advice is printed.
    """
    started = time.perf_counter()
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.distill.advise import parse_contenders, require_limits, require_picture

        if plot is not None:
            require_picture(plot)
            require_folder(plot)

        require_limits(budget, pairs)
        if contenders is None:
            _require_contenders(equal=equal, after=after)
        else:
            parse_contenders(contenders)
        job = load_job(terminal, recipe)
        limits: dict[str, Any] = {"budget_seconds": budget, "most_pairs": pairs}
        asked = _Asked(job, recipe, plot, started, limits)
        if contenders is None:
            _race(terminal, asked)
        else:
            _referee(terminal, asked, contenders, equal or "both", after)


class _Asked(NamedTuple):
    """What both kinds of race are given."""

    job: Job
    recipe: Path
    plot: Path | None
    started: float
    limits: dict[str, Any]


def _race(terminal: Terminal, asked: _Asked) -> None:
    from opdf_compile.distill.advise import advice_json, advise, plot_advice

    with terminal.busy(f"advice on {asked.recipe}") as say:
        spent = time.perf_counter() - asked.started
        advice = advise(asked.job, **asked.limits, spent_seconds=spent, progress=say)
    _show(terminal, advice)
    terminal.result({**advice_json(advice), "recipe": str(asked.recipe)})
    if asked.plot is not None:
        plot_advice(advice, asked.plot)
        terminal.show("", f"Wrote {asked.plot}")


def _referee(
    terminal: Terminal, asked: _Asked, contenders: str, equal: Equal, after: After | None
) -> None:
    from opdf_compile.distill.advise import plot_ruling, referee, ruling_json

    options: dict[str, Any] = {"equal": equal, "after": after, **asked.limits}
    with terminal.busy(f"advice on {asked.recipe}") as say:
        spent = time.perf_counter() - asked.started
        ruling = referee(asked.job, contenders, **options, spent_seconds=spent, progress=say)
    show_ruling(terminal, ruling)
    terminal.result({**ruling_json(ruling), "recipe": str(asked.recipe)})
    if asked.plot is not None:
        plot_ruling(ruling, asked.plot)
        terminal.show("", f"Wrote {asked.plot}")


def _require_contenders(**options: str | None) -> None:
    """Refuse what is about contenders where none are named.

    Raises:
        InputError: With what to add.
    """
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"--{name} {value} is about contenders and none are named, wanted some; add "
                "--contenders plain,gains,muon, or leave it out"
            )


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
