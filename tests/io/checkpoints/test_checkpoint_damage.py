"""Checkpoints that are damaged, altered, or of another run: one sentence, and nothing is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError
from opdf_compile.io.checkpoints import manifest
from opdf_compile.io.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from opdf_compile.io.models.safetensors_file import read_tensors, write_tensors

SHARD = "shard-00000-of-00001.safetensors"


def build(
    sizes: tuple[int, ...] = (8, 16, 4), optimizer: Any = torch.optim.AdamW, **more: Any
) -> tuple[nn.Sequential, opdf.Overparam]:
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(sizes[-1]))
    return model, opdf.Overparam(model, optimizer, **{"lr": 1e-2, "cores": 2, **more})


def step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()


def tensors_of(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """Copies of all that loading could change, the generator's state too."""
    states = [v for state in optimizer.state_by_name().values() for v in state.values()]
    return [t.clone() for t in (*model.state_dict().values(), *states, torch.get_rng_state())]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = build()
    step(model, optimizer)
    return save_checkpoint(tmp_path / "run", optimizer, step=1)


def assert_refused(path: Path, words: str, made: tuple[nn.Module, Any] | None = None) -> None:
    model, optimizer = made or build()
    before = tensors_of(model, optimizer)
    with pytest.raises(ArtefactError, match=words) as caught:
        load_checkpoint(path, optimizer)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    after = tensors_of(model, optimizer)
    assert len(before) == len(after)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def flip(path: Path) -> None:
    data = bytearray((path / SHARD).read_bytes())
    data[-1] ^= 1
    (path / SHARD).write_bytes(data)


def shorten(path: Path) -> None:
    (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-1])


def unlist(path: Path) -> None:
    (path / "manifest.json").unlink()


def overwrite(text: str) -> Callable[[Path], None]:
    return lambda path: void((path / "manifest.json").write_text(text))


def link(path: Path) -> None:
    (path / SHARD).rename(path.parent / "elsewhere")
    (path / SHARD).symlink_to(path.parent / "elsewhere")


def link_manifest(path: Path) -> None:
    (path / "manifest.json").rename(path.parent / "elsewhere")
    (path / "manifest.json").symlink_to(path.parent / "elsewhere")


def folder(path: Path) -> None:
    (path / SHARD).unlink()
    (path / SHARD).mkdir()


def void(_: object) -> None:
    return None


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "one bit": (flip, f"{SHARD} is damaged: its SHA-256 is not the one"),
    "cut short": (shorten, f"{SHARD} is damaged: it has [0-9]+ bytes, [0-9]+ were written"),
    "no shard": (lambda p: (p / SHARD).unlink(), f"{SHARD} is missing"),
    "a linked shard": (link, f"{SHARD} is a link"),
    "a folder as shard": (folder, f"{SHARD} is no ordinary file"),
    "no manifest": (unlist, "holds no manifest.json, wanted a complete checkpoint"),
    "a linked manifest": (link_manifest, "manifest.json is a link"),
    "an empty manifest": (overwrite(""), "manifest.json is empty"),
    "half a manifest": (overwrite('{"schema": '), "manifest.json is no JSON"),
    "a list": (overwrite("[]"), "is no checkpoint's manifest: the file is wrong"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(case: str, saved: Path) -> None:
    change, words = DAMAGE[case]
    change(saved)
    assert_refused(saved, words)


def test_a_manifest_above_the_limit(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGEST_MANIFEST", 100)
    assert_refused(saved, "manifest.json has [0-9]+ bytes, at most 100 are read")


FIRST = "state/0.weight/cores.0"


def rename_shard(name: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        manifest["shards"][name] = manifest["shards"].pop(SHARD)
        for stored in manifest["tensors"].values():
            stored["shard"] = name

    return change


def at(*place: str) -> Callable[[Any], Callable[[Any], None]]:
    """Sets one value of the manifest."""

    def to(value: Any) -> Callable[[Any], None]:
        def change(manifest: Any) -> None:
            for name in place[:-1]:
                manifest = manifest[name]
            manifest[place[-1]] = value

        return change

    return to


ODD: dict[str, tuple[Callable[[Any], None], str]] = {
    "climbs": (rename_shard(f"../{SHARD}"), f"names the file '../{SHARD}', wanted names like"),
    "absolute": (rename_shard(f"/{SHARD}"), f"names the file '/{SHARD}'"),
    "another form": (rename_shard("weights.safetensors"), "names the file 'weights.safetensors'"),
    "unlisted shard": (
        at("tensors", FIRST, "shard")("shard-00001-of-00001.safetensors"),
        "which is none of its shards",
    ),
    "schema": (at("schema")("opdf-checkpoint/9"), "schema is wrong"),
    "unknown key": (at("note")("a text"), "note is wrong"),
    "step": (at("step")(-1), "step is wrong"),
    "hash": (at("shards", SHARD, "sha256")("0" * 63), "sha256 is wrong"),
    "negative size": (at("tensors", FIRST, "shape")([-1]), "shape.0 is wrong"),
    "no tensor": (at("state", "0.weight", "cores.0")({"$tensor": "x"}), "not list the tensor 'x'"),
    "no state tensor": (
        at("state", "0.weight", "cores.0.exp_avg")({"$tensor": "x"}),
        "does not list the tensor 'x'",
    ),
    "half a checksum": (at("fingerprints", "0.weight")([1]), "fingerprints.0.weight.* is wrong"),
    "a checksum too large": (
        at("fingerprints", "0.weight")([1 << 70, 0]),
        "the optimizer cannot take its state",
    ),
    "odd reference": (at("state", "0.weight", "cores.0")({"$tensor": 3}), "does not stand alone"),
    "used twice": (
        at("state", "0.weight", "cores.0.exp_avg")({"$tensor": FIRST}),
        f"uses twice the tensor '{FIRST}'",
    ),
    "a core that is a number": (at("state", "0.weight", "cores.0")(3), "has no core 'cores.0'"),
    "a weight that is a number": (at("module", "0.weight")(3), "is a tensor in one of them only"),
    "another shape": (
        at("tensors", "state/0.weight/cores.0.exp_avg", "shape")([7]),
        "has another shape than the manifest says",
    ),
    "another dtype": (
        at("tensors", "state/0.weight/cores.0.exp_avg", "dtype")("float16"),
        "has another dtype than the manifest says",
    ),
    "no random state": (at("random")([{"torch": 3}]), "states cannot be restored"),
    "state of half a weight": (
        at("state", "0.weight", "cores.0.step")("later"),
        "the optimizer cannot take its state",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_manifest(case: str, saved: Path) -> None:
    change, words = ODD[case]
    manifest = json.loads((saved / "manifest.json").read_text())
    change(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(saved, words)


def test_random_states_that_are_none(saved: Path) -> None:
    """Every hash is right: somebody made the file so."""
    tensors, _ = read_tensors(saved / SHARD)
    for name in [name for name in tensors if name.startswith("random/0/python")]:
        write_tensors(saved / SHARD, {**tensors, name: torch.full_like(tensors[name], -5)})
    rehash(saved)
    assert_refused(saved, "its random number states cannot be restored")


def test_a_shard_that_lacks_a_tensor(saved: Path) -> None:
    tensors, _ = read_tensors(saved / SHARD)
    del tensors["state/0.weight/cores.0.exp_avg"]
    write_tensors(saved / SHARD, tensors)
    rehash(saved)
    assert_refused(saved, f"{SHARD} cannot be read")


def test_a_shard_that_is_no_safetensors_file(saved: Path) -> None:
    (saved / SHARD).write_bytes((3).to_bytes(8, "little") + b"{}")
    rehash(saved)
    assert_refused(saved, f"{SHARD} cannot be read")


def rehash(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / SHARD).read_bytes()
    manifest["shards"][SHARD] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def tied() -> tuple[nn.Module, Any]:
    model, _ = build((8, 8, 8))
    model[1].weight = model[0].weight
    return model, opdf.Overparam(model, lr=1e-2, cores=2)


def frozen() -> tuple[nn.Module, Any]:
    model, _ = build()
    model[0].requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, opdf.Overparam(parameters, module=model, lr=1e-2, cores=2)


OTHERS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str]] = {
    "wider": (lambda: build((8, 32, 4)), r"'0.weight' has the shape \[16, 8\] there and \[32, 8\]"),
    "deeper": (lambda: build((8, 16, 4, 4)), "its param groups hold other parameters"),
    "more cores": (lambda: build(cores=3), "'0.weight' has another number of cores"),
    "double": (lambda: double(), "'0.weight' has the dtype float32 there and float64 here"),
    "SGD": (lambda: build(optimizer=torch.optim.SGD), "saved with AdamW, this optimizer is SGD"),
    "frozen": (frozen, "its param groups hold other parameters"),
}


def double() -> tuple[nn.Module, Any]:
    model, _ = build()
    model.double()
    return model, opdf.Overparam(model, lr=1e-2, cores=2)


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_model(case: str, saved: Path) -> None:
    made, words = OTHERS[case]
    assert_refused(saved, f"does not fit: .*{words}", made())


def test_a_buffer_of_another_shape(saved: Path) -> None:
    model, optimizer = build()
    model[2].register_buffer("more", torch.ones(2))
    assert_refused(saved, "only this model has '2.more'", (model, optimizer))


def test_two_weights_do_not_become_one(tmp_path: Path) -> None:
    """The names fit: the state dict of a tied model has both."""
    model, _ = build((8, 8, 8))
    names = [p for n, p in model.named_parameters() if n != "1.weight"]
    optimizer = opdf.Overparam(names, module=model, lr=1e-2, cores=2)
    path = save_checkpoint(tmp_path, optimizer, step=1)
    assert_refused(path, "'0.weight' and '1.weight' are one weight here and two there", tied())
