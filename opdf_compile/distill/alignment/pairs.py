"""Which cores of a student are compared with which of a teacher.

Both chains have the same modes but for the central core's, which takes up the difference of the
matrices' sizes. Cores are compared from each end inwards, as far as their shapes agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from opdf_compile.errors import InputError, PlanError
from opdf_compile.graph import bare, match
from opdf_compile.parametrizations import MatrixSpec, MpoSpec
from opdf_compile.planning import Plan, PlanEntry
from opdf_compile.spelling import did_you_mean

TeacherWeights = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """One weight of the student and one of the teacher.

    Attributes:
        key: The student's weight, as the plan calls it.
        teacher: The teacher's weight.
        spec: The student's chain; None where it has none.
        teacher_spec: The teacher's chain; None where no modes fit.
        shape: The shape of the teacher's weight.
        transposed: Whether the teacher stores it as (in features, out features).
        compared: Places of the cores that are compared.
        note: What is left out, and why; empty where all auxiliary cores are compared.
    """

    key: str
    teacher: str
    spec: MpoSpec | None = None
    teacher_spec: MpoSpec | None = None
    shape: tuple[int, ...] = ()
    transposed: bool = False
    compared: tuple[int, ...] = ()
    note: str = ""


def pairs_of(layer_map: Any) -> tuple[tuple[str, str], ...]:
    """(student weight, teacher weight) of a LayerMap, a mapping, or a list of pairs.

    Raises:
        InputError: It is none of those.
    """
    given = getattr(layer_map, "pairs", layer_map)
    if isinstance(given, Mapping):
        given = given.items()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(
            f"layer_map is of type {type(layer_map).__name__}, wanted pairs of weight names; give "
            "[(student weight, teacher weight), ..] or a LayerMap"
        )
    pairs = tuple(tuple(pair) for pair in given)
    odd = [p for p in pairs if len(p) != 2 or not all(isinstance(name, str) for name in p)]
    if odd or not pairs:
        found = f"the entry {odd[0]!r}" if odd else "no pair"
        raise InputError(
            f"layer_map holds {found}, wanted pairs of weight names (student, teacher)"
        )
    return pairs


def pair_up(
    plan: Plan, teacher: TeacherWeights, pairs: Iterable[tuple[str, str]]
) -> tuple[Pair, ...]:
    """A `Pair` for each entry of a layer map, in its order.

    Raises:
        InputError: The teacher has no such weight, or the student's is named twice.
    """
    entries = {name: e for e in plan.entries for name in (e.key, *e.aliases)}
    weights = weights_of(teacher)
    transposed = _transposed(teacher)
    made: dict[str, Pair] = {}
    for key, name in pairs:
        _require_known(name, weights, "teacher")
        entry = entries.get(key)
        label = key if entry is None else entry.key
        if label in made and made[label].teacher == name:
            continue  # A tied weight under another of its names.
        if label in made:
            raise InputError(
                f"layer_map gives {label!r} to {made[label].teacher!r} and to {name!r}, wanted one "
                "teacher weight for each student weight; remove one of the pairs"
            )
        shape = tuple(weights[name].shape)
        made[label] = _pair(label, name, entry, shape, transposed.get(name))
    return tuple(made.values())


def weights_of(teacher: TeacherWeights) -> dict[str, Tensor]:
    """The teacher's tensors by name, without their graph and without a copy."""
    if isinstance(teacher, nn.Module):
        named: Iterable[tuple[str, Tensor]] = bare(teacher).named_parameters(remove_duplicate=False)
    elif isinstance(teacher, Mapping):
        named = teacher.items()
    else:
        raise InputError(
            f"the teacher is of type {type(teacher).__name__}, wanted a module or its state_dict()"
        )
    return {name: tensor.detach() for name, tensor in named if isinstance(tensor, Tensor)}


def teacher_spec(spec: MpoSpec, shape: tuple[int, ...], *, transposed: bool) -> MpoSpec:
    """The student's modes for a matrix of another size: the central core takes up the difference.

    Raises:
        PlanError: The kernels differ, or the other modes do not divide the teacher's sizes.
    """
    if not alike(spec, shape):
        raise PlanError(f"its shape {list(spec.shape)} is {list(shape)} in the teacher")
    form = MatrixSpec(shape, spec.dtype, transposed, spec.row_axes)
    sizes = {"out": (form.rows, spec.out_modes), "in": (form.cols, spec.in_modes)}
    centre = spec.chain.central
    modes: dict[str, tuple[int, ...]] = {}
    for what, (size, own) in sizes.items():
        others = prod(own) // own[centre]
        if size % others:
            raise PlanError(
                f"its outer {what} modes multiply to {others}, which does not divide the "
                f"teacher's {size}"
            )
        modes[what] = (*own[:centre], size // others, *own[centre + 1 :])
    return MpoSpec.of(form, out_modes=modes["out"], in_modes=modes["in"])


def alike(spec: MpoSpec, shape: tuple[int, ...]) -> bool:
    """Whether both are matrices, both stacks of matrices, or both kernels of one size."""
    if len(shape) != len(spec.shape):
        return False
    return spec.row_axes == 2 or shape[2:] == spec.shape[2:]


def mpo_form(entry: PlanEntry) -> MpoSpec | None:
    """The chain of an entry, where its parametrization has one."""
    own = entry.spec if isinstance(entry.spec, MpoSpec) else getattr(entry.spec, "chain", None)
    if not isinstance(own, MpoSpec):
        return None
    shapes = tuple(entry.by.shapes(entry.spec))
    return own if shapes == own.chain.core_shapes else None


def compared_cores(student: MpoSpec, teacher: MpoSpec) -> tuple[int, ...]:
    """Places of auxiliary cores of equal shape, from each end inwards."""
    places = range(student.chain.cores)
    same = [
        s == t for s, t in zip(student.chain.core_shapes, teacher.chain.core_shapes, strict=True)
    ]
    left = [k for k in places if k < student.chain.central and all(same[: k + 1])]
    right = [k for k in places if k > student.chain.central and all(same[k:])]
    return (*left, *right)


def require_parameters(student: nn.Module, pairs: Iterable[Pair]) -> None:
    """Refuse a map that names a student's weight that is not there.

    Raises:
        InputError: It names one.
    """
    known = dict(student.named_parameters(remove_duplicate=False))
    for pair in pairs:
        _require_known(pair.key, known, "student")


def _require_known(name: str, known: Mapping[str, Tensor], whose: str) -> None:
    if name in known:
        return
    raise InputError(
        f"layer_map names the {whose}'s weight {name!r}, the {whose} has no such parameter"
        f"{did_you_mean(name, known)}; correct the map"
    )


def _pair(
    key: str,
    name: str,
    entry: PlanEntry | None,
    shape: tuple[int, ...],
    transposed: bool | None,
) -> Pair:
    if entry is None:
        return Pair(key, name, note="is not over-parameterised")
    spec = mpo_form(entry)
    if spec is None:
        return Pair(key, name, note=f"has no chain of cores ({entry.parametrization})")
    turned = spec.transposed if transposed is None else transposed
    try:
        other = teacher_spec(spec, shape, transposed=turned)
    except PlanError as error:
        return Pair(key, name, spec, None, shape, turned, note=str(error))
    compared = compared_cores(spec, other)
    note = "".join(_missing(spec, other, compared))
    return Pair(key, name, spec, other, shape, turned, compared, note)


def _missing(spec: MpoSpec, other: MpoSpec, compared: tuple[int, ...]) -> Iterator[str]:
    places = set(range(spec.chain.cores)) - {spec.chain.central, *compared}
    if places:
        which = ("core " if len(places) == 1 else "cores ") + ", ".join(map(str, sorted(places)))
        bonds = f"bonds {list(spec.chain.bonds)} and {list(other.chain.bonds)}"
        yield f"{which}: no counterpart of equal shape ({bonds})"


def _transposed(teacher: TeacherWeights) -> dict[str, bool]:
    """How the teacher stores its weights; nothing is known of a mapping's."""
    if not isinstance(teacher, nn.Module):
        return {}
    return {n: m.transposed for m in match(teacher).matches for n in (m.key, *m.aliases)}
