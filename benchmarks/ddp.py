"""What data-parallel training sends and holds: plain, inline, hoisted, and a shared-out program.

2 gloo processes on one machine for plain, inline and hoisted; 4 for the program that is shared out
over its ranks (`process_group=`). Bytes are counted, not timed: gradients by DDP's communication
hook, broadcasts at torch.distributed's own calls.

Traffic of a step = 2 x bytes that are all-reduced + bytes that are broadcast: a ring all-reduce is
a reduce-scatter and an all-gather, each of which moves the tensor once, and a broadcast moves it
once. The ratio is to the plain student's traffic; targets 1.00 replicated and 1.50 shared out, and
for the shared-out program cores and optimizer state of at most (1/4 + 10 %) per rank.

Usage: python benchmarks/ddp.py [--models bert,resnet,llama] [--cores N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import options as cli
from bench import students
from bench.reporting import Report, environment, number, row, table
from bench.traffic import run_rank

SCHEMA = "opdf-ddp/1"
SHARED = "shared out"
RANKS = {"plain": 2, "inline": 2, "hoisted": 2, SHARED: 4}
TRAFFIC_TARGETS = {"hoisted": 1.0, SHARED: 1.5}
# Of the replicated program's bytes, on the fullest of 4 ranks: a quarter and 10 %.
SHARE_TARGET = 1.1 / RANKS[SHARED]

Figures = dict[str, Any]


def run(model: str, name: str, options: argparse.Namespace) -> list[Figures]:
    """Start the processes of one form and return what each rank counted."""
    from torch.multiprocessing.spawn import spawn

    size = RANKS[name]
    with tempfile.TemporaryDirectory() as folder:
        words = (size, folder, model, options.cores, name, options.seed)
        spawn(run_rank, words, nprocs=size)  # type: ignore[no-untyped-call]
        return [
            json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(size)
        ]


def traffic(figures: Figures) -> int:
    """Bytes of one step, an all-reduce counted as its two halves."""
    reduced: int = figures["gradient_bytes"] + figures["other_bytes"]
    sent: int = figures["broadcast_bytes"]
    return 2 * reduced + sent


def rows_of(model: str, found: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    """The JSON rows of one model.

    Args:
        model: Its name.
        found: The ranks' figures by form; "plain" and "hoisted" are what others are compared to.
    """
    plain = traffic(found["plain"][0])
    replicated = found["hoisted"][0]["core_and_state_bytes"]
    return [_row(model, name, ranks, plain, replicated) for name, ranks in found.items()]


def _row(
    model: str, name: str, ranks: list[Figures], plain: int, replicated: int
) -> dict[str, Any]:
    ratio = max(traffic(figures) for figures in ranks) / plain
    fullest = max(figures["core_and_state_bytes"] for figures in ranks)
    share = fullest / replicated
    target = TRAFFIC_TARGETS.get(name)
    shared = name == SHARED
    fits = target is not None and ratio <= target and (not shared or share <= SHARE_TARGET)
    return row(
        model,
        "hoisted" if shared else name,
        accumulation=1,
        cores=None if name == "plain" else ranks[0]["cores"],
        ratio=ratio,
        # Bytes are counted, not sampled.
        low=ratio,
        high=ratio,
        floor=1.0,
        shared_out=shared,
        ranks=len(ranks),
        gradient_bytes=ranks[0]["gradient_bytes"],
        broadcast_bytes=ranks[0]["broadcast_bytes"],
        other_bytes=ranks[0]["other_bytes"],
        core_and_state_bytes=fullest,
        core_and_state_share=share,
        traffic_target=target,
        share_target=SHARE_TARGET if shared else None,
        met=None if target is None else fits,
    )


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people, in MiB."""
    columns = ("ranks", "all-reduced", "broadcast", "traffic", "target")
    held = ("cores+state per rank", "share", "target")
    made = table("Data parallel: MiB per step and per rank", "model", "form", *columns, *held)
    for r in rows:
        made.add_row(
            r["model"],
            SHARED if r["shared_out"] else r["form"],
            str(r["ranks"]),
            *(number(r[key] / 2**20, 2) for key in ("gradient_bytes", "broadcast_bytes")),
            number(r["ratio"]),
            number(r["traffic_target"], 2),
            number(r["core_and_state_bytes"] / 2**20, 1),
            number(r["core_and_state_share"]),
            number(r["share_target"]),
        )
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = cli.parser(
        "ddp.py",
        "Count what data-parallel training sends and holds.",
        models=students.DEFAULT,
        known=students.NAMES,
    )
    options = cli.parse(made, words)
    if options.device.type != "cpu":
        cli.fail("--device is cuda, but ddp.py counts bytes with gloo on the CPU; leave it out")
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    for model in options.models:
        found = {}
        with report.progress(model) as bar:
            for done, name in enumerate(RANKS):
                bar.callback(f"{name}, {RANKS[name]} processes", done / len(RANKS))
                found[name] = run(model, name, options)
        rows += rows_of(model, found)
        report.write(before, rows, partial=True)
    report.show(result_table(rows))
    report.write(before, rows)


if __name__ == "__main__":
    main()
