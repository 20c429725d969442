"""What a student is trained on.

L = (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T))

z, t: logits of student and teacher; y: labels; T: temperature. T^2 keeps the soft gradient's size
when T changes. Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    soft_share: float = 0.9,
) -> Tensor:
    """The mean loss of a batch.

    Args:
        logits: The student's, ``(b, classes)``.
        teacher_logits: ``(b, classes)``; no gradient flows into them.
        labels: ``(b,)`` int64.
        temperature: T above; larger values show more of the teacher's lesser choices.
        soft_share: a above, from 0 (labels only) to 1 (teacher only).
    """
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    hard = F.cross_entropy(logits, labels)
    return (1 - soft_share) * hard + soft_share * temperature**2 * soft
