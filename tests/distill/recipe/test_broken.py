"""Every mistake in a recipe is one sentence with its line and its remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from broken_recipes import GOOD, LOADED, WRITTEN, Broken

from opdf_compile.cli import main
from opdf_compile.distill.recipe import parse_recipe, prepare, read_recipe
from opdf_compile.errors import RecipeError


def require_sentence(message: str, broken: Broken) -> None:
    """One sentence with file, line, and all that it must say."""
    place, _, sentence = message.partition(": ")
    assert place == f"recipe.toml:{broken.line}"
    assert "\n" not in message
    assert [part for part in broken.says if part not in sentence] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_a_mistake_in_the_file(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(WRITTEN[name].text)
    require_sentence(str(caught.value), WRITTEN[name])


@pytest.mark.parametrize("name", LOADED)
def test_a_mistake_that_loading_shows(name: str, tmp_path: Path) -> None:
    recipe = parse_recipe(LOADED[name].text)
    with pytest.raises(RecipeError) as caught:
        job = prepare(recipe, base=tmp_path)
        job.plan(job.make_student(0))
    require_sentence(str(caught.value), LOADED[name])


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    job = prepare(parse_recipe(GOOD), base=tmp_path)
    plan = job.plan(job.make_student(0))
    assert plan is not None
    assert len(plan.entries) == 4


def test_the_check_of_a_sentence_can_fail() -> None:
    broken = WRITTEN["too small"]
    good = "recipe.toml:32: epochs is 0, wanted 1 or more; write epochs = 30"
    require_sentence(good, broken)
    changes: tuple[Callable[[str], str], ...] = (
        lambda text: text.replace(":32", ":31"),
        lambda text: text.replace("write", "try"),
        lambda text: f"{text}\nand more",
        lambda text: text.replace("recipe.toml:32: ", ""),
    )
    for change in changes:
        with pytest.raises(AssertionError):
            require_sentence(change(good), broken)


def test_the_command_prints_it_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(WRITTEN["misspelt key"].text, encoding="utf-8")
    assert main(["distill", "recipe.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("opdf-compile: ")
    require_sentence(err.removeprefix("opdf-compile: ").strip(), WRITTEN["misspelt key"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml"]


def test_windows_lines_count_as_one(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(WRITTEN["too small"].text.replace("\n", "\r\n").encode("utf-8-sig"))
    with pytest.raises(RecipeError, match=r"recipe\.toml:32: epochs"):
        read_recipe(file)
