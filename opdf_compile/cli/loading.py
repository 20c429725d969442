"""From the MODEL argument and its options to a loaded and traced model; from a recipe to a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.cli.terminal import Terminal
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    from opdf_compile.distill.recipe import Job
    from opdf_compile.graph import Traced
    from opdf_compile.io import LoadedModel


@dataclass(frozen=True)
class ModelOptions:
    """The MODEL argument and the options that say how to read it."""

    model: str
    weights: Path | None = None
    input: tuple[str, ...] = ()
    inputs: Path | None = None
    size: str | None = None
    trust_pickle: bool = False


def usual_cores(options: ModelOptions) -> int | None:
    """The cores of a plan where nothing says how much; None if a batch is given to fit it to.

    An example that is drawn, or comes with the model, tells nothing of the batch of training.
    """
    from opdf_compile.planning import DEFAULT_CORES

    return None if options.input or options.inputs is not None else DEFAULT_CORES


def load(terminal: Terminal, options: ModelOptions) -> LoadedModel:
    """Loads the model of the options.

    Raises:
        UserError: The model, its weights or its example inputs cannot be used.
    """
    from opdf_compile.io import InputOptions, load_model

    with terminal.busy(f"loading {options.model}"):
        return load_model(
            options.model,
            weights=options.weights,
            inputs=InputOptions(options.input, options.inputs, options.size),
            trust_pickle=options.trust_pickle,
        )


def load_traced(terminal: Terminal, options: ModelOptions) -> Traced:
    """Loads and traces the model of the options.

    Raises:
        UserError: It cannot be loaded, or rejects its example inputs.
    """
    loaded = load(terminal, options)
    from opdf_compile.graph import trace
    from opdf_compile.io import OnnxStudent, trace_drawn

    with terminal.busy(f"tracing {loaded.name}"):
        if loaded.drawn and isinstance(loaded.model, OnnxStudent):
            return trace_drawn(loaded.model)
        return trace(loaded.model, loaded.args, loaded.kwargs, dynamic=loaded.dynamic)


def load_job(terminal: Terminal, file: Path) -> Job:
    """Reads a recipe and loads what it names.

    Raises:
        UserError: The recipe is wrong, or something that it names cannot be used.
    """
    from opdf_compile.distill.recipe import prepare, read_recipe

    recipe = read_recipe(file)
    with terminal.busy(f"loading what {file.name} names"):
        return prepare(recipe, base=file.parent)


def ladder(traced: Traced) -> list[str]:
    """The rung of each phase in one line, and what the tracer had to give up, in sentences."""
    rungs = traced.rungs
    if len(set(rungs.values())) == 1:
        return [f"rung: {traced.rung}", *traced.notes]
    return ["rung: " + ", ".join(f"{rungs[phase]} ({phase})" for phase in rungs), *traced.notes]


def rules_given(texts: Sequence[str] | None) -> dict[str, str]:
    """The rules of ``--rule GLOB=NAME``, in order.

    Raises:
        InputError: One has no glob or nothing behind it, or a glob comes twice.
    """
    rules: dict[str, str] = {}
    for text in texts or ():
        glob, _, name = (part.strip() for part in text.partition("="))
        if not glob or not name:
            raise InputError(
                f"--rule {text!r} is no rule, wanted GLOB=NAME, such as --rule 'head.*=gains'"
            )
        if glob in rules:
            raise InputError(
                f"--rule gives {glob!r} twice, as {rules[glob]!r} and {name!r}, wanted it once; "
                "remove one"
            )
        rules[glob] = name
    return rules
