"""Which weights were to be trained as something else, and what says so: the plan's claim."""

from __future__ import annotations

from dataclasses import dataclass

from opdf_compile.artefacts import MANIFEST, PLAN, ExportFacts, claimed_weights, planned_weights
from opdf_compile.errors import ArtefactError
from opdf_compile.files import load_json
from opdf_compile.parity.compared_files import ComparedFiles
from opdf_compile.parity.model_file import ModelFile

_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Claim:
    """What a plan over-parameterised.

    Attributes:
        weights: Their names in the student; at least one.
        source: What says so, as a clause.
    """

    weights: frozenset[str]
    source: str


def claim_of_plan(files: ComparedFiles, facts: ExportFacts) -> Claim | None:
    """The claim of the bundle, the candidate or its check data, whichever is the first to have one.

    Args:
        files: The candidate and what lies beside it.
        facts: What the candidate's check data says of the export.

    Raises:
        ArtefactError: The candidate cannot be read.
    """
    file, check = files.candidate, files.check
    sources = (
        (_of_bundle(file), "the bundle has a plan"),
        (claimed_weights(file.model), f"{file.name} was exported with a plan"),
        (facts.planned, f"{'' if check is None else check.name} was exported with a plan"),
    )
    found = ((frozenset(weights), source) for weights, source in sources if weights)
    return next((Claim(*each) for each in found), None)


def _of_bundle(file: ModelFile) -> tuple[str, ...]:
    folder = file.path.parent
    if not (folder / MANIFEST).is_file() or not (folder / PLAN).is_file():
        return ()
    try:
        return planned_weights(load_json(folder / PLAN, "a plan", most=_MOST_BYTES))
    except ArtefactError:
        return ()  # The manifest has its hash; what it should say is not this check's.
