"""Hostile folders: shards and their index, and models for `hf:`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import Build, Case

INDEX = "model.safetensors.index.json"


def shards(change: Callable[[Path], object]) -> Build:
    """The unharmed shards, changed, beside the unharmed program."""

    def build(good: Path, here: Path) -> None:
        (here / "model.pt2").write_bytes((good / "model.pt2").read_bytes())
        shutil.copytree(good / "shards", here / "shards")
        # What a name could lead to is really there, and would load.
        (here / "elsewhere.safetensors").write_bytes(
            (good / "shards" / "part-0.safetensors").read_bytes()
        )
        change(here / "shards")

    return build


def first_shard(name: Any) -> Build:
    """An index whose first shard has another name."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["0.weight"] = name
        (folder / INDEX).write_text(json.dumps(index))

    return shards(change)


def link(folder: Path) -> None:
    (folder / "part-0.safetensors").unlink()
    (folder / "part-0.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"0.bias"', '"0.weight"'))


def again(folder: Path) -> None:
    for name in ("part-0.safetensors", "part-1.safetensors"):
        shutil.copy(folder.parent / "elsewhere.safetensors", folder / name)


def absolute(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["0.weight"] = str(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def model(config: Any, **files: bytes) -> Build:
    """A folder for `hf:` with the unharmed weights, a configuration, and code beside it."""

    def build(good: Path, here: Path) -> None:
        folder = here / "model"
        folder.mkdir()
        shutil.copy(good / "weights.safetensors", folder / "model.safetensors")
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
        (folder / "modeling_evil.py").write_text("open('evil', 'w')")
        for name, data in files.items():
            (folder / name.replace("_json", ".json")).write_bytes(data)

    return build


def pickled(good: Path, here: Path) -> None:
    model({"model_type": "bert"})(good, here)
    (here / "model" / "model.safetensors").rename(here / "model" / "pytorch_model.bin")


_SHARDS: list[tuple[str, Build, str]] = [
    ("shard above its folder", first_shard("../elsewhere.safetensors"), "file of its own folder"),
    ("shard with an absolute name", shards(absolute), "file of its own folder"),
    ("shard that is a link out", shards(link), "a link out of the folder"),
    ("shard that is missing", first_shard("gone.safetensors"), "which is not there"),
    ("shard that is the index", first_shard(INDEX), "file of its own folder"),
    ("shard that is a number", first_shard(7), "gives '0.weight' a int"),
    ("index with a name twice", shards(twice), "it gives a key twice"),
    ("shard of another part", shards(again), "lacks '0.bias'"),
    (
        "index without end",
        shards(lambda f: (f / INDEX).write_text("[" * 200_000)),
        "is no JSON",
    ),
    ("index of nothing", shards(lambda f: (f / INDEX).write_text("{}")), "has no weight_map"),
]
_MODELS: list[tuple[str, Build, str]] = [
    (
        "attention from the hub",
        model({"model_type": "bert", "_attn_implementation": "evil/kernel"}),
        "names a kernel ('evil/kernel')",
    ),
    (
        "attention of a part from the hub",
        model({"model_type": "clip", "text_config": {"attn_implementation": {"": "evil/k"}}}),
        "names a kernel",
    ),
    (
        "another configuration",
        model({"configuration_files": ["../config.1.0.json"]}),
        "names another configuration",
    ),
    (
        "another file of weights",
        model({"model_type": "bert", "transformers_weights": "adapter_model.bin"}),
        "names another file of weights",
    ),
    (
        "quantised weights",
        model({"model_type": "bert", "quantization_config": {"quant_method": "evil"}}),
        "that of a quantised model",
    ),
    (
        "adapter of another model",
        model(
            {"model_type": "bert"},
            adapter_config_json=b'{"base_model_name_or_path": "evil/model"}',
        ),
        "holds an adapter, which names another model",
    ),
    (
        "a billion layers",
        model({"model_type": "bert", "num_hidden_layers": 1_000_000_000}),
        "at most 10000 are built",
    ),
    (
        "a vocabulary of 2^60",
        model({"model_type": "bert", "vocab_size": 1 << 60}),
        "at most 2147483648 is read",
    ),
    ("configuration without end", model('{"a":' * 100_000), "is no JSON"),
    ("configuration that is a list", model("[]"), "holds a list"),
    ("configuration with a key twice", model('{"a": 1, "a": 2}'), "it gives a key twice"),
    ("pickled weights only", pickled, "holds only pickled weights"),
    (
        "timm argument that is a file",
        model({"architecture": "resnet18", "model_args": {"checkpoint_path": "evil.pth"}}),
        "the argument 'checkpoint_path' is no plain value",
    ),
    (
        "timm argument that is a path",
        model({"architecture": "resnet18", "model_args": {"act_layer": "../evil"}}),
        "the argument 'act_layer' is no plain value",
    ),
]
# These get as far as transformers itself, which takes seconds to import.
_TRANSFORMERS: list[tuple[str, Build, str]] = [
    (
        "code of its own",
        model({"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.Evil"}}),
        "models with code of their own are not loaded",
    ),
    (
        "code in place of a known model",
        model(
            {
                "model_type": "bert",
                "architectures": ["pipeline"],
                "auto_map": {"AutoModel": "modeling_evil.Evil"},
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
)
