"""The plan's JSON schema, and its reader for plans that people edit by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations import SiteSpec, registered
from opdf_compile.planning.entry import SCHEMA, PlanEntry
from opdf_compile.planning.site_entry import SiteEntry


class EntryModel(BaseModel):
    """One weight of a plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: str = Field(min_length=1, max_length=1000)
    aliases: list[str] = []
    parametrization: str
    spec: dict[str, Any]
    cost: dict[str, int] | None = Field(None, description="Written for the reader, not read back.")


class SiteModel(BaseModel):
    """One site of a plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: str = Field(min_length=1, max_length=1000)
    norm: dict[str, str]
    parametrization: str
    spec: dict[str, Any]
    bias: str | None = None
    outputs: int = Field(0, ge=0, le=2**53)
    modules: bool = True
    cost: dict[str, int] | None = Field(None, description="Written for the reader, not read back.")


class RefusalModel(BaseModel):
    """One weight that a plan file leaves alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: str
    reason: str


class PlanModel(BaseModel):
    """A plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_: Literal["opdf-plan/1"] = Field(alias="schema")
    request: dict[str, Any] = {}
    rung: str = "module"
    notes: list[str] = []
    entries: list[EntryModel]
    sites: list[SiteModel] = []
    refusals: list[RefusalModel] = []
    totals: dict[str, Any] = Field({}, description="Written for the reader; computed anew.")

    def planned(self) -> Iterator[PlanEntry]:
        """The entries.

        Raises:
            PlanError: A spec does not fit its parametrization; with its place.
        """
        for index, entry in enumerate(self.entries):
            try:
                spec = registered(entry.parametrization).spec_from_json(entry.spec)
            except PlanError as error:
                place = f"entries.{index} ({entry.key})"
                raise PlanError(f"the plan is wrong at {place}: {error}") from error
            yield PlanEntry(entry.key, entry.parametrization, spec, tuple(entry.aliases))

    def planned_sites(self) -> Iterator[SiteEntry]:
        """The sites.

        Raises:
            PlanError: A spec fits no site; with its place.
        """
        for index, site in enumerate(self.sites):
            try:
                spec = SiteSpec.from_json(site.spec)
                names = (site.key, site.norm, site.parametrization)
                yield SiteEntry(*names, spec, site.bias, site.outputs, site.modules)
            except PlanError as error:
                place = f"sites.{index} ({site.key})"
                raise PlanError(f"the plan is wrong at {place}: {error}") from error


def parsed_plan(value: Any) -> PlanModel:
    """JSON values that have the form of a plan.

    Raises:
        PlanError: The first thing that is wrong, with its place.
    """
    try:
        return PlanModel.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(
            f"the plan is wrong at {place}: {first['msg']} (schema {SCHEMA}); "
            "correct it or write a new one with opdf-compile plan MODEL -o plan.json"
        ) from error
