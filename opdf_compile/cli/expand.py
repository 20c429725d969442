"""`opdf-compile expand`: the over-parameterised model as a file that plain PyTorch can train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import size_of_file
from opdf_compile.cli.loading import ModelOptions, load_traced, rules_given, usual_cores
from opdf_compile.cli.terminal import opened
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    from opdf_compile.graph import Traced

NAME = "expand"
EXAMPLES = (
    "$ opdf-compile expand 'timm:resnet18?num_classes=10' -o expanded.pt2\n\n"
    "$ opdf-compile expand student.pt2 --plan plan.json -o cores.safetensors"
)
_SUFFIXES = (".pt2", ".safetensors")


def command(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="OUT.pt2 (programs that train without opdf-compile) or OUT.safetensors (weights).",
            show_default=False,
        ),
    ],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="plan.json", help="The plan; without it, the default one."),
    ] = None,
    rule: o.Rule = None,
    weights: o.Weights = None,
    input: o.Input = None,
    inputs: o.InputFile = None,
    size: o.Size = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Replace each planned weight by its cores, without changing what the model computes.

    OUT.pt2 holds two programs: "model", the training graph, and "eval". torch.export.load opens it
    and trains it where opdf-compile is not installed.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        require_suffix(out, _SUFFIXES)
        rules = rules_given(rule)
        if plan is not None and rules:
            raise InputError(
                f"--plan {plan} and --rule are given together, wanted one of them, as the plan "
                "says already what each weight becomes; remove --rule, or edit the plan"
            )
        asked = ModelOptions(model, weights, tuple(input or ()), inputs, size, trust_pickle)
        from opdf_compile.planning import Plan, Rules

        Rules.of(rules)  # What is not known is told before the model is traced.
        traced = load_traced(terminal, asked)
        from opdf_compile.io import save_expanded
        from opdf_compile.planning import plan as decide
        from opdf_compile.training import expand

        chosen = (
            Plan.load(plan)
            if plan
            else decide(traced, rules=rules, cores=None if rules else usual_cores(asked))
        )
        factorising = f"expanding {len(chosen.decisions)} weights"
        with terminal.busy(factorising) as say:
            expanded = expand(
                traced, chosen, progress=lambda _key, done, total: say(factorising, done / total)
            )
        with terminal.busy(f"writing {out}"):
            save_expanded(expanded, out)
        figures = {
            "weights": len(chosen.decisions),
            "deployed_parameters": deployed_parameters(traced),
            "training_parameters": sum(p.numel() for p in expanded.parameters()),
        }
        terminal.show(
            f"{figures['weights']} weights expanded: {figures['deployed_parameters']:,} parameters "
            f"became {figures['training_parameters']:,}",
            f"Wrote {out} ({size_of_file(out.stat().st_size)})",
        )
        terminal.result({"schema": "opdf-expand/1", "model": model, "out": str(out)} | figures)


def deployed_parameters(traced: Traced) -> int:
    """Parameters of the model as it came, each shared one counted once."""
    graphs = traced.graphs.values()
    sizes = {id(p): p.numel() for graph in graphs for p in graph.parameters()}
    return sum(sizes.values())


def require_suffix(out: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses an output whose name does not say its format.

    Raises:
        InputError: The suffix is none of `suffixes`.
    """
    if out.suffix not in suffixes:
        raise InputError(
            f"-o {out} has the suffix {out.suffix!r}; wanted {' or '.join(suffixes)}, which names "
            "the format"
        )
