"""The noise floor of an output, and how far above it a correct export may be.

    e = runtime output - truth         t = torch output (exported dtype) - truth, kept at export
    floor     = max(|t|, u |truth|, s, f, r)      in the maximum norm and in the RMS norm
    tolerance = A exp(z / sqrt(n)) floor          e must stay within it in both norms, per output

u is the unit roundoff of the exported dtype and s half its smallest number: no output can be
rounded better. f is how far the truth moves when functions that runtimes compute to an absolute
accuracy only (a sigmoid) are off by one unit in the last place of their range, see
`io.evidence.function_noise`.

r is the reference's runtime error against its own truth, on the device of the check, brought to the
candidate's scale. It knows what torch on a CPU cannot: on CUDA the algorithm search may choose
Winograd convolutions, whose transforms amplify rounding several times, and the untouched student
with the same graph shows by how much. r is capped at A times the rest of the floor, so that a wrong
reference cannot excuse a wrong candidate.

Where the factors come from. e and t sum the same roundings in another order. A sum over k terms has
a random rounding error of sqrt(k) u when it is added in sequence and less when it is added in
blocks; A = 4 allows chains that are A^2 = 16 times longer in one library than in the other, the
ratio of a plain loop to a kernel that sums in 16 lanes. Even with equal variances the ratio of two
measured RMS errors scatters: of n independent rows its logarithm has the standard deviation
1 / sqrt(n) (that of half the logarithm of an F(n, n) variable). Elements of one row share their
history, so n counts rows, not elements; export draws at least 16 where the file stays small. There
the normal law for the logarithm is within 18 % of the F law; for fewer rows the F law has longer
tails, from a t that is small by luck, which u |truth| cuts off. z = 4.75 leaves a correct export
one chance in a million.

In float16 and bfloat16 a reference of the same dtype tells more. The ratio of runtime error to
torch's error is a property of the graph and its kernels; weights change both alike. So

    budget = B exp(z sqrt(1/n + 1/m)) (e'/t') t,    at least exp(z / sqrt(n)) u |truth|

in the RMS norm, e' and t' the reference's errors on m rows, is a second bound. B = 2 = sqrt(A)
allows half, in the logarithm, of what two libraries may differ by, because the kernels are the same
and only the share that final roundings have moves with the weights. A runtime that computes halves
in float32 has e'/t' well below 1, and the budget is then tighter than the tolerance.

Integers and booleans have no roundoff: they must be exact unless torch itself differs from the
truth, as where two scores of an argmax tie in the exported dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opdf_compile.artefacts import Sample
from opdf_compile.parity.numerics.mismatch import Array

ORDER_FACTOR = 4.0
TRANSFER_FACTOR = 2.0
DEVIATIONS = 4.75
# 2^-24, 2^-11 and 2^-8: half the distance from 1 to the next number. The truth of a float64 export
# is no more exact than the export, so torch's recorded error is none and measures nothing; a
# thousand roundings in one direction is far above what models show and far below any fault.
ROUNDOFF = {
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float64": 1024 * 2.0**-53,
}
# Half the smallest positive number: what rounding costs where numbers get no smaller.
SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150, "float64": 0.0}
HALF_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Peer:
    """The reference's errors on one output.

    Attributes:
        max_rel: Largest error over the scale.
        rms_rel: RMS error over the scale.
        amplification: RMS error over what torch's own arithmetic explains.
        rows: Independent rows.
        dtype: The floating dtype it was exported in.
    """

    max_rel: float
    rms_rel: float
    amplification: float
    rows: int
    dtype: str


@dataclass(frozen=True)
class Floor:
    """The floor without the reference, in both norms, and the rounding of the output alone."""

    largest: float
    rms: float
    rounding_rms: float


def own_floor(samples: Sequence[Sample], name: str, truths: Sequence[Array], dtype: str) -> Floor:
    """The part of an output's noise floor that its check data alone gives."""
    sizes = [truth.size for truth in truths]
    real = truths[0].dtype.kind == "f"
    unit = ROUNDOFF.get(dtype, ROUNDOFF["float32"]) if real else 0.0
    least = SMALLEST.get(dtype, 0.0) if real else 0.0
    rounding = max(unit * pool([root_mean_square(truth) for truth in truths], sizes), least)
    moved = [sample.function.get(name, (0.0, 0.0)) for sample in samples]
    return Floor(
        largest=max(
            *(sample.error[name] for sample in samples),
            *(pair[0] for pair in moved),
            unit * scale_of(truths),
            least,
        ),
        rms=max(
            pool([sample.rms[name] for sample in samples], sizes),
            pool([pair[1] for pair in moved], sizes),
            rounding,
        ),
        rounding_rms=rounding,
    )


def factor(rows: int) -> float:
    """Tolerance over floor with this many independent rows."""
    return ORDER_FACTOR * math.exp(DEVIATIONS / math.sqrt(max(rows, 1)))


def budget(own: Floor, peer: Peer, rows: int) -> float:
    """What the RMS error may be, judged by the reference in the same dtype."""
    both = math.sqrt(1 / max(rows, 1) + 1 / max(peer.rows, 1))
    transferred = TRANSFER_FACTOR * math.exp(DEVIATIONS * both) * peer.amplification * own.rms
    rounded = math.exp(DEVIATIONS / math.sqrt(max(rows, 1))) * own.rounding_rms
    return max(transferred, rounded)


def root_mean_square(values: Array) -> float:
    """The RMS of the finite elements."""
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite.astype(np.float64))))) if finite.size else 0.0


def pool(roots: Sequence[float], sizes: Sequence[int]) -> float:
    """The RMS of all samples together from the RMS of each."""
    total = sum(sizes)
    squares = sum(size * root**2 for root, size in zip(roots, sizes, strict=True))
    return math.sqrt(squares / total) if total else 0.0


def scale_of(truths: Sequence[Array]) -> float:
    """The largest finite absolute value."""
    finite = [np.abs(t[np.isfinite(t)].astype(np.float64)) for t in truths]
    return max((float(t.max(initial=0.0)) for t in finite), default=0.0)
