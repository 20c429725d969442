"""A teacher that knows no more than chance: nothing can be learned from it, so it is said.

The yardstick is to answer the most frequent class always. With n labels of which that class has
the share p, the accuracy of a guess scatters by sqrt(p (1 - p) / n); a teacher within two of those
above p is not told apart from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opdf_compile.distill.recipe.examples import IGNORED_LABEL
from opdf_compile.distill.recipe.job import Job, Outputs

_EXAMPLES = 512
_SCATTERS = 2.0


@torch.no_grad()
def teacher_at_chance(job: Job) -> str | None:
    """A sentence where the teacher is no better than chance on the validation part.

    Looks at 512 examples at most.

    Returns:
        None where it is better, where there is no teacher, or where its outputs are not one class
        of several for each label.
    """
    labels = job.data.labels
    if job.teacher is None or labels is None:
        return None
    part, size = job.data.validation, job.recipe.data.batch
    rows = range(min(_EXAMPLES, len(part)))
    answered: list[Tensor] = []
    wanted: list[Tensor] = []
    for start in range(0, len(rows), size):
        batch = job.data.collate([part[row] for row in rows[start : start + size]])
        found = _answers(job.forward(job.teacher.eval(), batch), batch[labels])
        if found is None:
            return None
        counts = batch[labels] != IGNORED_LABEL
        answered.append(found[counts])
        wanted.append(batch[labels][counts])
    return _sentence(torch.cat(answered), torch.cat(wanted)) if wanted else None


def _answers(outputs: Outputs, labels: Tensor) -> Tensor | None:
    """The class that the logits name for each label; None where they name none."""
    logits = outputs.get("logits", next(iter(outputs.values())))
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        return None
    return logits.argmax(-1)


def _sentence(answered: Tensor, wanted: Tensor) -> str | None:
    if not len(wanted):
        return None
    right = float((answered == wanted).double().mean())
    counts = torch.unique(wanted, return_counts=True)[1]
    frequent = float(counts.max()) / len(wanted)
    scatter = (frequent * (1 - frequent) / len(wanted)) ** 0.5
    if frequent == 1 or right > frequent + _SCATTERS * scatter:
        return None
    return (
        f"the teacher answers {right:.1%} of {len(wanted):,} validation labels rightly, and always "
        f"answering the most frequent class gives {frequent:.1%}: it is at chance level and has "
        "nothing to teach; give it its trained weights with weights in [teacher], and the "
        "preprocessing and class numbers that it was trained with"
    )
