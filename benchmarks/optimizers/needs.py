"""What each class is given by its own users, plain and over-parameterised alike: data, no code.

A class that is not named here is built as `cls(params, lr=1e-2)` (without lr where its own default
is None, or 0.5 and more, as that of step-size-free ones), and stepped after a backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Named:
    """A class that an option takes; imported where it is needed.

    Attributes:
        path: `module:name`.
    """

    path: str


@dataclass(frozen=True)
class Need:
    """How a class is built and stepped.

    Attributes:
        options: Its options.
        bare: Take `options` only: no learning rate of the table's own.
        step: "plain": backward, then step(). "closure": step(closure). "ascent": backward, then
            step(closure), as sharpness-aware ones are used. "loss": backward, then step(closure)
            with a closure that only says the loss.
        graph: The backward keeps its graph (create_graph), for second derivatives.
        flag: An option that says True for the group of matrices and False for that of the others.
        only: "matrices": it takes weights of two axes, and its users give it no others.
        around: The class of the optimizer that it takes in place of parameters.
        model: It takes the model: "first" before the parameters, or "instead" of them.
        steps: How many steps it takes until it moves weights that can be seen, if more than three.
        modes: Whether its users call train() and eval(), where it has them.
        group: Needs a process group; one process makes one.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    bare: bool = False
    step: Literal["plain", "closure", "ascent", "loss"] = "plain"
    graph: bool = False
    flag: str | None = None
    only: Literal["matrices"] | None = None
    around: str | None = None
    model: Literal["first", "instead"] | None = None
    steps: int = 3
    modes: bool = True
    group: bool = False


_CLOSURE = Need(step="closure")
_SEARCH = Need({"line_search_fn": "strong_wolfe"}, step="closure")
_GRAPH = Need(graph=True)
# Its variance is trusted from the sixth step on; it stands still until then.
_RADAM = Need(steps=8)
_MUON = Need(flag="use_muon")
_MOMENTUM = Need({"momentum": 0.9})
_SAM = {"base_optimizer": Named("torch.optim:SGD"), "lr": 0.1}
_SGD = "torch.optim:SGD"
_ADAMW = "torch.optim:AdamW"

NEEDS: dict[str, Need] = {
    "torch/LBFGS": _SEARCH,
    "torch/Muon": Need(only="matrices"),
    "pytorch_optimizer/lbfgs": _SEARCH,
    "pytorch_optimizer/alig": Need(step="loss", bare=True),
    "pytorch_optimizer/bsam": Need({"num_data": 8}, step="ascent"),
    "pytorch_optimizer/adashift": Need({"keep_num": 2}),
    "pytorch_optimizer/adahessian": _GRAPH,
    "pytorch_optimizer/sophiah": _GRAPH,
    "timm/Adahessian": _GRAPH,
    "pytorch_optimizer/muon": _MUON,
    "pytorch_optimizer/adamuon": _MUON,
    "pytorch_optimizer/adago": _MUON,
    "pytorch_optimizer/normuon": _MUON,
    "pytorch_optimizer/muonclip": _MUON,
    "pytorch_optimizer/spectralsphere": Need(only="matrices"),
    "pytorch_optimizer/demo": Need(only="matrices", group=True),
    "pytorch_optimizer/distributedmuon": Need(flag="use_muon", group=True),
    "pytorch_optimizer/radam": _RADAM,
    "pytorch_optimizer/schedulefreeradam": _RADAM,
    "pytorch_optimizer/ranger21": Need({"num_iterations": 100}),
    "pytorch_optimizer/adammini": Need(model="instead"),
    "pytorch_optimizer/magma": Need(around=_ADAMW),
    "pytorch_optimizer/Lookahead": Need({"k": 2}, around=_ADAMW),
    "pytorch_optimizer/TRAC": Need(around=_ADAMW, steps=20),
    "pytorch_optimizer/OrthoGrad": Need(around=_ADAMW),
    "pytorch_optimizer/ScheduleFreeWrapper": Need(around=_SGD),
    "pytorch_optimizer/SAM": Need(_SAM, bare=True, step="ascent"),
    "pytorch_optimizer/WSAM": Need(_SAM, bare=True, step="ascent", model="first"),
    "pytorch_optimizer/LookSAM": Need(_SAM, bare=True, step="ascent"),
    "pytorch_optimizer/FriendlySAM": Need(_SAM, bare=True, step="ascent"),
    "schedulefree/ScheduleFreeWrapper": Need({"momentum": 0.9}, around=_SGD),
    "schedulefree/AdamWScheduleFreeClosure": _CLOSURE,
    "schedulefree/RAdamScheduleFree": _RADAM,
    "schedulefree/RAdamScheduleFreeClosure": Need(step="closure", steps=8),
    "schedulefree/SGDScheduleFreeClosure": _CLOSURE,
    "heavyball/SAMWrapper": Need(bare=True, step="closure", modes=False),
    "timm/Lookahead": Need({"k": 2}, around=_ADAMW),
    "bitsandbytes/SGD": _MOMENTUM,
    "bitsandbytes/SGD8bit": _MOMENTUM,
    "bitsandbytes/SGD32bit": _MOMENTUM,
    "bitsandbytes/LARS": _MOMENTUM,
    "bitsandbytes/LARS8bit": _MOMENTUM,
    "bitsandbytes/LARS32bit": _MOMENTUM,
    "bitsandbytes/PytorchLARS": _MOMENTUM,
    "transformers/Adafactor": Need(bare=True),
    "transformers/Adafactor, lr given": Need(
        {"lr": 1e-3, "relative_step": False, "scale_parameter": False}, bare=True
    ),
}

# Not tried, with the reason.
LEFT_OUT: dict[str, str] = {
    "torch/SparseAdam": "it takes sparse gradients only",
    "torchao/CPUOffloadOptimizer": "it needs a CUDA device",
    "pytorch_optimizer/lomo": "it takes the model and steps in a backward of its own",
    "pytorch_optimizer/adalomo": "it takes the model and steps in a backward of its own",
    "pytorch_optimizer/lorarite": "it takes the two factors of LoRA layers",
    "pytorch_optimizer/PCGrad": "it has no step of its own: a backward of several losses",
    "pytorch_optimizer/SafeFP16Optimizer": "it has a backward of its own",
    "pytorch_optimizer/GSAM": "it evaluates the model by itself: set_closure() and no argument",
    "heavyball/PSGDBase": "it is a base of others",
    "heavyball/SOAPBase": "it is a base of others",
    "heavyball/SplitOpt": "it takes groups with a class in each",
}
