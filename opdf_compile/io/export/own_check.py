"""Check data of a traced model without a file, to compare two forms of one function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from opdf_compile.artefacts import CheckData
from opdf_compile.graph import Traced
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.export.student_export import most_numbers
from opdf_compile.io.export.translate import tensor_outputs


@dataclass(frozen=True, eq=False)
class Original:
    """A model as it was, which judges another form of it and speaks for it in a file.

    Attributes:
        traced: It has an eval program and example inputs.
    """

    traced: Traced

    @cached_property
    def check(self) -> CheckData:
        """Samples, their truth in float64, and the model's own error; computed once."""
        traced, program = self.traced, self.traced.programs["eval"]
        return gather_check_data(
            program,
            (traced.args, traced.kwargs),
            axis_names={name: traced.axis_names.get(name, {}) for name in traced.input_names},
            output_names=tensor_outputs(program, traced.output_names),
            dtype=dtype_name(most_numbers(program.state_dict.values())),
        )
