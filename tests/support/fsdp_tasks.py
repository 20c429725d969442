"""Tasks: fully_shard around the student, Overparam over it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ddp_tasks import OPTIONS
from shared_tasks import refused
from students import Noisy, Smooth, batches, build, loss_of, share, weights
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import SGD, AdamW

import opdf_compile as opdf

KINDS = {"AdamW": AdamW, "SGD": SGD}
STEPS = 8


def shard(student: nn.Module, *, nested: bool = True, dims: int = 1, **options: Any) -> nn.Module:
    """FSDP2 over all ranks; nested: each block by itself, then the rest."""
    ranks = dist.get_world_size()
    shape, names = ((ranks,), ("shards",)) if dims == 1 else ((2, ranks // 2), ("copies", "shards"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for block in student.blocks if nested else ():
        fully_shard(block, mesh=mesh, **options)
    fully_shard(student, mesh=mesh, **options)
    return student


def evaluate(student: nn.Module) -> Tensor:
    """A forward in eval, after which the root stays unsharded."""
    was, _ = student.training, student.eval()
    with torch.no_grad():
        x, _y = next(batches(1, next(student.parameters()).dtype))
        out: Tensor = student(x)
    student.train(was)
    return out


def train(
    model: nn.Module,
    optimizer: opdf.Overparam,
    *,
    joined: bool = False,
    between: bool = False,
    clip: float = 0.0,
    steps: int = STEPS,
) -> list[float]:
    """Steps on this rank's rows, or on all; the norms of the gradients where they are clipped.

    Args:
        between: Evaluate before each forward, and once more between backward and step.
    """
    rank, ranks = (0, 1) if joined else (dist.get_rank(), dist.get_world_size())
    norms = []
    for x, y in batches(steps, next(model.parameters()).dtype):
        if between:
            evaluate(model)
        optimizer.zero_grad()
        loss_of(model, share(x, rank, ranks), share(y, rank, ranks)).backward()
        if clip:
            norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        if between:
            evaluate(model)
        optimizer.step()
    return norms


def overparam(model: nn.Module, *, shared: bool = False, **options: Any) -> opdf.Overparam:
    """As the other tasks make it; `method` names a parametrization in place of chains."""
    given = {**OPTIONS, "cores": 3, **options}
    if method := given.pop("method", None):
        given["cores"] = None
        given["plan"] = opdf.plan(model, parametrization=method, min_size=1)
    kind = KINDS[given.pop("kind", "AdamW")]
    group = dist.group.WORLD if shared else None
    return opdf.Overparam(model, kind, process_group=group, **given)


def against_one_process(
    *,
    between: bool = False,
    clip: float = 0.0,
    options: dict[str, Any] | None = None,
    layout: dict[str, Any] | None = None,
    shared: bool = False,
    resharding: bool = True,
) -> dict[str, Any]:
    """The same run sharded, and in one process with the joined batch."""
    alone = build()
    one = overparam(alone, **(options or {}))
    wanted_norms = train(alone, one, joined=True, clip=clip)
    model = shard(build(), **(layout or {}))
    optimizer = overparam(model, shared=shared, **(options or {}))
    if not resharding:
        _never_reshard()
    norms = train(model, optimizer, between=between, clip=clip)
    seen = evaluate(model)
    folded = opdf.fold(optimizer, into=build(seed=5))
    return {
        "folded": weights(folded),
        "wanted": weights(opdf.fold(one)),
        "norms": norms,
        "wanted norms": wanted_norms,
        "seen": seen,
        "says": evaluate(folded),
        "uneven": [list(p.to_local().shape) for n, p in _sharded(model) if n == "head.weight"],
    }


def _never_reshard() -> None:
    """What the engine would be without it; the crew is thrown away after such a task."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("opdf_compile.") and hasattr(module, "reshard"):
            module.reshard = lambda student: None  # type: ignore[attr-defined]


def _sharded(model: nn.Module) -> list[tuple[str, Any]]:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    return list(model.named_parameters())


def changed_on_one_rank(*, shared: bool) -> dict[str, Any]:
    """One shard is overwritten on rank 1."""
    model = shard(build())
    optimizer = overparam(model, shared=shared)
    train(model, optimizer)
    weight: Any = dict(_sharded(model))["first.weight"]
    if dist.get_rank() == 1:
        with torch.no_grad():
            weight.to_local().add_(1.0)
    found = {
        "step": refused(optimizer.step),
        "fold": refused(lambda: opdf.fold(optimizer, into=build())),
    }
    absorbed = optimizer.absorb()
    kept = weight.full_tensor().detach().clone()
    folded = opdf.fold(optimizer, into=build())
    train(model, optimizer)
    return {**found, "absorbed": absorbed, "kept": kept, "folded": folded.first.weight.detach()}


def without_into() -> list[str]:
    """A sharded student cannot be copied; also where an eval forward has just unsharded it."""
    model = shard(build(), nested=False)
    optimizer = overparam(model)
    evaluate(model)
    return [
        refused(lambda: opdf.fold(optimizer, source="cores")),
        refused(lambda: opdf.fold(optimizer)),
    ]


def late() -> dict[str, Any]:
    """The optimizer is built right after an eval forward."""
    model = shard(build())
    evaluate(model)
    optimizer = overparam(model)
    train(model, optimizer)
    alone = build()
    train(alone, one := overparam(alone), joined=True)
    return {
        "planned": len(optimizer.plan.entries),
        "folded": weights(opdf.fold(optimizer, into=build())),
        "wanted": weights(opdf.fold(one)),
    }


def resume(*, after_eval: bool, shared: bool) -> dict[str, Any]:
    """state_dict, load_state_dict and the model's own, and on from there."""
    model = shard(build())
    optimizer = overparam(model, shared=shared)
    train(model, optimizer)
    _sharded(model)
    state = optimizer.state_dict()
    saved = {name: value.detach().clone() for name, value in model.state_dict().items()}
    kept: Any = state["state"][_place(state, "norm.weight")]["exp_avg"]
    state = _cloned(state)
    again = shard(build(seed=7))
    resumed = overparam(again, shared=shared)
    if after_eval:
        evaluate(again)
    resumed.load_state_dict(state)
    _sharded(again)
    again.load_state_dict(saved)
    ends = []
    for run in ((model, optimizer), (again, resumed)):
        train(*run)
        ends.append(weights(opdf.fold(run[1], into=build())))
    return {"kind": type(kept).__name__, "went on": ends[0], "resumed": ends[1]}


def _place(state: dict[str, Any], name: str) -> int:
    return next(place for place, found in state["opdf"]["names"].items() if found == name)


def _cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def mixed_precision(*, shared: bool) -> dict[str, Any]:
    """Weights in float32, forward and backward in bfloat16; against plain AdamW's own error."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ends = {}
    for form, options in (("half", {"mp_policy": policy}), ("single", {})):
        model = shard(build(dtype=torch.float32), **options)
        optimizer = overparam(model, shared=shared)
        train(model, optimizer)
        ends[form] = weights(opdf.fold(optimizer, into=build(dtype=torch.float32)))
    return ends


def loss_scaling() -> dict[str, Any]:
    """An overflow on rank 1 alone must be skipped by all."""
    model = shard(build(dtype=torch.float32))
    optimizer = overparam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales, moved = [], []
    for step, (x, y) in enumerate(batches(3, torch.float32)):
        rank = dist.get_rank()
        optimizer.zero_grad()
        loss = loss_of(model, share(x, rank, 2), share(y, rank, 2))
        scaler.scale(loss * float("inf") if step == 1 and rank == 1 else loss).backward()
        before = optimizer.fingerprints()
        scaler.step(optimizer)
        scaler.update()
        moved.append(before != optimizer.fingerprints())
        scales.append(scaler.get_scale())
    return {"scales": scales, "moved": moved}


def noisy(*, shared: bool) -> dict[str, Any]:
    """BatchNorm and dropout."""
    model = fully_shard(build(Noisy), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = overparam(model, shared=shared, cores=2)
    torch.manual_seed(dist.get_rank())
    train(model, optimizer)
    folded = opdf.fold(optimizer, into=build(Noisy))
    trained = {name: p.detach() for name, p in folded.named_parameters()}
    return {"kind": type(folded).__name__, "trained": trained}


def bare_program() -> dict[str, Any]:
    """hoist() without Overparam, with an eval forward before the optimizer is built."""
    model = shard(build())
    program = opdf.hoist(model, opdf.plan(model, cores=3))
    evaluate(model)
    inner = AdamW(program.parameters(), lr=1e-2)
    alone = build()
    other = opdf.hoist(alone, opdf.plan(alone, cores=3))
    outer = AdamW(other.parameters(), lr=1e-2)
    rank = dist.get_rank()
    for x, y in batches(STEPS):
        loss_of(model, share(x, rank, 2), share(y, rank, 2)).backward()
        loss_of(alone, x, y).backward()
        for weight_program, optimizer in ((program, inner), (other, outer)):
            weight_program.backward()
            optimizer.step()
            weight_program.refresh()
            weight_program.zero_grad()
    folded = opdf.fold(program, into=build(Smooth, seed=4))
    return {"folded": weights(folded), "wanted": weights(alone)}
