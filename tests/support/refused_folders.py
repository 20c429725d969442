"""Refused folders: shards and their index, and models for `hf:`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard_case import Build, Case, copied, named, peek
from refused_files import CONFIGURATIONS

INDEX = "model.safetensors.index.json"


def shards(change: Callable[[Path], object]) -> Build:
    """The unharmed shards, changed, beside the unharmed program."""

    def build(good: Path, here: Path) -> None:
        copied("model.pt2")(good, here)
        shutil.copytree(good / "shards", here / "shards")
        # What a name could lead to is really there, and would load.
        shutil.copy(good / "shards" / "part-0.safetensors", here / "elsewhere.safetensors")
        change(here / "shards")

    return build


def index(change: Callable[[Any], object]) -> Build:
    def edit(folder: Path) -> None:
        value = json.loads((folder / INDEX).read_text())
        change(value)
        (folder / INDEX).write_text(json.dumps(value))

    return shards(edit)


def first_shard(name: Any) -> Build:
    """An index whose first shard has another name."""
    return index(lambda value: value["weight_map"].update({"0.weight": name}))


def text(content: str) -> Build:
    return shards(lambda folder: (folder / INDEX).write_text(content))


def absolute(folder: Path) -> None:
    value = json.loads((folder / INDEX).read_text())
    value["weight_map"]["0.weight"] = str(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps(value))


def link(folder: Path) -> None:
    (folder / "part-0.safetensors").unlink()
    (folder / "part-0.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def twice(folder: Path) -> None:
    content = (folder / INDEX).read_text()
    (folder / INDEX).write_text(content.replace('"0.bias"', '"0.weight"'))


def again(folder: Path) -> None:
    for name in ("part-0.safetensors", "part-1.safetensors"):
        shutil.copy(folder.parent / "elsewhere.safetensors", folder / name)


def model(config: Any) -> Build:
    """A folder for `hf:` with the unharmed weights, a configuration, and a module beside it."""

    def build(good: Path, here: Path) -> None:
        folder = here / "model"
        weights(good, folder)
        content = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(content)
        (folder / "modeling_unlisted.py").write_text("class Own:\n    pass\n")

    return build


def weights(good: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(good / "weights.safetensors", folder / "model.safetensors")


def pickled(good: Path, here: Path) -> None:
    model({"model_type": "bert"})(good, here)
    (here / "model" / "model.safetensors").rename(here / "model" / "pytorch_model.bin")


def configurations() -> list[Case]:
    cases = []
    for name, made in CONFIGURATIONS.items():

        def build(good: Path, here: Path, made: Any = made) -> None:
            weights(good, here / "model")
            made(here / "model")

        row = peek(made)
        limits = named(row.limits)
        if limits is not None:
            cases.append(
                Case(f"configuration, {name}", build, "inspect hf:model", row.words, limits)
            )
    return cases


_SHARDS: list[tuple[str, Build, str]] = [
    ("shard above its folder", first_shard("../elsewhere.safetensors"), "file of its own folder"),
    ("shard with an absolute name", shards(absolute), "file of its own folder"),
    ("shard that is a link out", shards(link), "a link out of the folder"),
    ("shard that is missing", first_shard("gone.safetensors"), "which is not there"),
    ("shard that is the index", first_shard(INDEX), "file of its own folder"),
    ("shard that is a number", first_shard(7), "gives '0.weight' a int"),
    ("index with a name twice", shards(twice), "it gives a key twice"),
    ("shard of another part", shards(again), "lacks '0.bias'"),
    ("half an index", text('{"weight_map": '), "is no JSON"),
    ("index of nothing", text("{}"), "has no weight_map"),
]
_MODELS: list[tuple[str, Build, str]] = [
    ("half a configuration", model('{"a":'), "is no JSON"),
    ("configuration with a key twice", model('{"a": 1, "a": 2}'), "it gives a key twice"),
    ("pickled weights only", pickled, "holds only pickled weights"),
    (
        "timm argument that is a file",
        model({"architecture": "resnet18", "model_args": {"checkpoint_path": "own.pth"}}),
        "the argument 'checkpoint_path' is no plain value",
    ),
    (
        "timm argument that is a path",
        model({"architecture": "resnet18", "model_args": {"act_layer": "../own"}}),
        "the argument 'act_layer' is no plain value",
    ),
]
# These get as far as transformers itself, which takes seconds to import.
_TRANSFORMERS: list[tuple[str, Build, str]] = [
    (
        "code of its own",
        model({"model_type": "own", "auto_map": {"AutoConfig": "modeling_unlisted.Own"}}),
        "models with code of their own are not loaded",
    ),
    (
        "code in place of a known model",
        model(
            {
                "model_type": "bert",
                "architectures": ["pipeline"],
                "auto_map": {"AutoModel": "modeling_unlisted.Own"},
            }
        ),
        "is a pipeline, which transformers",
    ),
    ("architecture that is a number", model({"model_type": "bert", "architectures": [7]}), "a 7,"),
    (
        "weights of another model",
        model({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 1}),
        "holds none of the weights of BertModel",
    ),
]
SLOW_FOLDERS = tuple(Case(n, b, "inspect hf:model", words) for n, b, words in _TRANSFORMERS)
FOLDERS = (
    *(Case(n, b, "inspect model.pt2 --weights shards", words) for n, b, words in _SHARDS),
    *(Case(n, b, "inspect hf:model", words) for n, b, words in _MODELS),
    *configurations(),
)
