"""Prompts and responses as examples of a causal language model.

    input_ids       p_1 .. p_m  r_1 .. r_n          the prompt, then the response
    labels          p_2 .. p_m  r_1 .. r_n  -100    of each token the next one
    loss_mask        0  ..  0    1  ..  1     0     1 where the next token is one of the response

Labels stand in the row that predicts them, so every loss and metric that looks at rows fits. Rows
of unequal length are filled up on the right: a causal model cannot see what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opdf_compile.distill.recipe.examples import IGNORED_LABEL, Chosen
from opdf_compile.distill.recipe.job import Examples

INPUTS = ("input_ids", "attention_mask")
LABELS = "labels"
# What a loss or a metric counts unless it says otherwise.
MASK = "loss_mask"
# The same on rows whose response is of the data, and on rows whose response the student wrote.
DATA_MASK, STUDENT_MASK = "data_mask", "student_mask"
PROMPT = "prompt_length"
Learn = Literal["response", "all"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Examples in memory, as token ids.

    Attributes:
        prompts: ``(m,)`` int64 each, of one token at least.
        responses: ``(n,)`` int64 each, of one token at least.
        learn: Which tokens count.
    """

    prompts: Sequence[Tensor]
    responses: Sequence[Tensor]
    learn: Learn = "response"

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self.prompts):
            raise IndexError(f"example {index} of {len(self.prompts)}")
        return example_of(self.prompts[index], self.responses[index], self.learn)


def example_of(
    prompt: Tensor, response: Tensor, learn: Learn = "response", *, by_student: bool = False
) -> dict[str, Tensor]:
    """One example.

    Args:
        prompt: ``(m,)`` int64, of one token at least: the first response token is predicted from
            the last of it.
        response: ``(n,)`` int64.
        learn: Whether the prompt counts, too.
        by_student: Whether the student wrote the response. Then it has no labels: nobody says that
            it is right.
    """
    ids = torch.cat([prompt, response])
    following = torch.cat([ids[1:], ids.new_full((1,), IGNORED_LABEL)])
    counted = torch.ones_like(ids)
    counted[-1] = 0
    if learn == "response":
        counted[: len(prompt) - 1] = 0
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        LABELS: following.masked_fill((counted == 0) | by_student, IGNORED_LABEL),
        MASK: counted,
        DATA_MASK: counted * (not by_student),
        STUDENT_MASK: counted * by_student,
        PROMPT: torch.tensor(len(prompt)),
    }


def sequences_in(part: Examples) -> tuple[Sequences, Sequence[int]] | None:
    """The sequences that a part is cut from and which of them they are; None for other data."""
    if isinstance(part, Sequences):
        return part, range(len(part))
    if isinstance(part, Chosen) and (found := sequences_in(part.whole)) is not None:
        whole, places = found
        return whole, [places[place] for place in part.indices.tolist()]
    return None


def largest_token(part: Examples) -> int:
    """The largest token id of a part; -1 where it holds no sequences."""
    found = sequences_in(part)
    if found is None:
        return -1
    whole, places = found
    both = (whole.prompts, whole.responses)
    return max(int(ids[place].max()) for ids in both for place in places)


def longest_prompt(part: Examples) -> int:
    """Tokens of the longest prompt of a part; 0 where it holds no sequences."""
    found = sequences_in(part)
    return 0 if found is None else max(len(found[0].prompts[place]) for place in found[1])
