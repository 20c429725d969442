"""From the stores to rows and to the tables of docs/evidence.md; its sentences are by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.markdown import filled

from quality.second import plan, tables
from quality.second.plan import Stage
from quality.second.plots import differences
from quality.second.rows import Row, outcomes, rows_of, to_json
from quality.second.store import Store
from quality.second.study import missing


def write(
    development: Path,
    confirmation: Path,
    *,
    tiny: bool = False,
    path: Path | None = None,
    page: Path | None = None,
    plot: Path | None = None,
) -> dict[str, str]:
    """Make the tables, and write them where asked for.

    Args:
        development: Store of `develop`; left out where it does not exist.
        confirmation: Store of `run`; left out where it does not exist.
        tiny: Whether the confirmation ran so.
        path: Where the rows of the confirmation go, as JSON.
        page: The page between whose marks the tables go.
        plot: Where the picture of the confirmation goes.

    Returns:
        The tables by name.
    """
    made: dict[str, str] = {}
    early = rows(Store(development), plan.DEVELOPMENT)
    if early:
        made["second-development"] = tables.comparisons_table(tables.every_trial(early))
    stages = [stage.of(stage.tasks, tiny=tiny) for stage in plan.CONFIRMATION]
    held = Store(confirmation)
    found = rows(held, stages)
    if found:
        made["second-primary"] = tables.comparisons_table(tables.primary(found))
        made["second-saturated"] = tables.comparisons_table(tables.saturated(found))
        made["second-methods"] = tables.methods_table(found)
        made["second-trials"] = tables.trials_table(found)
        made["second-cost"] = tables.cost_table(found)
        made["second-stages"] = tables.stages_table(stages, lambda stage: whole(held, stage))
    print(*(f"{name}:\n{table}\n" for name, table in made.items()), sep="\n")
    if path is not None:
        path.write_text(json.dumps(to_json(found), indent=1) + "\n")
    if plot is not None:
        differences(found, plot)
    if page is not None:
        page.write_text(filled(page.read_text(), made))
    return made


def whole(store: Store, stage: Stage) -> bool:
    """Whether all of a stage has been run."""
    return not missing(store, stage)[0]


def rows(store: Store, stages: Sequence[Stage]) -> list[Row]:
    """The rows of the stages that are whole; tasks to come would change a correction."""
    return rows_of(outcomes(store, [stage for stage in stages if whole(store, stage)]))
