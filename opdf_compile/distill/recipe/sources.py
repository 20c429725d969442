"""Where examples come from: built-in sets, files, the user's code, a saved Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf_compile.distill.recipe.digits import load_digits
from opdf_compile.distill.recipe.examples import DATA_PARTS, Table
from opdf_compile.distill.recipe.job import Batch, Examples
from opdf_compile.distill.recipe.paths import located, located_model
from opdf_compile.distill.recipe.problems import suggestion
from opdf_compile.errors import ArtefactError, InputError, UserError, first_line
from opdf_compile.files import parse_query
from opdf_compile.io import call_callable, fixed_randomness, names_code

_FORMS = (
    "digits, mnist1d, FILE.npz, FILE.safetensors, package.module:callable, FILE.py:callable or "
    "hf:DIR"
)
_FILES = (".npz", ".safetensors")
_OTHER_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def load_source(source: str, base: Path) -> dict[str, Examples]:
    """Load what a source gives.

    Returns:
        Parts by name; "train" alone is the whole, still to be split.

    Raises:
        UserError: There is no such source, a package is missing, or the contents are no examples.
    """
    name, _, query = source.partition("?")
    if name == "digits":
        return load_digits()
    if name == "mnist1d":
        return _mnist1d(parse_query(query or None, source))
    if source.endswith(_FILES):
        return _parts_of_columns(read_columns(located(source, base)), source)
    if source.startswith("hf:"):
        return _saved_dataset(located(source.removeprefix("hf:"), base), source)
    if names_code(source):
        return _parts(call_callable(located_model(source, base)), source)
    advice = suggestion(source, ("digits", "mnist1d"), "save arrays with numpy.savez and name that")
    raise InputError(f'source "{source}" has no known form, wanted {_FORMS}{advice}')


def read_columns(file: Path) -> dict[str, Tensor]:
    """The arrays of an .npz or .safetensors file.

    Raises:
        ArtefactError: The file is missing or damaged, or holds something else than numbers.
    """
    from opdf_compile.files import DAMAGE, existing_file, read_npz
    from opdf_compile.io import read_tensors

    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    existing_file(file, wanted="an .npz file")
    try:
        arrays = read_npz(file)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except DAMAGE as error:
        raise ArtefactError(
            f"{file} cannot be read as examples ({error}), wanted arrays of numbers by name; write "
            "it again with numpy.savez"
        ) from error


def _parts_of_columns(columns: Mapping[str, Tensor], source: str) -> dict[str, Examples]:
    """Columns as one part, or as three where all names start with train_, validation_ or test_."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, column in columns.items():
        part, mark, rest = name.partition("_")
        if not mark or part not in DATA_PARTS:
            return {"train": table_of(columns, source)}
        found.setdefault(part, {})[rest] = column
    return {part: table_of(its, source) for part, its in found.items()}


def table_of(columns: Mapping[str, Tensor], source: str) -> Table:
    """Columns of equal length.

    Raises:
        InputError: There are none, or their lengths differ.
    """
    if not columns:
        raise InputError(f"{source} holds no columns, wanted one per input of the student")
    lengths = {name: len(c) if c.ndim else None for name, c in columns.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        listed = ", ".join(
            f"{name} {'a scalar' if n is None else n}" for name, n in lengths.items()
        )
        raise InputError(
            f"the columns of {source} have unequal lengths ({listed}), wanted one row per example "
            "in each; cut them to one length"
        )
    return Table(columns)


def _mnist1d(arguments: dict[str, Any]) -> dict[str, Examples]:
    """Signals that the package mnist1d generates: columns signals ``(n, 40)`` and labels.

    Source: S. Greydanus and D. Kobak, arXiv 2011.14439.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UserError(
            "the source mnist1d needs the package mnist1d and found none; pip install mnist1d"
        ) from error
    unknown = sorted(set(arguments) - {"seed", "samples"})
    if unknown:
        raise InputError(
            f"mnist1d has no argument {unknown[0]!r}, wanted seed or samples, as in "
            "mnist1d?seed=7&samples=4000"
        )
    settings = get_dataset_args()
    settings.seed = int(arguments.get("seed", settings.seed))
    settings.num_samples = int(arguments.get("samples", settings.num_samples))
    with fixed_randomness():  # It seeds the generators of the whole process.
        made = make_dataset(settings)
    parts = {}
    for name, ending in (("train", ""), ("test", "_test")):
        signals = torch.as_tensor(made[f"x{ending}"], dtype=torch.float32)
        labels = torch.as_tensor(made[f"y{ending}"], dtype=torch.int64)
        parts[name] = Table({"signals": signals, "labels": labels})
    return dict(parts)


def _parts(made: Any, source: str) -> dict[str, Examples]:
    """What a callable may return: columns, examples, or three parts of either."""
    if isinstance(made, tuple) and 1 <= len(made) <= len(DATA_PARTS):
        made = dict(zip(DATA_PARTS, made, strict=False))
    if isinstance(made, Mapping) and made and all(part_name(name) in DATA_PARTS for name in made):
        return {part_name(name): _examples(part, source) for name, part in made.items()}
    return {"train": _examples(made, source)}


def part_name(name: Any) -> str:
    """The name of a part as it is called here, such as "validation" for "dev"."""
    return _OTHER_NAMES.get(str(name), str(name))


def _examples(made: Any, source: str) -> Examples:
    if isinstance(made, Mapping):
        wrong = [name for name, column in made.items() if not _is_column(column)]
        if wrong:
            raise InputError(
                f"{source} gives {wrong[0]!r} as a {type(made[wrong[0]]).__name__}, wanted tensors "
                "or arrays by column; change what it returns"
            )
        return table_of(
            {str(name): torch.as_tensor(column) for name, column in made.items()}, source
        )
    if hasattr(made, "__len__") and hasattr(made, "__getitem__") and not isinstance(made, str):
        _require_row(made, source)
        return made  # type: ignore[no-any-return]
    raise InputError(
        f"{source} returned a {type(made).__name__}, wanted a mapping of tensors by column, a "
        "dataset whose items are such mappings, or (train, validation, test) of these; change "
        "what it returns"
    )


def _is_column(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__module__ == "numpy"


def _require_row(made: Any, source: str) -> None:
    row = made[0] if len(made) else {}
    if not isinstance(row, Mapping) or not all(isinstance(v, Tensor) for v in row.values()):
        raise InputError(
            f"an example of {source} is a {type(row).__name__}, wanted a mapping of tensors by "
            'column, such as {"images": ..., "labels": ...}; change what the dataset returns'
        )


class _TensorRows:
    """The tensor columns of a dataset of the package datasets."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("torch")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Batch:
        row = self._dataset[index]
        return {name: value for name, value in row.items() if isinstance(value, Tensor)}


def _saved_dataset(folder: Path, source: str) -> dict[str, Examples]:
    return {name: _TensorRows(part) for name, part in open_saved(folder, source).items()}


def open_saved(folder: Path, source: str) -> dict[str, Any]:
    """The parts of a dataset of the package datasets, as its own objects.

    Raises:
        ArtefactError: The folder holds none.
        UserError: The package is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{source} needs the package datasets and found none; pip install datasets"
        ) from error
    if not folder.is_dir():
        raise ArtefactError(
            f"{source}: {folder} is no folder, wanted one that Dataset.save_to_disk wrote; check "
            "the path"
        )
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(
            f"{source}: {folder} holds no dataset ({first_line(error, 150)}), wanted one "
            "that Dataset.save_to_disk wrote; save it again"
        ) from error
    if isinstance(found, Mapping):
        parts = {part_name(name): part for name, part in found.items()}
        return {name: part for name, part in parts.items() if name in DATA_PARTS}
    return {"train": found}
