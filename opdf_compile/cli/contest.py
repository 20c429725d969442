"""The tables of `opdf-compile advise --contenders`."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from opdf_compile.cli.formats import table

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.cli.terminal import Terminal
    from opdf_compile.distill.advise import Bout, Ruling, Side


def show_ruling(terminal: Terminal, ruling: Ruling) -> None:
    """What was tuned, what came of it, and what to do."""
    from opdf_compile.distill.advise import ruling_lines, ruling_words

    rows = [settings_table(ruling), gains_table(ruling)]
    terminal.show(*rows, *([int8_table(ruling)] if ruling.plain_int8 is not None else []))
    terminal.show(
        f"Time: {ruling.seconds:.0f} s, {ruling.spent:.0f} s of them for loading; "
        f"{len(ruling.seeds)} seeds, each scored on {ruling.scored} examples of its own."
    )
    for note in ruling.notes:
        terminal.warn(note)
    lines = ruling_lines(ruling).splitlines()
    terminal.show("", ruling_words(ruling), *[""] * bool(lines), *lines)


def settings_table(ruling: Ruling) -> Table:
    """Each side's setting, and what its steps cost."""
    numbers = ("lr", "decay", "runs tuned", "steps", "ms/step", "cost")
    made = table("Each at its best setting", "side", *numbers, numbers=numbers)
    for side in (ruling.plain, *(s.side for s in (*ruling.longer, *ruling.contenders))):
        made.add_row(side.method, *_setting_cells(side, ruling.plain))
    return made


def _setting_cells(side: Side, plain: Side) -> tuple[str, ...]:
    return (
        f"{side.lr:g}" + "*" * side.at_edge,
        f"{side.weight_decay:g}",
        str(side.tuning_runs),
        str(side.final_steps),
        f"{1000 * side.step_seconds:.3g}",
        f"{side.step_seconds / plain.step_seconds:.2f}x",
    )


def gains_table(ruling: Ruling) -> Table:
    """Every duel; p is corrected for all duels of contenders."""
    way = "higher" if ruling.higher_is_better else "lower"
    numbers = ("ours", "plain", "time", "gain", "p")
    title = f"Gain over plain: {ruling.metric}, {way} is better"
    made = table(title, "contender", "equal", *numbers, numbers=numbers)
    for standing in ruling.contenders:
        for basis, bout in standing.bouts.items():
            p = ruling.corrected[standing.name, basis]
            made.add_row(standing.name, basis, *_bout_cells(bout, p))
    made.add_section()
    for standing in ruling.longer:
        bout = standing.bouts["steps"]
        made.add_row(standing.name, "neither", *_bout_cells(bout, bout.duel.p))
    return made


def _bout_cells(bout: Bout, p: float) -> tuple[str, ...]:
    found = bout.duel.comparison
    gain = "none"
    if bout.duel.diverged or found is None:
        wins, losses = bout.duel.wins
        gain = f"{wins} won, {losses} lost"
    elif found is not None:
        gain = f"{found.mean:+.3g} ({found.low:+.2g} to {found.high:+.2g})"
    return f"{bout.steps}", f"{bout.plain_steps}", f"{bout.time:.2f}x", gain, f"{p:.2g}"


def int8_table(ruling: Ruling) -> Table:
    """The mean metric before and after int8, of the same students on the same examples."""
    numbers = ("before", "after", "drop")
    made = table(f"After int8: {ruling.metric}", "side", *numbers, numbers=numbers)
    rounded = {"plain": ruling.plain_int8, **{s.name: s.int8 for s in ruling.contenders}}
    for name, found in rounded.items():
        if found is not None:
            drop = f"{found.drop(ruling.higher_is_better):+.3g}"
            made.add_row(name, f"{fmean(found.before):.4g}", f"{fmean(found.after):.4g}", drop)
    return made
