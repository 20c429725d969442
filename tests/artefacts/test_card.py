"""A bundle's card: its head is YAML, its owner's words stay, the verdict is that of what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts import CARD, changed_files, is_bundle, record_verdict
from opdf_compile.artefacts.card import CardFacts, card_of
from opdf_compile.artefacts.interface import Interface, Port
from opdf_compile.files.atomic import sha256
from opdf_compile.io import build_export, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    student, args = nn.Linear(16, 16), (torch.rand(2, 16),)
    plan = opdf.plan(opdf.trace(student, args), rules={"*": "gains"}).to_json()
    untouched = nn.Linear(16, 16)
    made = opdf.export_onnx(student, args, tmp_path / "own", reference=untouched, plan=plan)
    return Path(made)


def head(folder: Path) -> dict[str, Any]:
    text = (folder / CARD).read_text(encoding="utf-8")
    assert text.startswith("---\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def body(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)[2]


def test_a_new_card_names_what_ships_and_leaves_the_licence_to_its_owner(bundle: Path) -> None:
    told = head(bundle)
    assert told["library_name"] == "onnx" and "license" in told and told["license"] is None
    assert told["base_model"] is None and told["tags"] == ["onnx", "opdf-compile"]
    digest = sha256(bundle / "student.onnx")
    assert told["opdf_compile"] == {"student_sha256": digest, "verdict": "not verified"}
    text = body(bundle)
    assert text.startswith("\n# own\n") and "(1 as `gains`)" in text
    assert '"input": ...,  # (batch_size, 16) of float32' in text
    assert "Not verified yet." in text
    assert changed_files(bundle) == () and is_bundle(bundle)


def test_the_code_of_a_card_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    code = body(bundle).split("```python\n")[1].split("```")[0]
    code = code.replace("...", "numpy.ones((3, 16), numpy.float32)")
    names: dict[str, Any] = {"numpy": __import__("numpy")}
    exec(code, names)  # The card's own code, of a bundle made here.
    assert names["outputs"][0].shape == (3, 16)


def test_a_verdict_is_written_and_the_owners_words_stay(bundle: Path) -> None:
    file = bundle / CARD
    mine = file.read_text(encoding="utf-8").replace("license: # to fill in", "license: mit # mine,")
    file.write_text(mine.replace("To fill in: what", "It sorts apples; what") + "The end.\n")
    report = opdf.verify(bundle, only="structure,numerics")
    report.save_in_bundle(bundle)
    told = head(bundle)
    assert told["license"] == "mit" and told["tags"] == ["onnx", "opdf-compile"]
    own = told["opdf_compile"]
    assert own["verdict"] == "pass" and own["latency"] == "not_asked"
    assert own["student_sha256"] == sha256(bundle / "student.onnx")
    assert own["latency_interval"] == [None, None] and own["runtime"].startswith("onnxruntime ")
    text = body(bundle)
    assert "It sorts apples" in text and text.endswith("The end.\n")
    assert "Parity: pass" in text and "Not verified yet" not in text
    assert changed_files(bundle) == () and is_bundle(bundle)
    report.save_in_bundle(bundle)
    assert body(bundle).count("Parity: pass") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("---\nlibrary", "\ufeff---\nlibrary"),
        ('  verdict: "not verified"\n', '\n  verdict: "not verified"\n\n'),
        ('  verdict: "not verified"\n', '# by hand\n  \n  verdict:\n  - "not verified"\n'),
        ("opdf_compile:\n", "metrics:\n- accuracy\n\nopdf_compile:\n"),
    ],
    ids=["byte order mark", "empty lines", "comment and list", "a list above"],
)
def test_a_head_that_an_editor_wrote_anew_is_read(old: str, new: str) -> None:
    port = Port("x", "float32", (2,))
    before = card_of(
        CardFacts("m", "onnx", "", Interface((port,), (port,), "float32"), {}, "0" * 64, False)
    )
    assert before.count(old) == 1

    after = card_of(
        CardFacts("m", "onnx", "", Interface((port,), (port,), "float32"), {}, "1" * 64, False),
        before.replace(old, new),
    )

    wanted = yaml.safe_load(before.replace(old, new).removeprefix("\ufeff").split("---\n")[1])
    wanted["opdf_compile"] = {"student_sha256": "1" * 64, "verdict": "not verified"}
    assert yaml.safe_load(after.removeprefix("\ufeff").split("---\n")[1]) == wanted
    assert after.startswith("\ufeff") == new.startswith("\ufeff")


def test_a_file_of_somebody_else_in_the_bundle_keeps_no_verdict_from_the_card(bundle: Path) -> None:
    """Every clone of a model hub has one."""
    (bundle / ".gitattributes").write_text("*.onnx filter=lfs\n", encoding="utf-8")
    assert not is_bundle(bundle)
    opdf.verify(bundle, only="structure,numerics").save_in_bundle(bundle)
    assert head(bundle)["opdf_compile"]["verdict"] == "pass"
    assert "Parity: pass" in body(bundle)


def test_a_mark_that_the_owner_quotes_is_the_owners(bundle: Path) -> None:
    file = bundle / CARD
    text = file.read_text(encoding="utf-8")
    quoted = "<!-- opdf-compile: verdict --> stands above the verdict.\n\nMy words.\n\n"
    file.write_text(
        text.replace("<!-- opdf-compile: verdict -->", f"{quoted}<!-- opdf-compile: verdict -->")
    )
    opdf.verify(bundle, only="structure,numerics").save_in_bundle(bundle)
    assert quoted in body(bundle) and "Parity: pass" in body(bundle)


def test_a_refuted_file_is_called_so(bundle: Path) -> None:
    report = opdf.verify(bundle, only="structure,numerics")
    wrong = opdf.export_onnx(
        nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
        (torch.rand(2, 16),),
        bundle.parent / "wrong.onnx",
    )
    (bundle / "student.onnx").write_bytes(Path(wrong).read_bytes())
    (bundle / "student.check.npz").write_bytes(Path(wrong).with_suffix(".check.npz").read_bytes())
    report.save_in_bundle(bundle)
    assert head(bundle)["opdf_compile"]["verdict"] == "pass"
    opdf.verify(bundle, only="structure").save_in_bundle(bundle)
    assert head(bundle)["opdf_compile"]["verdict"] == "fail"
    assert head(bundle)["opdf_compile"]["student_sha256"] == sha256(bundle / "student.onnx")


def test_a_new_export_keeps_the_owners_words_and_takes_the_verdict_back(bundle: Path) -> None:
    opdf.verify(bundle, only="structure,numerics").save_in_bundle(bundle)
    file = bundle / CARD
    file.write_text(file.read_text(encoding="utf-8").replace("# own", "# Apples"))
    opdf.export_onnx(nn.Linear(5, 2), (torch.rand(2, 5),), bundle)
    own = head(bundle)["opdf_compile"]
    digest = sha256(bundle / "student.onnx")
    assert own == {"student_sha256": digest, "verdict": "not verified"}
    text = body(bundle)
    assert "# Apples" in text and "(batch_size, 5) of float32" in text
    assert "Not verified yet." in text and "gains" not in text and "Parity" not in text


def test_a_bundle_that_is_written_aside_keeps_the_words_of_its_place(bundle: Path) -> None:
    (bundle / CARD).write_bytes(b"# Mine\n")
    export = build_export(nn.Linear(5, 2), (torch.rand(2, 5),))
    aside = bundle.parent / ".aside"
    write_bundle(aside, export, becomes=bundle)
    assert (aside / CARD).read_bytes() == b"# Mine\n"
    write_bundle(aside, export, becomes=bundle.parent / "apples")
    assert body(aside).startswith("\n# apples\n")


@pytest.mark.parametrize(
    "text",
    [b"", b"# Mine\r\n", b"---\nlicense: mit\n---\n# Mine\n", b"---\nopdf_compile:\n", b"\xff\xfe"],
)
def test_a_card_without_our_parts_is_left_alone(bundle: Path, text: bytes) -> None:
    (bundle / CARD).write_bytes(text)
    record_verdict(bundle, {"verdict": "pass"}, "## Verdict")
    assert (bundle / CARD).read_bytes() == text
    opdf.export_onnx(nn.Linear(5, 2), (torch.rand(2, 5),), bundle)
    assert (bundle / CARD).read_bytes() == text


def test_a_card_that_came_with_the_bundle_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / CARD
    mine.write_text("# Mine\n")
    args = (torch.rand(2, 4),)
    made = Path(opdf.export_onnx(nn.Linear(4, 4), args, tmp_path / "out", extra_files=[mine]))
    opdf.verify(made, only="numerics").save_in_bundle(made)
    assert (made / CARD).read_text() == "# Mine\n" and changed_files(made) == ()


def test_names_of_a_file_cannot_leave_their_place() -> None:
    hostile = 'x"]\n```\n<!-- opdf-compile: end of what ships -->\n---\n'
    port = Port(hostile, "float32", (hostile,))
    facts = CardFacts(
        f"a\n---\nlicense: mit {hostile}",
        "onnx",
        "",
        Interface((port,), (port,), "float32"),
        {},
        "0" * 64,
        compared=False,
    )
    text = card_of(facts)
    assert yaml.safe_load(text.split("---\n")[1])["license"] is None
    assert text.count("```") == 2 and text.count("<!-- opdf-compile: end of what ships -->") == 1
    assert card_of(facts, text) == text
