"""Relative paths of a recipe start from the recipe's own folder."""

from __future__ import annotations

from pathlib import Path

# Pickles and weights alone are no models here; the sentence that says so names the file it found.
_FILES = (".pt2", ".onnx", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def located(path: str, base: Path) -> Path:
    """A path of a recipe; absolute ones and those under ~ stay as they are."""
    return base / Path(path).expanduser()


def located_model(spec: str, base: Path) -> str:
    """A MODEL argument whose file or folder is looked for beside the recipe."""
    if spec.startswith("hf:"):
        return f"hf:{located(spec.removeprefix('hf:'), base)}"
    file, mark, rest = spec.partition(".py:")
    if mark:
        return f"{located(f'{file}.py', base)}:{rest}"
    name, mark, query = spec.partition("?")
    if name.endswith(_FILES):
        return f"{located(name, base)}{mark}{query}"
    return spec
