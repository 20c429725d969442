"""The reference in the docs, the template and the examples follow the schema."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from recipe_reference import recipe_reference

from opdf_compile.cli import main
from opdf_compile.distill.recipe import parse_recipe, read_recipe
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.template import digits_recipe
from opdf_compile.distill.recipe.wording import section_names, sections

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))


def test_the_page_holds_the_reference_of_the_schema() -> None:
    page = (ROOT / "docs" / "distill.md").read_text(encoding="utf-8")
    held = page.partition("<!-- reference -->\n")[2].partition("<!-- end of reference -->")[0]
    assert held == recipe_reference(), "write recipe_reference() of tests/support into it"


def test_the_reference_names_every_key_of_every_section() -> None:
    text = recipe_reference()
    for title, keys in sections().items():
        for key in keys.values():
            assert f"`{key.name}`" in text or key.name == "kind", (title, key.name)
            assert key.description or key.name == "kind", (title, key.name)
    assert set(section_names()) == set(Recipe.model_fields)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_the_examples_are_recipes(file: Path) -> None:
    assert read_recipe(file).training.seed == 0


def test_the_template_is_a_recipe_with_and_without_its_comments() -> None:
    plain = parse_recipe(digits_recipe())
    assert plain.plan.parametrization == "md"
    commented = re.findall(r"^# (\w+) = ", digits_recipe(), re.MULTILINE)
    known = {name for keys in sections().values() for name in keys}
    assert set(commented) - known == {"betas"}
    assert (ROOT / "examples" / "recipes" / "digits.toml").read_text() == digits_recipe()


def test_every_example_in_the_schema_is_accepted_by_toml() -> None:
    for keys in sections().values():
        for key in keys.values():
            for text in filter(None, (key.example, key.default)):
                tomllib.loads(f"{key.name} = {text}")


def test_init_writes_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "--init", "mine.toml"]) == 0
    assert Path("mine.toml").read_text(encoding="utf-8") == digits_recipe()
    Path("mine.toml").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert main(["distill", "--init", "mine.toml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("mine.toml").read_text(encoding="utf-8") == "mine"
