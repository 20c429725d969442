"""A bundle's README.md: the card that a model hub shows, with the verdict on what ships.

Three parts of it are ours: the key `opdf_compile` of its YAML head, and two stretches of text
between marks. An export and a verification write these anew. All else is the owner's, such as the
licence that was filled in, and stays; a file without our parts is left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opdf_compile.artefacts.bundle import STUDENT, read_manifest
from opdf_compile.artefacts.interface import Interface
from opdf_compile.errors import ArtefactError
from opdf_compile.files import atomic_write

CARD = "README.md"
_KEY = "opdf_compile"
_HEAD = re.compile(r"\A\ufeff?---\r?\n(?P<yaml>.*?^)---\s*$", re.DOTALL | re.MULTILINE)
# Its values are what is indented below it; empty lines between them are no end of it.
_OURS = re.compile(
    rf"^{_KEY}:[^\n]*\n(?:[ \t]+\S[^\n]*\n|(?:(?:#[^\n]*|[ \t\r]*)\n)+(?=[ \t]+\S))*", re.MULTILINE
)
_UNVERIFIED = "## Verdict\n\nNot verified yet."


@dataclass(frozen=True)
class CardFacts:
    """What an export knows of the model that ships.

    Attributes:
        title: The model's name.
        library: The library that loads the folder: "transformers", "timm" or "onnx".
        base_model: The hub's name of the model it was made from ("org/name"); empty if not known.
        interface: Inputs and outputs of the ONNX file.
        forms: How many weights were trained in which form, by its name; empty without a plan.
        digest: SHA-256 of the ONNX file.
        compared: Whether the bundle has a reference to be verified against.
    """

    title: str
    library: str
    base_model: str
    interface: Interface
    forms: Mapping[str, int]
    digest: str
    compared: bool


def card_of(facts: CardFacts, before: str | None = None) -> str:
    """The text of a card that was not verified yet.

    Args:
        facts: What ships.
        before: The card of the bundle that this one replaces, whose other text stays.
    """
    text = _new(facts) if before is None else before
    text = _between(text, "what ships", _ships(facts))
    text = _between(text, "verdict", _UNVERIFIED)
    return _with_key(text, {"student_sha256": facts.digest, "verdict": "not verified"})


def record_verdict(folder: Path, values: Mapping[str, object], text: str) -> None:
    """Write the verdict of a verification into the card of a bundle, where it has one of ours.

    Args:
        folder: The bundle.
        values: Plain values for the YAML head, with the hash of the file that was verified.
        text: The report as Markdown.

    Raises:
        ArtefactError: The card cannot be written.
    """
    before = kept_card(folder)
    if before is None:
        return
    after = _with_key(_between(before, "verdict", text.strip()), values)
    with atomic_write(folder / CARD) as temporary:
        temporary.write_bytes(as_bytes(after))


def kept_card(folder: Path) -> str | None:
    """The text of a bundle's card; None where it has none of its own.

    A file that came with the bundle, listed in its manifest, is no card of ours.
    """
    file = folder / CARD
    try:
        listed = read_manifest(folder)["files"]
    except ArtefactError:
        return None
    if CARD in listed or not file.is_file():
        return None
    # Whatever the owner wrote comes back byte for byte.
    return file.read_bytes().decode("utf-8", "surrogateescape")


def as_bytes(card: str) -> bytes:
    """A card's text as its file has it."""
    return card.encode("utf-8", "surrogateescape")


def _new(facts: CardFacts) -> str:
    base = json.dumps(facts.base_model) if facts.base_model else "# to fill in, if there is one"
    marks = ("\n".join(_marks(part)) for part in ("what ships", "verdict"))
    return "\n".join(
        [
            "---",
            f"library_name: {facts.library}",
            "license: # to fill in, such as apache-2.0",
            f"base_model: {base}",
            "tags:",
            "- onnx",
            "- opdf-compile",
            f"{_KEY}:",
            "---",
            "",
            f"# {_plain(facts.title)}",
            "",
            "To fill in: what this model is for, what it was trained on, and where it fails.",
            "",
            "\n\n".join(marks),
            "",
        ]
    )


def _ships(facts: CardFacts) -> str:
    inputs = "".join(
        f"    {_quoted(port.name)}: ...,  # {_quoted(str(port))[1:-1]}\n"
        for port in facts.interface.inputs
    )
    outputs = ", ".join(_quoted(port.name) for port in facts.interface.outputs)
    trained = ", ".join(f"{number} as `{form}`" for form, number in sorted(facts.forms.items()))
    told = f" In training, weights of it were over-parameterised ({trained})." if trained else ""
    asked = (
        " `opdf-compile verify .` compares its graph, numbers and speed with those of the student "
        "that was never touched."
        if facts.compared
        else " `opdf-compile verify . --only numerics` compares its numbers with the torch model's."
    )
    return (
        f"## What ships\n\n`{STUDENT}`, an ONNX file.{told}{asked}\n"
        "\n```python\nimport onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({json.dumps(STUDENT)})\n"
        f"inputs = {{\n{inputs}}}\n"
        f"outputs = session.run([{outputs}], inputs)\n```"
    )


def _quoted(text: str) -> str:
    """A string of Python, which can end neither the block of code nor our part of the card."""
    return json.dumps(text).replace("`", "\\x60").replace("<", "\\x3c")


def _plain(title: str) -> str:
    return re.sub(r"[^\w .-]+", " ", title).strip() or "student"


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- opdf-compile: {part} -->", f"<!-- opdf-compile: end of {part} -->"


def _between(text: str, part: str, inside: str) -> str:
    """The text with another inside between two marks; as it is without them."""
    first, last = _marks(part)
    end = text.find(last)
    # The nearest one before it: an owner may quote the mark above.
    start = text.rfind(first, 0, max(end, 0))
    if start < 0 or end < 0:
        return text
    return f"{text[: start + len(first)]}\n{inside}\n{text[end:]}"


def _with_key(text: str, values: Mapping[str, object]) -> str:
    """The text with our key of the YAML head set; as it is where the head has none."""
    head = _HEAD.match(text)
    if head is None or not _OURS.search(head["yaml"]):
        return text
    lines = "".join(f"  {name}: {json.dumps(value)}\n" for name, value in values.items())
    yaml = _OURS.sub(lambda _: f"{_KEY}:\n{lines}", head["yaml"], count=1)
    return text[: head.start("yaml")] + yaml + text[head.end("yaml") :]


def forms_of(plan: Mapping[str, object]) -> dict[str, int]:
    """How many weights and sites of a plan's JSON have which parametrization."""
    listed = [plan.get(kind) for kind in ("entries", "sites")]
    entries = [entry for found in listed if isinstance(found, list) for entry in found]
    names = [entry.get("parametrization") for entry in entries if isinstance(entry, Mapping)]
    return {name: names.count(name) for name in names if isinstance(name, str)}
