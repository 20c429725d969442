"""The report of a run: report.json, report.md and report.html, with the plot of its curves."""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf_compile.distill.engine import Setup
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run.counters import Counters
from opdf_compile.distill.run.curves import plot_curves
from opdf_compile.distill.run.finishing import End
from opdf_compile.distill.run.folder import RunFolder, read_log
from opdf_compile.distill.run.lock import read_lock
from opdf_compile.errors import ArtefactError
from opdf_compile.files import atomic_write
from opdf_compile.parity import plain
from opdf_compile.tables import markdown_table

SCHEMA = "opdf-distill-report/1"
CURVES = "curves.png"
MODELS = {
    "untouched": "student before training",
    "teacher": "teacher",
    "student": "student after training, folded",
    "onnx": "the same in onnxruntime",
}


@dataclass(frozen=True)
class _Section:
    """A table of the report: a heading, the columns, the cells."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(
    job: Job, setup: Setup, progress: Counters, end: End, folder: RunFolder
) -> dict[str, Any]:
    """Write the plot and the three forms; the JSON last, because it says that the run is done."""
    value = _value(job, setup, progress, end, folder)
    entries = read_log(folder.log)
    with atomic_write(folder.path / CURVES) as temporary:
        plot_curves(entries, job.metric.name, progress.kept_step, temporary)
    tables = _tables(job, setup, end, value)
    opening = _opening(value)
    _write(folder.path / "report.md", _markdown(opening, tables, value))
    _write(folder.page, _page(opening, tables, value, folder))
    text = json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    _write(folder.result, text + "\n")
    return value


def read_result(folder: RunFolder) -> dict[str, Any] | None:
    """The report of a finished run, or None.

    Raises:
        ArtefactError: It is damaged.
    """
    if not folder.result.is_file():
        return None
    try:
        value = json.loads(folder.result.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}, wanted {SCHEMA!r}")
        return dict(value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(
            f"{folder.result} is damaged ({str(error)[:100].rstrip('.')}), wanted the report of a "
            "finished run; delete it, and the end of the run is done again"
        ) from error


def _value(
    job: Job, setup: Setup, progress: Counters, end: End, folder: RunFolder
) -> dict[str, Any]:
    validation = None if math.isnan(progress.best) else progress.best
    return {
        "schema": SCHEMA,
        "verdict": _verdict(end),
        "metric": job.metric.name,
        "higher_is_better": job.metric.higher_is_better,
        "test": end.metrics,
        "validation": {"best": validation, "step": progress.best_step},
        "steps": progress.step,
        "steps_planned": setup.steps,
        "stopped_early": progress.stopped,
        "kept_step": progress.kept_step,
        "peak_lr": job.recipe.optimizer.lr,
        "plan": None if setup.plan is None else setup.plan.to_json()["totals"],
        "bundle": None if end.bundle is None else end.bundle.name,
        "generation": _generation(job, read_log(folder.log)),
        "parity": None if end.parity is None else end.parity.to_json(),
        "lock": read_lock(folder.lock),
    }


def _generation(job: Job, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the student wrote, over all processes that the run had one after another."""
    told = [entry for entry in entries if entry["event"] == "generation"]
    if job.recipe.generation is None or not told:
        return None
    counts = told[-1]["counts"]
    return {
        "policy": job.recipe.generation.policy,
        "batches": {name: counts.get(name, 0) for name in ("data", "student", "buffer")},
        "tokens": counts.get("tokens", 0),
        "seconds": round(sum(entry["seconds"] for entry in told), 3),
        "phi": told[-1]["phi"],
    }


def _verdict(end: End) -> str | None:
    """What was found of the bundle; None where there is none to judge."""
    if end.parity is not None:
        return end.parity.verdict
    return None if end.bundle is None else "not_verified"


def _opening(value: Mapping[str, Any]) -> str:
    """Two or three sentences: how long, which weights, the verdict."""
    early = " (early stopping)" if value["stopped_early"] else ""
    planned = f" of {value['steps_planned']}" if value["stopped_early"] else ""
    sentences = [f"Trained for {value['steps']:,}{planned} optimizer steps{early}."]
    best = value["validation"]["best"]
    if best is not None:
        sentences.append(
            f"The weights of step {value['kept_step']:,} ship: validation {value['metric']} "
            f"{best:.4g} is the best of the run."
        )
    else:
        sentences.append("The last weights ship: there is no validation part to choose with.")
    words: Mapping[str | None, str] = {
        None: "Nothing was exported, so there is no parity to judge.",
        "pass": "The export has the structure, numbers and latency of the untouched student's.",
        "fail": "The export differs from the untouched student's: parity is refuted.",
        "inconclusive": "Parity is neither proved nor refuted; see the verdict in the bundle.",
        "not_verified": "Parity was not verified.",
    }
    return " ".join([*sentences, words[value["verdict"]]])


def _tables(job: Job, setup: Setup, end: End, value: Mapping[str, Any]) -> list[_Section]:
    tables = []
    if end.metrics:
        rows = tuple(
            (MODELS[name], f"{end.metrics[name]:.4f}") for name in MODELS if name in end.metrics
        )
        count = len(job.data.test)
        title = f"Test {job.metric.name} on {count:,} examples that no choice looked at"
        tables.append(_Section(title, ("model", job.metric.name), rows))
    if end.parity is not None:
        parity = end.parity
        parts = ("structure", "numerics", "latency")
        rows = tuple((part, getattr(parity, part).verdict) for part in parts)
        tables.append(_Section("Parity with the untouched student", ("part", "verdict"), rows))
    if value["generation"] is not None:
        found = value["generation"]
        rows = tuple((name, f"{found['batches'][name]:,}") for name in found["batches"])
        rows += (("tokens written", f"{found['tokens']:,}"), ("seconds", f"{found['seconds']:g}"))
        if found["policy"] == "adaptive":
            rows += (("phi at the end", f"{found['phi']:g}"),)
        title = f"Batches by who wrote the responses ({found['policy']})"
        tables.append(_Section(title, ("from", "number"), rows))
    if setup.plan is not None:
        weights = tuple(
            (e.key, f"{e.deployed:,}", f"{e.cost.parameters:,}") for e in setup.plan.decisions
        )
        head = ("weight", "deployed parameters", "in training")
        tables.append(_Section("Over-parameterised weights", head, weights))
    lock = value["lock"]
    facts = [("data", f"{lock['data']['source']}, sha256 {lock['data']['sha256'][:16]}")]
    facts.append(("peak learning rate", f"{value['peak_lr']:g}"))
    facts.append(("seed", str(lock["seed"])))
    facts.extend((name, version) for name, version in lock["versions"].items())
    tables.append(_Section("Made with", ("what", "value"), tuple(facts)))
    return tables


def _markdown(opening: str, tables: list[_Section], value: Mapping[str, Any]) -> str:
    lines = ["# Distillation run", "", opening, "", f"![curves]({CURVES})", ""]
    for table in tables:
        lines += [f"## {table.title}", "", markdown_table([table.head, *table.rows]), ""]
    if value["parity"]:
        lines += [f"The verdict with its plots: [{value['bundle']}/report.html]"]
        lines[-1] += f"({value['bundle']}/report.html)"
    return "\n".join(lines).rstrip() + "\n"


def _page(opening: str, tables: list[_Section], value: Mapping[str, Any], folder: RunFolder) -> str:
    import jinja2

    source = importlib.resources.files(__package__).joinpath("page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    image = base64.b64encode((folder.path / CURVES).read_bytes()).decode()
    recipe = folder.recipe.read_text(encoding="utf-8")
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        opening=opening, tables=tables, value=value, image=image, recipe=recipe
    )


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
