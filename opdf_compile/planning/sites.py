"""Choose the branches of every site that a plan asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from opdf_compile.graph import Match, Refusal, Site, Traced, find_sites
from opdf_compile.parametrizations import COMMON_OPTIONS, Request, SiteForm, SiteSpec, branch_forms
from opdf_compile.planning.site_entry import SiteEntry

NO_GRAPH = (
    "is of a module without a graph, and modules do not tell who reads a convolution: pass "
    "opdf.trace(model, args)"
)


def site_entries(
    model: Traced | nn.Module, asked: Iterable[tuple[Match, Request]]
) -> tuple[list[SiteEntry], list[Refusal]]:
    """The sites of a plan, and the weights that are none.

    Args:
        model: Where they stand.
        asked: Each weight with the branch form that is asked for.

    Returns:
        An entry or a refusal for each weight.
    """
    found = find_sites(model) if isinstance(model, Traced) else {}
    entries: list[SiteEntry] = []
    refusals: list[Refusal] = []
    for match, request in asked:
        site = found.get(match.key, NO_GRAPH)
        made = _entry(site, request) if isinstance(site, Site) else site
        if isinstance(made, SiteEntry):
            entries.append(made)
        else:
            refusals.append(Refusal(match.key, made, shape=match.shape))
    return entries, refusals


def _entry(site: Site, request: Request) -> SiteEntry | str:
    form, geometry = branch_forms()[request.name], SiteForm.of(site)
    own: dict[str, Any] = {k: v for k, v in request.options.items() if k not in COMMON_OPTIONS}
    common: dict[str, Any] = {k: v for k, v in request.options.items() if k in COMMON_OPTIONS}
    reason = form.why_not(geometry, **own)
    if reason is not None:
        return reason
    spec = SiteSpec.chosen(site, form.branches(geometry, **own), **common)
    names = (site.key, site.norm, request.name)
    return SiteEntry(*names, spec, site.bias, site.outputs, site.modules)
