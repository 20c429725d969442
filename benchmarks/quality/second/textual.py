"""The text task as a problem: MiniLM of 6 layers to 3, read and scored by `quality.text`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from quality.text.corpus import Corpus, embed, embed_all, load

START = "warm"


@dataclass(frozen=True, eq=False)
class TextProblem:
    """What `problem.Problem` is, for sentences; its accuracy is the cosine to the teacher.

    Attributes:
        corpus: Sentences and the teacher's answers.
        steps: Length of a run of the fixed regime.
    """

    corpus: Corpus
    steps: int

    @property
    def count(self) -> int:
        """Sentences to train on."""
        return len(self.corpus.ids["train"])

    def begun(self, seed: int) -> nn.Module:
        """Layers 2, 4 and 6 of the teacher; the seed only orders the sentences."""
        return self.corpus.student(START, seed)

    @cached_property
    def traced(self) -> nn.Module:
        """What weight-only plans are made for: the module itself, whose inputs are keywords."""
        return self.begun(0)

    def loss(self, model: nn.Module, rows: Tensor, kind: str) -> Tensor:
        """One minus the cosine to the teacher, mean over the batch; there are no labels."""
        del kind
        made = embed(model, self.corpus.ids["train"][rows], self.corpus.pad)
        return 1 - (made * self.corpus.targets["train"][rows]).sum(1).mean()

    def scores(self, model: nn.Module, part: str) -> tuple[float, float]:
        """Mean cosine on a part, and one minus it."""
        made = embed_all(model, self.corpus.ids[part], self.corpus.pad)
        cosine = float((made * self.corpus.targets[part]).sum(1).mean())
        return cosine, 1 - cosine


def load_text(path: Path, steps: int) -> TextProblem:
    """The problem of what `python benchmarks/quality/text prepare` wrote."""
    return TextProblem(load(path, "cpu"), steps)


def beside(data: Path) -> Path:
    """Where the text's file lies: beside the other tasks'."""
    return data.with_name("lee.npz")


def missing_file(data: Path) -> str | None:
    """Why there is no text task, or None if there is."""
    if beside(data).exists():
        return None
    return (
        f"lee-minilm reads {beside(data)}, which does not exist; write it with "
        "`python benchmarks/quality/text prepare --gensim WHEEL -o` that path, or leave the task "
        "out with --tasks"
    )
