"""Check data for a file that another tool converted to half precision after its export.

The samples are given in the dtypes of the file's inputs. The noise floor is that of the export,
times the ratio of the unit roundoffs: to first order the forward error of a computation is linear
in u. What that leaves out (sums that are kept in float32, values that a conversion spares) is the
same for the reference that was converted alike, whose error against its own truth then gives the
budget, as for files that were exported in half precision (`floors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from opdf_compile.artefacts import CheckData, Interface, Sample, as_floats
from opdf_compile.parity.numerics.floors import HALF_DTYPES, ROUNDOFF


def is_converted(data: CheckData, face: Interface) -> bool:
    """Whether a file's weights are halves now, and the check data was written for wider ones."""
    return face.dtype in HALF_DTYPES and data.dtype in ("float32", "float64")


def as_converted(data: CheckData, face: Interface) -> CheckData:
    """The check data as the converted file wants it; names and truth stay."""
    ratio = ROUNDOFF[face.dtype] / ROUNDOFF[data.dtype]
    inputs = {port.name: port.dtype for port in face.inputs}
    outputs = {port.name: port.dtype for port in face.outputs}
    floats = {
        name: outputs.get(name, dtype) if "float" in dtype else dtype
        for name, dtype in data.output_dtypes.items()
    }
    samples = tuple(_sample(sample, inputs, ratio) for sample in data.samples)
    return replace(data, dtype=face.dtype, output_dtypes=floats, samples=samples)


def _sample(sample: Sample, dtypes: Mapping[str, str], ratio: float) -> Sample:
    return replace(
        sample,
        inputs={n: as_floats(a, dtypes.get(n, "")) for n, a in sample.inputs.items()},
        error={name: ratio * error for name, error in sample.error.items()},
        rms={name: ratio * error for name, error in sample.rms.items()},
        function={n: (ratio * a, ratio * b) for n, (a, b) in sample.function.items()},
    )
