"""Checkpoints of a run: the student and its optimizer, and all that the next step depends on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from opdf_compile.distill.engine import BatchSource, Setup
from opdf_compile.distill.run.counters import Counters
from opdf_compile.distill.run.plain_state import PlainState
from opdf_compile.errors import ArtefactError
from opdf_compile.io import (
    Checkpoint,
    RankGroup,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    step_folder,
)
from opdf_compile.training import Overparam

if TYPE_CHECKING:
    from opdf_compile.distill.recipe import TrainingSection

_State = dict[str, Tensor]


class Saving:
    """Saves and loads one run.

    Args:
        setup: What is trained.
        scaler: Of float16's gradients.
        source: Where the batches come from.

    Attributes:
        kept: The weights that would ship, on the CPU; in the first process only.
    """

    def __init__(self, setup: Setup, scaler: GradScaler, source: BatchSource) -> None:
        self._setup, self._scaler, self._source = setup, scaler, source
        self._first = RankGroup().rank == 0
        self.kept: _State = {}
        plain = not isinstance(setup.optimizer, Overparam)
        self._optimizer: Any = (
            PlainState(setup.optimizer, setup.student) if plain else setup.optimizer
        )

    def keep(self, progress: Counters) -> None:
        """Keep the weights as they are now: the average, or the folded student."""
        progress.kept_step = progress.step
        if not self._first:
            return
        self.kept = {
            name: value.detach().cpu().clone()
            for name, value in self._setup.deployed().state_dict().items()
            if isinstance(value, Tensor)
        }

    def save(self, folder: Path, progress: Counters, training: TrainingSection) -> Path | None:
        """Write a checkpoint, unless this step has one; all processes together."""
        if RankGroup().gather(step_folder(folder, progress.step).exists())[0]:
            return None
        side = self._setup.side
        extra = {
            "progress": progress.to_json(),
            "scaler": self._scaler.state_dict() if self._scaler.is_enabled() else None,
            "side": None if side is None else _options(side),
        }
        if state := self._source.state():
            extra["source"] = state
        return save_checkpoint(
            folder,
            self._optimizer,
            step=progress.step,
            extra=extra,
            tensors=self._tensors(),
            keep=training.keep,
        )

    def load(self, folder: Path) -> Counters | None:
        """Load the newest checkpoint; None where there is none.

        Raises:
            ArtefactError: It is damaged, or of something else.
        """
        if latest_checkpoint(folder) is None:
            return None
        found = load_checkpoint(folder, self._optimizer)
        if not isinstance(found.extra, dict):
            raise _foreign(found)
        progress = Counters.from_json(found.extra.get("progress"), str(found.path))
        try:
            self._give(found)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _foreign(found) from error
        return progress

    def _tensors(self) -> _State:
        """All tensors beside the student's own and its optimizer's."""
        found = {f"kept/{name}": tensor for name, tensor in self.kept.items()}
        found.update({f"source/{name}": t for name, t in self._source.tensors().items()})
        found.update(_state_of("losses", self._setup.losses))
        if self._setup.online is not None:
            found.update(_state_of("online", self._setup.online))
        if self._setup.average is not None:
            found.update(_state_of("average", self._setup.average))
        if self._setup.side is not None:
            for place, kept in self._setup.side.state_dict()["state"].items():
                found.update(
                    {f"side/{place}/{k}": v for k, v in kept.items() if isinstance(v, Tensor)}
                )
        return found

    def _give(self, found: Checkpoint) -> None:
        tensors = found.tensors
        setup = self._setup
        if self._first:
            self.kept = dict(_below("kept", tensors))
        self._source.load(found.extra.get("source", {}), dict(_below("source", tensors)))
        setup.losses.load_state_dict(_below("losses", tensors))
        if setup.online is not None:
            setup.online.load_state_dict(_below("online", tensors))
        if setup.average is not None:
            setup.average.load_state_dict(_below("average", tensors))
        if setup.side is not None:
            _give_side(setup.side, found.extra["side"], _below("side", tensors))
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(found.extra["scaler"])


def _state_of(name: str, module: nn.Module) -> _State:
    return {f"{name}/{key}": value.detach() for key, value in module.state_dict().items()}


def _below(name: str, tensors: Mapping[str, Tensor]) -> _State:
    start = f"{name}/"
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


def _options(side: Optimizer) -> dict[str, Any]:
    """The options of the groups, and what the optimizer keeps beside tensors."""
    state = side.state_dict()
    plain = {
        str(place): {key: value for key, value in kept.items() if not isinstance(value, Tensor)}
        for place, kept in state["state"].items()
    }
    return {"groups": state["param_groups"], "values": plain}


def _give_side(side: Optimizer, options: Mapping[str, Any], tensors: _State) -> None:
    state: dict[int, dict[str, Any]] = {
        int(place): dict(values) for place, values in options["values"].items()
    }
    for name, tensor in tensors.items():
        place, _, key = name.partition("/")
        state[int(place)][key] = tensor
    now = side.state_dict()["param_groups"]
    groups = [
        # JSON knows no tuples.
        {key: tuple(v) if isinstance(group.get(key), tuple) else v for key, v in saved.items()}
        for group, saved in zip(now, options["groups"], strict=True)
    ]
    side.load_state_dict({"state": state, "param_groups": groups})


def _foreign(found: Checkpoint) -> ArtefactError:
    return ArtefactError(
        f"{found.path} does not fit this run, wanted a checkpoint that it wrote; delete it, and "
        "the run goes on from the one before"
    )
