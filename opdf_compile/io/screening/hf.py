"""What must hold before transformers or timm reads a folder: config.json is somebody's data.

transformers follows more of a configuration than its sizes: names of attention kernels are fetched
from the hub and imported, `configuration_files` and `transformers_weights` name other files, an
adapter names another model, a quantization method imports a package. None of these is needed for a
student, so each is refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError
from opdf_compile.io.models.shards import read_json_object, weight_files
from opdf_compile.io.screening.header import check_header

LARGEST_CONFIG = 16 << 20
LARGEST_CONFIG_NUMBER = 1 << 31
MOST_LAYERS = 10_000
_REFUSED = {
    "configuration_files": "names another configuration",
    "transformers_weights": "names another file of weights",
    "quantization_config": "is that of a quantised model, whose weights cannot be trained",
}
_KERNELS = ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels")
# Everything else is a kernel on the hub ("org/name"), or needs a package of its own.
_PLAIN = (None, "eager", "sdpa", "flex_attention", "grouped_mm", False)
_COUNTS = ("layers", "layer", "blocks", "depth", "depths", "experts", "stages")


def screen_folder(folder: Path, spec: str) -> dict[str, Any]:
    """Check config.json and the headers of all weights.

    Args:
        folder: The folder, which holds a config.json.
        spec: The MODEL argument, for sentences.

    Returns:
        The configuration.

    Raises:
        ArtefactError: Something in the folder is damaged, absurd, or leads out of it.
    """
    config = read_json_object(folder / "config.json", "a configuration", LARGEST_CONFIG)
    problem = _problem(config)
    if problem:
        raise ArtefactError(f"{spec} is refused: in {folder / 'config.json'}, {problem}")
    if (folder / "adapter_config.json").exists():
        raise ArtefactError(
            f"{spec} is refused: {folder} holds an adapter, which names another model; merge it "
            "into its model (PEFT's merge_and_unload) and save that"
        )
    for file in weight_files(folder):
        check_header(file)
    return config


def _problem(config: dict[str, Any]) -> str | None:
    """What is wrong anywhere in a configuration, or None."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        problem = _value_problem(key, value)
        if problem:
            return problem
        if isinstance(value, dict):
            waiting.extend((str(name), found) for name, found in value.items())
        elif isinstance(value, list):
            waiting.extend((key, found) for found in value)
    return None


def _value_problem(key: str, value: Any) -> str | None:
    if key in _REFUSED and value:
        return f"{key!r} {_REFUSED[key]}; save the model again with save_pretrained"
    if key.lstrip("_").removesuffix("_internal") in _KERNELS and not _plain(value):
        return f"{key!r} names a kernel ({str(value)[:60]!r}), which would be code; remove it"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= LARGEST_CONFIG_NUMBER and not isinstance(value, float):
        return f"{key!r} is {str(value)[:30]}, at most {LARGEST_CONFIG_NUMBER} is read; correct it"
    if key.rpartition("_")[2] in _COUNTS and value > MOST_LAYERS:
        return f"{key!r} is {value}, at most {MOST_LAYERS} are built; correct it"
    return None


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(part) for part in value.values())
    return value in _PLAIN if isinstance(value, str | bool | None) else False
