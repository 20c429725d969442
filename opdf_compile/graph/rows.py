"""The values that `match` returns, and how they read."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import prod
from typing import Any

from opdf_compile.graph.flops import STEP_FACTOR
from opdf_compile.tables import html_table, text_table

_HEAD = ("weight", "op", "shape", "parameters", "FLOPs")


@dataclass(frozen=True)
class Use:
    """One op that reads a weight as its weight operand.

    Attributes:
        phase: "train" or "eval".
        node: The op's name in the phase's graph.
        op: The operator, such as ``aten.linear.default``.
        flops: Forward floating-point operations at the example's size.
        through: What the weight goes through before the op reads it, such as ("batch_norm",);
            transposes, slices and casts are left out.
        passes: How often a training step runs the product: forward, to the weight, and towards
            the input, where anything before it is trained.
    """

    phase: str
    node: str
    op: str
    flops: int
    through: tuple[str, ...] = ()
    passes: int = STEP_FACTOR


@dataclass(frozen=True)
class Match:
    """One weight with all its uses.

    Attributes:
        key: The parameter's name in the student.
        shape: Its shape: (out, in) or (out, in/groups, *kernel).
        dtype: "float32" and the like.
        uses: The ops that read it, both phases.
        transposed: Whether it is stored (in, out), as addmm takes it.
        kernel: Elements of the convolution kernel, 1 for matrices.
        aliases: Other names of the same Parameter (tied weights).
        row_axes: How many leading axes are the rows of the matrix; the others are its columns. A
            stack (experts, out, in) is one matrix of experts * out rows.
        groups: Groups of the convolution that reads it; 1 of what is none, or where nothing tells.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    uses: tuple[Use, ...] = ()
    transposed: bool = False
    kernel: int = 1
    aliases: tuple[str, ...] = ()
    row_axes: int = 1
    groups: int = 1

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return prod(self.shape)

    @property
    def flops(self) -> int:
        """Forward FLOPs over all uses of one phase (the train graph where it reads the weight)."""
        return sum(use.flops for use in self._counted)

    @property
    def step_flops(self) -> int:
        """FLOPs of its own part of a training step, forward and backward."""
        return sum(use.flops * use.passes for use in self._counted)

    @property
    def _counted(self) -> list[Use]:
        phase = "train" if any(use.phase == "train" for use in self.uses) else "eval"
        return [use for use in self.uses if use.phase == phase]

    @property
    def op(self) -> str:
        """The operator of the first use, short: "linear", "conv2d"."""
        return self.uses[0].op.split(".")[1] if self.uses else "module"

    @property
    def through(self) -> tuple[str, ...]:
        """What the weight goes through before it is read, over all uses."""
        return tuple(dict.fromkeys(name for use in self.uses for name in use.through))

    @property
    def reading(self) -> str:
        """How the weight is read: "conv2d", or "conv2d of batch_norm"."""
        return f"{self.op} of {', '.join(self.through)}" if self.through else self.op


@dataclass(frozen=True)
class Refusal:
    """A weight left alone, with the reason as a sentence.

    Attributes:
        key: The parameter's name in the student.
        reason: Why; reads on from the key.
        shape: The weight's shape.
        offer: The match it would be, where a plan may include it all the same.
    """

    key: str
    reason: str
    shape: tuple[int, ...] = ()
    offer: Match | None = None


@dataclass(frozen=True)
class MatchReport:
    """All matches and refusals of a model; prints as a table.

    Attributes:
        matches: Weights that can be over-parameterised.
        refusals: Weights that are left alone, with reasons.
        notes: What the tracer had to give up, in sentences.
        rung: The rung of the tracer's ladder that held; "module" where no graph was looked at, or
            one phase has none.
        source: "graph", or "modules" where the rung is "module": uses and FLOPs are then those of
            the eval graph, if there is one.
    """

    matches: tuple[Match, ...]
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    rung: str = "module"
    source: str = "modules"

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, schema "opdf-match/1"."""
        return {
            "schema": "opdf-match/1",
            "rung": self.rung,
            "source": self.source,
            "matches": [
                {
                    "key": m.key,
                    "shape": list(m.shape),
                    "dtype": m.dtype,
                    "op": m.op,
                    "transposed": m.transposed,
                    "kernel": m.kernel,
                    "parameters": m.parameters,
                    "flops": m.flops,
                    "aliases": list(m.aliases),
                    "row_axes": m.row_axes,
                    "through": list(m.through),
                    "uses": [vars(use) | {"through": list(use.through)} for use in m.uses],
                }
                for m in self.matches
            ],
            "refusals": [
                {"key": r.key, "shape": list(r.shape), "reason": r.reason} for r in self.refusals
            ],
            "notes": list(self.notes),
        }

    @property
    def origin(self) -> str:
        """Where the matches come from, in words."""
        found = "modules" if self.source == "modules" else "the graph"
        return f"found from {found} (rung {self.rung})"

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Cells of the table: key, op, shape, parameters, FLOPs."""
        return [
            (m.key, m.reading, "x".join(map(str, m.shape)), f"{m.parameters:,}", f"{m.flops:,}")
            for m in self.matches
        ]

    def __str__(self) -> str:
        table = text_table([_HEAD, *self.rows()], right=(3, 4))
        refused = [f"{r.key} {r.reason}" for r in self.refusals]
        total = f"{len(self.matches)} matches, {len(self.refusals)} refusals"
        return "\n".join([table, total, *refused, self.origin, *self.notes])

    def _repr_html_(self) -> str:
        refused = "".join(
            f"<li><code>{escape(r.key)}</code> {escape(r.reason)}</li>" for r in self.refusals
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in (self.origin, *self.notes))
        return f"{html_table([_HEAD, *self.rows()])}<ul>{refused}</ul>{notes}"
