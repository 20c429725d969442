"""Whether a folded program is still the function that it was, on samples, in float64.

The truth is the unfolded program in float64. The folded one is computed in float64 too, so that
what is left between them is the rounding of its new weights: of one unit in the last place each,
like every weight's. It is judged as verify judges a file (`parity.numerics.floors`): the unfolded
program's own error in its dtype, times a factor that is derived there. A branch that was forgotten
is far outside of it, unless it is smaller than what rounding does to the model anyway.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from opdf_compile.errors import FoldError, error_line
from opdf_compile.graph import Traced
from opdf_compile.io import Original, Truth, example_with
from opdf_compile.parity import judge_output


def require_same_function(folded: Traced, original: Original, how: str) -> None:
    """Refuse a fold that computes something else.

    Args:
        folded: The folded model, with the inputs of the other one.
        original: The model as it was.
        how: What folded it, for the sentence.

    Raises:
        FoldError: The folded model does not run, an output differs by more than rounding explains,
            or none can be judged.
    """
    unfolded = original.traced
    _require_run(folded, unfolded, how)
    # Both sides are float64, whatever the model returns.
    data = replace(original.check, output_dtypes={})
    run = Truth(folded.programs["eval"])
    outputs = [run(*example_with(unfolded, sample.inputs)) for sample in data.samples]
    if any(len(found) != len(data.output_names) for found in outputs):
        raise FoldError(
            f"{how} changed the number of outputs from {len(data.output_names)} to "
            f"{len(outputs[0])}, wanted the same function; fold it another way (--by)"
        )
    judged = [
        judge_output(name, data, [found[place].cpu().numpy() for found in outputs])
        for place, name in enumerate(data.output_names)
    ]
    wrong = [error for error in judged if error.excess > 1]
    if wrong:
        raise FoldError(
            f"{how} changed the function ({wrong[0]}), wanted the outputs of the unfolded model; "
            "fold it another way (--by graph, --by method)"
        )
    if all(error.unjudged for error in judged):
        raise FoldError(
            f"{how} cannot be checked ({judged[0].unjudged}), wanted an output that shows whether "
            "the function is the same"
        )


def _require_run(folded: Traced, unfolded: Traced, how: str) -> None:
    """Run the folded model in its own dtype: in float64 a layer of a wrong dtype goes unnoticed."""
    program = folded.programs["eval"].module(check_guards=False)
    try:
        with torch.no_grad():
            program(*unfolded.args, **unfolded.kwargs)
    except Exception as error:  # The graph's own operations raise whatever they like.
        raise does_not_run(how, error) from error


def does_not_run(how: str, error: Exception) -> FoldError:
    """What to say of a folded model that raises."""
    return FoldError(
        f"{how} left a model that does not run ({error_line(error)}), wanted one that takes the "
        "same inputs; fold it another way (--by graph, --by method), or use it as it is"
    )
