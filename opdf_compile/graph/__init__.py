"""torch.export and torch.fx tools: trace, match, edit, count and dump. Knows no tensor network."""

from __future__ import annotations

from opdf_compile.graph.matching import Match, MatchReport, Refusal, Use, match
from opdf_compile.graph.tracing import PHASES, Phase, Traced, trace

__all__ = [
    "PHASES",
    "Match",
    "MatchReport",
    "Phase",
    "Refusal",
    "Traced",
    "Use",
    "match",
    "trace",
]
