"""The ruling in sentences, as lines to paste, as JSON and as a figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_ruling import ruling, standing

from opdf_compile.distill.advise.contest.figure import draw_ruling, plot_ruling
from opdf_compile.distill.advise.contest.ruling import Basis, Rounded, Ruling
from opdf_compile.distill.advise.contest.values import ruling_json, ruling_lines
from opdf_compile.distill.advise.contest.wording import ruling_words
from opdf_compile.distill.recipe import parse_recipe

PLAIN = [0.80, 0.81, 0.79, 0.80, 0.82, 0.78, 0.80, 0.81]
LIKE = [0.81, 0.80, 0.80, 0.79, 0.83, 0.77, 0.81, 0.80]
BETTER = [0.84, 0.86, 0.83, 0.85, 0.86, 0.83, 0.84, 0.85]
BOTH: dict[Basis, list[float]] = {"steps": PLAIN, "time": PLAIN}
RULINGS = {
    "use": ruling(PLAIN, LIKE, standing("gains", BETTER, BOTH), standing("b", LIKE, BOTH)),
    "more-steps": ruling(PLAIN, BETTER, standing("gains", LIKE, BOTH)),
    "do-not-use": ruling(BETTER, BETTER, standing("gains", PLAIN, {"steps": BETTER})),
    "no-difference": ruling(PLAIN, LIKE, standing("gains", [*LIKE[:7], 0.82], BOTH)),
    "diverged": ruling(PLAIN, LIKE, standing("gains", [*BETTER[:7], None], BOTH)),
    "all diverged": ruling(PLAIN, LIKE, standing("gains", [None] * 8, BOTH)),
}
HEAD = """\
[student]
model = "a:b"
[data]
source = "digits"
[[loss]]
kind = "task"
"""


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "use",
            (
                "Use gains at lr 2e-05, weight decay 0.01: at equal time gains is 0.0437 better",
                "corrected for 4 comparisons); 0.0437 better at equal steps (95 % interval",
                "More steps are not shown to help: 2 times as many make the plain student",
            ),
        ),
        (
            "more-steps",
            (
                "More steps first: with 2 times as many (100 for 100) the plain student is 0.0437",
                "gains is 0 better at equal steps (95 % interval",
                "not shown) and 0 better at equal time",
            ),
        ),
        ("do-not-use", ("Stay with the plain student at lr 2e-05", "raced against is worse; at")),
        ("no-difference", ("nothing is shown to be better. The best of them: at", "--pairs ")),
        ("diverged", ("wins 7 and loses 1 of 8 seeds", "(sign test, p = 0.14, corrected for 2")),
        ("all diverged", ("wins 0 and loses 8 of 8 seeds",)),
    ],
)
def test_sentences_hold_what_decides(name: str, parts: tuple[str, ...]) -> None:
    text = ruling_words(RULINGS[name])
    for part in parts:
        assert part in text, text


def test_undecided_names_who_was_not_tuned_and_gives_no_lines() -> None:
    found = RULINGS["use"]
    edge = replace(found, plain=replace(found.plain, at_edge=True))
    assert "best setting found for the plain student lies at the edge" in ruling_words(edge)
    assert "--budget 240" in ruling_words(edge)
    assert ruling_lines(edge) == ""


def test_int8_is_said_beside_the_advice() -> None:
    found = RULINGS["use"]
    first = replace(found.contenders[0], int8=Rounded((0.9, 0.9), (0.5, 0.6)))
    rounded = replace(
        found,
        contenders=(first, found.contenders[1]),
        plain_int8=Rounded((0.8, 0.8), (0.8, 0.79)),
    )
    said = "After int8 gains loses 0.35 and the plain student 0.005, over 2 seeds."
    assert said in ruling_words(rounded)
    assert said not in ruling_words(found)
    assert ruling_json(rounded)["contenders"][0]["int8"]["drop"] == pytest.approx(0.35)


def test_lines_make_a_recipe() -> None:
    found = RULINGS["use"]
    section = {"name": "MuonAdamW", "lr": 1.0, "no_decay": ["*.bias"]}
    first = found.contenders[0]
    lines = {"enabled": True, "parametrization": "gains", "include": ["a.*"]}
    first = replace(first, times=1.5, optimizer=section, side=replace(first.side, lines=lines))
    pasted = ruling_lines(replace(found, contenders=(first, found.contenders[1])))
    read = parse_recipe(f"{HEAD}{pasted}\n")
    assert (read.optimizer.name, read.optimizer.lr) == ("MuonAdamW", 2e-5)
    assert (read.optimizer.weight_decay, read.optimizer.no_decay) == (0.01, ["*.bias"])
    assert (read.plan.parametrization, read.plan.include) == ("gains", ["a.*"])
    assert read.training.steps == 150


@pytest.mark.parametrize(("name", "steps"), [("more-steps", 200), ("no-difference", None)])
def test_lines_of_the_plain_student(name: str, steps: int | None) -> None:
    pasted = ruling_lines(RULINGS[name])
    assert ("steps = 200" in pasted) == (steps is not None)
    rest = "" if steps else "[training]\nsteps = 100\n"
    read = parse_recipe(f"{HEAD}{pasted}\n{rest}")
    assert not read.plan.enabled
    assert read.training.steps == (steps or 100)


@pytest.mark.parametrize("name", RULINGS)
def test_json_has_what_a_race_of_two_has_and_more(name: str) -> None:
    found: Ruling = RULINGS[name]
    payload = json.loads(json.dumps(ruling_json(found), allow_nan=False))
    assert payload["schema"] == "opdf-advise/1"
    assert payload["verdict"] == found.verdict
    assert payload["recommendation"] == ruling_words(found)
    assert payload["over_parameterised"]["method"] == "gains"
    assert payload["equal"] == list(found.bases)
    assert payload["regime"]["improves_with_steps"] == (name == "more-steps")
    for told, contender in zip(payload["contenders"], found.contenders, strict=True):
        for basis in found.bases:
            bout = told[f"equal_{basis}"]
            assert bout["p_corrected"] == found.corrected[contender.name, basis]
            assert bout["wins"] + bout["losses"] <= 8


@pytest.mark.parametrize("name", RULINGS)
def test_the_figure_has_a_row_for_every_duel(name: str, tmp_path: Path) -> None:
    found = RULINGS[name]
    (axes,) = draw_ruling(found).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    rows = len(found.contenders) * len(found.bases) + len(found.longer)
    assert len(labels) == len(set(labels)) == rows
    assert labels[-1] == "plain@2x, more steps"
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    bouts = [s.bouts[b] for s in found.contenders for b in reversed(found.bases)]
    bouts += [s.bouts["steps"] for s in found.longer]
    assert means == [one.mean for b in bouts if (one := b.duel.comparison) is not None]
    plot_ruling(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
