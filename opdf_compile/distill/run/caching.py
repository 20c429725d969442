"""Which of the teacher's outputs a run keeps on the disk."""

from __future__ import annotations

from torch import Tensor

from opdf_compile.distill.engine import Setup, Teaching, names_read
from opdf_compile.distill.recipe import Examples
from opdf_compile.distill.run.cache import Cached, PartToKeep, cache_key, cached
from opdf_compile.distill.run.events import Stage, Watch
from opdf_compile.distill.run.folder import RunFolder
from opdf_compile.distill.run.lock import module_hash


def cached_parts(
    setup: Setup, teaching: Teaching, place: RunFolder, tell: Watch
) -> tuple[dict[str, Cached], tuple[str, ...]]:
    """The cache by part of the data, filled where it is not; and notes on it.

    The training part always, the validation part where the metric reads the teacher. Without
    [teacher] cache = true, or where nothing reads the teacher, there is none.
    """
    job, teacher = setup.job, teaching.teacher
    section = job.recipe.teacher
    if section is None or teacher is None or not section.cache:
        return {}, ()
    names = names_read(setup, teacher)
    if not names:
        return {}, ()
    if not job.data.fingerprint:
        return {}, (
            "[teacher] cache is true and the data has no hash, so nothing tells whether it is the "
            "same next time: the teacher runs at every step",
        )
    precision = job.recipe.training.precision
    key = cache_key(job.data.fingerprint, module_hash(teacher), precision, *names)

    def part(name: str) -> PartToKeep:
        examples: Examples = getattr(job.data, name)

        def compute(indices: list[int]) -> dict[str, Tensor]:
            found = teaching.outputs(teacher, setup.batches.of(examples, indices))
            return {n: found[n].detach().cpu().contiguous().clone() for n in names}

        return PartToKeep(name, examples, compute, job.recipe.data.batch)

    wanted = ["train"]
    if job.metric.needs_teacher and len(job.data.validation):
        wanted.append("validation")

    def say(text: str, share: float) -> None:
        tell(Stage(text, share))

    return {name: cached(place.cache / key, part(name), say) for name in wanted}, ()
