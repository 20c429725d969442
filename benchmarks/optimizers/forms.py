"""One training in one of three forms, driven as the class's own users drive it.

plain    the class steps the student's parameters
over     opdf.Overparam steps them, around the class
cores    the class steps the cores itself, in a student that is composed in every forward by einsum:
         what `over` must come to, by a way that shares nothing with it
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from bench.oracle import composed
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import opdf_compile as opdf
from optimizers.catalogue import Offer
from optimizers.student import batch, make_student

CORES = 3
Group = dict[str, Any]


class Run:
    """A student and its optimizer.

    Args:
        offer: The class and how it is used.
        bias: Whether the student has biases.
        options: Further options, for this run alone.

    Attributes:
        student: The student; its weights are what counts in `plain` and `over`.
        optimizer: What is stepped.
    """

    optimizer: Any

    def __init__(self, offer: Offer, *, bias: bool, **options: Any) -> None:
        """Build student and optimizer; the seed is the same for all."""
        self.offer = offer
        self.student = make_student(bias=bias)
        self._done = 0
        torch.manual_seed(1)
        self.optimizer = self._built({**offer.options, **options})
        self.switch("train")

    def _built(self, options: dict[str, Any]) -> Any:
        if self.offer.need.model == "instead":
            return self.offer.kind(self.student, **options)
        params = self._groups(self.student.parameters())
        return self.offer.maker(self.student)(params, **options)

    def _groups(self, parameters: Iterable[nn.Parameter]) -> list[Any]:
        given = list(parameters)
        if self.offer.need.only == "matrices":
            return [p for p in given if p.ndim == 2]
        flag = self.offer.need.flag
        if flag is None:
            return given
        by = {True: [p for p in given if p.ndim > 1], False: [p for p in given if p.ndim < 2]}
        return [{"params": of, flag: value} for value, of in by.items() if of]

    def logits(self, images: Tensor) -> Tensor:
        """What the student says."""
        result: Tensor = self.student(images)
        return result

    def weights(self) -> dict[str, Tensor]:
        """A copy of the student's parameters."""
        return {name: p.detach().clone() for name, p in self.student.named_parameters()}

    def step(self) -> None:
        """One step on the next batch."""
        images, labels = batch(self._done)
        self._done += 1

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.logits(images), labels)
            torch.autograd.backward(loss, create_graph=self.offer.need.graph)
            return loss

        if self.offer.need.step == "closure":
            self.optimizer.step(closure)
            return
        loss = float(closure())
        if self.offer.need.step == "ascent":
            self.optimizer.step(closure)
        elif self.offer.need.step == "loss":
            self.optimizer.step(lambda: loss)
        else:
            self.optimizer.step()

    def steps(self, count: int) -> None:
        """Some steps, from a seed that depends on where the training is."""
        for _ in range(count):
            torch.manual_seed(100 + self._done)
            self.step()

    @property
    def has_modes(self) -> bool:
        """Whether the optimizer has train() and eval()."""
        return self.offer.need.modes and all(
            callable(getattr(self.optimizer, mode, None)) for mode in ("train", "eval")
        )

    def switch(self, mode: str) -> None:
        """Call train() or eval() of the optimizer, if it has them."""
        if self.has_modes:
            getattr(self.optimizer, mode)()

    def save(self) -> bytes:
        """Weights and state in a file, as a training script writes them."""
        file = io.BytesIO()
        torch.save([self._done, self.student.state_dict(), self.optimizer.state_dict()], file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        """What `save` wrote, into a run that is newly built."""
        self._done, weights, state = torch.load(io.BytesIO(saved), weights_only=False)
        self.student.load_state_dict(weights)
        self.optimizer.load_state_dict(state)


class Over(Run):
    """The over-parameterised form."""

    optimizer: opdf.Overparam

    def _built(self, options: dict[str, Any]) -> opdf.Overparam:
        return opdf.Overparam(
            self._groups(self.student.parameters()),
            self.offer.maker(self.student),
            module=self.student,
            cores=CORES,
            **options,
        )


class Checkpointed(Over):
    """The same, saved with `opdf.save_checkpoint`."""

    _folder: str

    def save(self) -> bytes:
        """Write a checkpoint; what comes back names its folder."""
        folder = tempfile.mkdtemp()
        opdf.save_checkpoint(folder, self.optimizer, step=self._done)
        return f"{self._done} {folder}".encode()

    def load(self, saved: bytes) -> None:
        """Read a checkpoint."""
        done, folder = saved.decode().split(" ", 1)
        opdf.load_checkpoint(folder, self.optimizer)
        self._done = int(done)


class Cores(Run):
    """The class over the cores themselves.

    Args:
        over: A run that has not stepped yet: its cores are copied, and its plan is used.
    """

    def __init__(self, offer: Offer, over: Over, *, bias: bool, **options: Any) -> None:
        """Take the cores over."""
        self._plan = over.optimizer.plan
        self._cores = {
            entry.key: [
                nn.Parameter(c.detach().clone()) for c in over.optimizer.program.cores(entry.key)
            ]
            for entry in self._plan.entries
        }
        super().__init__(offer, bias=bias, **options)

    def _built(self, options: dict[str, Any]) -> Any:
        rest = [p for name, p in self.student.named_parameters() if name not in self._cores]
        cores = [core for of in self._cores.values() for core in of]
        params = self._groups([*rest, *cores])
        return self.offer.maker(self.student)(params, **options)

    def _composed(self) -> dict[str, Tensor]:
        return {entry.key: composed(self._cores[entry.key], entry) for entry in self._plan.entries}

    def logits(self, images: Tensor) -> Tensor:
        """What the student says with the weights that the cores make now."""
        result: Tensor = functional_call(self.student, self._composed(), (images,))
        return result

    def weights(self) -> dict[str, Tensor]:
        """The parameters, with the composed weights in place of the student's."""
        own = super().weights()
        return own | {name: value.detach() for name, value in self._composed().items()}

    def nudge(self, seed: int) -> None:
        """Move every core by about what it is rounded by."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for core in (core for of in self._cores.values() for core in of):
                core.mul_(1 + torch.randn(core.shape, generator=generator) * 2.0**-23)


Form = Callable[..., Run]
