"""All that a plan can ask for by name, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.parametrizations.branches.forms import COMMON_OPTIONS, BranchForm, branch_forms
from opdf_compile.parametrizations.registry import registered, registered_names
from opdf_compile.parametrizations.request import Option
from opdf_compile.tables import html_table, text_table

SCHEMA = "opdf-parametrizations/1"


@dataclass(frozen=True)
class Listed:
    """One parametrization.

    Attributes:
        name: By which plans ask for it.
        kind: "weight", which becomes a function of its cores or is stepped otherwise; or "site", a
            convolution with its BatchNorm, which gets branches.
        forms: Where it trains: "Overparam", "inline" (`opdf.expand`), "module" (`opdf.branch`).
        summary: What it is.
        adds: The parameters that it adds.
        source: The paper.
        options: What may be asked for in brackets.
    """

    name: str
    kind: str
    forms: tuple[str, ...]
    summary: str
    adds: str
    source: str
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        forms = ", ".join(self.forms)
        return (self.name, self.kind, forms, self.summary, self.adds, self.source)

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        options = {
            key: {
                "kind": list(o.kind) if isinstance(o.kind, tuple) else o.kind.__name__,
                "default": o.default,
                "doc": o.doc,
            }
            for key, o in self.options.items()
        }
        return vars(self) | {"forms": list(self.forms), "options": options}


@dataclass(frozen=True)
class Listing:
    """All parametrizations; prints as a table, and under it what each may be asked for.

    Attributes:
        rows: Those of weights, then those of sites, each sorted by name.
    """

    rows: tuple[Listed, ...]

    head: ClassVar[tuple[str, ...]] = (
        "name",
        "of a",
        "trains in",
        "what it is",
        "adds parameters",
        "source",
    )
    costs: ClassVar[str] = (
        "A weight is composed once per step, whatever the batch. Branches beside a site (a "
        "convolution and the BatchNorm that alone reads it) run on the batch: they add their FLOPs "
        "and activations to every forward and backward. A plan counts both for a model at hand."
    )

    def __iter__(self) -> Iterator[Listed]:
        return iter(self.rows)

    def option_lines(self) -> list[str]:
        """A line for each option: ``wide(expansion=4): inner width over the larger side``.

        Those that all sites have come once.
        """
        own = [
            f"{row.name}({option.written(key)}): {option.doc}"
            for row in self.rows
            for key, option in row.options.items()
            if row.kind == "weight" or key not in COMMON_OPTIONS
        ]
        common = (f"every site ({o.written(key)}): {o.doc}" for key, o in COMMON_OPTIONS.items())
        return [*own, *common]

    def to_json(self) -> dict[str, Any]:
        """The listing as plain values, schema "opdf-parametrizations/1"."""
        return {"schema": SCHEMA, "parametrizations": [row.to_json() for row in self.rows]}

    def __str__(self) -> str:
        table = text_table([self.head, *(row.cells() for row in self.rows)])
        return "\n".join([table, "", *self.option_lines(), "", self.costs])

    def _repr_html_(self) -> str:
        options = "".join(f"<li>{escape(line)}</li>" for line in self.option_lines())
        table = html_table([self.head, *(row.cells() for row in self.rows)])
        return f"{table}<ul>{options}</ul><p>{escape(self.costs)}</p>"


def list_parametrizations() -> Listing:
    """What plans can ask for by name: in `parametrization=`, in `rules=`, in recipes.

    Returns:
        A row for each, those of one's own that were registered included.

    Example:
        >>> [row.name for row in list_parametrizations() if "expansion" in row.options]
        ['wide']
    """
    weights = [_of_weights(name, registered(name)) for name in registered_names()]
    return Listing((*weights, *map(_of_sites, branch_forms().values())))


def _of_weights(name: str, by: Parametrization[Any]) -> Listed:
    forms = ("Overparam",) if by.metric else ("Overparam", "inline")
    # One that was written without the base class may call something else so.
    words = (by.summary, by.adds, by.source)
    summary, adds, source = (word if isinstance(word, str) else "" for word in words)
    return Listed(name, "weight", forms, summary, adds, source, by.options)


def _of_sites(form: BranchForm) -> Listed:
    options = {**form.options, **COMMON_OPTIONS}
    texts = (form.summary, form.adds, form.source)
    return Listed(form.name, "site", ("inline", "module"), *texts, options)
