"""The teacher's outputs on the disk, computed once.

    cache/KEY/train-00000.safetensors    outputs on the first examples, in their order
    cache/KEY/train.json                 the files and their hashes; written last: then all is there

KEY is a hash of the data, the teacher, the precision and what is kept of it. Each file is written
whole or not at all and holds the same examples on every run, so that a killed run goes on at the
first missing file and gets the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf_compile.distill.engine import Say, Setup, Teaching, TopK, joined, names_read, spans
from opdf_compile.distill.recipe import Examples
from opdf_compile.distill.run.events import Stage, Watch
from opdf_compile.distill.run.folder import RunFolder
from opdf_compile.distill.run.lock import module_hash
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files import atomic_write, sha256
from opdf_compile.io import RankGroup, read_tensors, write_tensors

# A file of a few MB is written in a moment, so a killed run loses a moment.
FILE_BYTES = 16 << 20
_SCHEMA = "opdf-teacher-cache/1"


@dataclass(frozen=True)
class PartToKeep:
    """What is kept of one part of the data.

    Attributes:
        name: "train", "validation" or "test".
        examples: The part itself.
        compute: The outputs on the examples of these indices, on the CPU.
        batch: Examples per forward of the teacher.
        ragged: Whether outputs of unequal length are filled up: of a language model's tokens.
        top_k: How much of each row is kept; None keeps all.
    """

    name: str
    examples: Examples
    compute: Callable[[list[int]], dict[str, Tensor]]
    batch: int
    ragged: bool = False
    top_k: TopK | None = None


def cached_parts(
    setup: Setup, teaching: Teaching, place: RunFolder, tell: Watch
) -> tuple[dict[str, Cached], tuple[str, ...]]:
    """The cache by part of the data, filled where it is not; and notes on it.

    The training part always, the validation part where the metric reads the teacher. Without
    [teacher] cache = true, or where nothing reads the teacher, there is none.
    """
    job, teacher = setup.job, teaching.teacher
    section = job.recipe.teacher
    if section is None or teacher is None or not section.cache:
        return {}, ()
    names = names_read(setup, teacher)
    if not names:
        return {}, ()
    if not job.data.fingerprint:
        return {}, (
            "[teacher] cache is true and the data has no hash, so nothing tells whether it is the "
            "same next time: the teacher runs at every step",
        )
    precision = job.recipe.training.precision
    pruned = f"{section.pruned} of it in {section.pruned_share}" if section.pruned else ""
    top_k = None if section.cache_top_k is None else TopK(section.cache_top_k)
    form = [text for text in (pruned, f"top {top_k.k}" if top_k else "") if text]
    whole = "\0".join((job.data.fingerprint, module_hash(teacher), precision, *form, *names))
    key = hashlib.sha256(whole.encode()).hexdigest()[:24]

    def part(name: str) -> PartToKeep:
        examples: Examples = getattr(job.data, name)

        def compute(indices: list[int]) -> dict[str, Tensor]:
            found = teaching.outputs(teacher, setup.batches.of(examples, indices))
            kept = {n: found[n].detach().cpu().contiguous().clone() for n in names}
            return kept if top_k is None else top_k.kept(kept)

        ragged = job.recipe.language is not None
        return PartToKeep(name, examples, compute, job.recipe.data.batch, ragged, top_k)

    wanted = ["train"]
    if job.metric.needs_teacher and len(job.data.validation):
        wanted.append("validation")

    def say(text: str, share: float) -> None:
        tell(Stage(text, share))

    return {name: cached(place.cache / key, part(name), say) for name in wanted}, ()


def require_repeatable(part: PartToKeep) -> None:
    """Read some examples twice: a cache would freeze data that augments.

    Raises:
        InputError: They differ.
    """
    same = functools.partial(torch.allclose, rtol=0.0, atol=0.0, equal_nan=True)
    for index in sorted({0, len(part.examples) // 2, len(part.examples) - 1}):
        first, second = part.examples[index], part.examples[index]
        if not all(same(first[column], second[column]) for column in first):
            raise InputError(
                f"example {index} of the {part.name} part is another each time it is read, so the "
                "teacher's outputs on it cannot be kept; write [teacher] cache = false"
            )


def cached(folder: Path, part: PartToKeep, say: Say) -> Cached:
    """Open what is kept of a part, after computing what is missing.

    All processes must call it together; they share the work out by files.

    Raises:
        InputError: The data changes from read to read, or the outputs have no fixed shape.
        ArtefactError: A file is damaged, or cannot be written.
    """
    ranks = RankGroup()
    index = folder / f"{part.name}.json"
    if not ranks.gather(index.is_file())[0]:
        require_repeatable(part)
        ranks.together(lambda: folder.mkdir(parents=True, exist_ok=True))
        files = ranks.together(lambda: _fill(folder, part, ranks, say))
        if ranks.rank == 0:
            _write_index(index, files)
    ranks.together(lambda: None)
    return Cached(index, part.ragged, part.top_k)


def _fill(folder: Path, part: PartToKeep, ranks: RankGroup, say: Say) -> list[Path]:
    """Write this process's share of the files; the names of all."""
    text = f"the teacher's outputs on the {part.name} part"
    count = len(part.examples)
    first = part.compute(list(range(min(part.batch, count))))
    rows = _rows_per_file(first, min(part.batch, count), part.batch)
    blocks = list(spans(count, rows))
    files = [folder / f"{part.name}-{place:05d}.safetensors" for place in range(len(blocks))]
    for place in range(ranks.rank, len(files), ranks.size):
        say(text, place / len(files))
        if not files[place].is_file():
            pieces = [
                part.compute(blocks[place][start : start + part.batch])
                for start in range(0, len(blocks[place]), part.batch)
            ]
            write_tensors(files[place], joined(pieces, part.name, ragged=part.ragged))
    say(text, 1.0)
    return files


def _rows_per_file(outputs: dict[str, Tensor], examples: int, batch: int) -> int:
    """A multiple of the batch that fills a file."""
    each = sum(tensor.numel() * tensor.element_size() for tensor in outputs.values()) / examples
    return max(1, int(FILE_BYTES / max(1.0, each) / batch)) * batch


def _write_index(index: Path, files: list[Path]) -> None:
    entries = [{"name": file.name, "sha256": sha256(file)} for file in files]
    with atomic_write(index) as temporary:
        text = json.dumps({"schema": _SCHEMA, "files": entries}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


class Cached:
    """Reads rows of what was kept of one part.

    Args:
        index: Written by `cached`.
        ragged: Whether rows may be of unequal length; those of a batch are filled up.
        top_k: How they were kept.

    Raises:
        ArtefactError: It is damaged.
    """

    def __init__(self, index: Path, ragged: bool = False, top_k: TopK | None = None) -> None:
        self._ragged, self._top_k = ragged, top_k
        self._part = index.stem
        self._blocks = [_block(index, entry) for entry in _entries(index)]
        # All blocks but the last have this many rows.
        self._rows = len(next(iter(self._blocks[0].values())))

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """The outputs of these examples, in this order."""
        found = [
            {
                name: rows[index % self._rows]
                for name, rows in self._blocks[index // self._rows].items()
            }
            for index in indices
        ]
        pieces = [{name: row[name][None] for name in row} for row in found]
        whole = joined(pieces, self._part, ragged=self._ragged)
        return whole if self._top_k is None else self._top_k.read(whole)


def _entries(index: Path) -> list[dict[str, Any]]:
    try:
        value = json.loads(index.read_text(encoding="utf-8"))
        if value["schema"] != _SCHEMA or not value["files"]:
            raise ValueError(f"schema {value['schema']!r}, wanted {_SCHEMA!r}")
        return [{"name": str(e["name"]), "sha256": str(e["sha256"])} for e in value["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(index, str(error)) from error


def _block(index: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    file = index.parent / Path(entry["name"]).name
    if not file.is_file() or sha256(file) != entry["sha256"]:
        raise _damaged(file, "it is not what was written")
    return read_tensors(file)[0]


def _damaged(file: Path, reason: str) -> ArtefactError:
    return ArtefactError(
        f"the teacher's cache {file} is damaged ({reason[:100]}), wanted a whole one; delete the "
        f"folder {file.parent} and start again, which computes it anew"
    )
