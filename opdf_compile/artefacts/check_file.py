"""The evidence for numerics: ``X.check.npz`` beside ``X.onnx``.

It holds sample inputs, the float64 truth of the torch model on them, and how far the torch model
itself is from that truth in the exported dtype. With it, verify can judge an ONNX file without the
torch model. The file is an ordinary npz without pickles, and the same export writes the same bytes.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts.check_entries import (
    function_errors,
    labels_among,
    numbers_among,
    stored,
)
from opdf_compile.artefacts.export_facts import FACTS, ExportFacts, facts_among
from opdf_compile.artefacts.fold_evidence import ENTRY, FoldRecord, record_among
from opdf_compile.errors import ArtefactError, first_line
from opdf_compile.files import DAMAGE, existing_file, read_npz

SCHEMA = "opdf-check/1"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SAMPLE = re.compile(r"s(\d+)\.", re.ASCII)


@dataclass(frozen=True, eq=False)
class Sample:
    """One input and what belongs to it.

    Attributes:
        inputs: Arrays in the exported dtype by input name (bfloat16 as ml_dtypes' type).
        outputs: The truth by output name: float64, or the output's own integer or bool dtype.
        error: By output, the largest absolute error of the torch model in the exported dtype.
        rms: By output, the root mean square of that error.
        maxabs: By output, the largest absolute value of the truth.
        function: By output, how far it moves (largest, root mean square) when every function whose
            runtimes are exact in the absolute sense only is off by a rounding of its range; empty
            where there is no such function.
        computed: By output, what the torch model computes in the exported dtype, for rows of the
            user's own; empty for other samples.
        labels: Arrays that belong to the user's rows, by name.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    error: Mapping[str, float]
    rms: Mapping[str, float]
    maxabs: Mapping[str, float]
    function: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    computed: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_users(self) -> bool:
        """Whether it is rows of the user's own, with what the torch model computes on them."""
        return bool(self.computed)

    def rows(self, output: str) -> int:
        """Independent rows of an output: its batch, which no input and no output exceeds."""
        sizes = [np.shape(value)[0] for value in self.inputs.values() if np.ndim(value)]
        shape = np.shape(self.outputs[output])
        return min(max(sizes, default=1), shape[0] if shape else 1)


@dataclass(frozen=True, eq=False)
class CheckData:
    """What a check file holds.

    Attributes:
        input_names: Inputs of the ONNX file, in order.
        output_names: Outputs of the ONNX file, in order.
        dtype: The exported floating dtype ("float32", "float16", ...).
        samples: The evidence.
        onnx_sha256: Hash of the ONNX file that it was written with.
        output_dtypes: By output, the dtype that the torch model returns; empty in older files.
        random: By output that depends on random numbers of the torch model, what draws them and
            where; nothing can be judged there.
        notes: What a reader of the verdict should know of the export, in sentences.
        folded: Where branches were folded, what the file must no longer hold; the truth is then
            that of the model as it was before.
        facts: Names that the file may lose when it is rewritten; empty in older files.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dtype: str
    samples: tuple[Sample, ...]
    onnx_sha256: str = ""
    output_dtypes: Mapping[str, str] = field(default_factory=dict)
    random: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folded: FoldRecord | None = None
    facts: ExportFacts = ExportFacts()


def check_path(onnx_path: Path) -> Path:
    """Where the check data of an ONNX file lies: ``student.onnx`` -> ``student.check.npz``."""
    return onnx_path.with_suffix(".check.npz")


def write_check(path: Path, data: CheckData) -> None:
    """Write check data; two calls with equal data write equal bytes.

    Args:
        path: A file to overwrite; give the path of `files.atomic_write`.
        data: What to write.
    """
    arrays: dict[str, Any] = {
        "schema": np.array(SCHEMA),
        "input_names": np.array(data.input_names, dtype=np.str_),
        "output_names": np.array(data.output_names, dtype=np.str_),
        "dtype": np.array(data.dtype),
        "onnx_sha256": np.array(data.onnx_sha256),
    }
    if data.output_dtypes:
        dtypes = [data.output_dtypes[name] for name in data.output_names]
        arrays["output_dtypes"] = np.array(dtypes, dtype=np.str_)
    arrays |= {f"random.{name}": np.array(words) for name, words in data.random.items()}
    if data.notes:
        arrays["notes"] = np.array(data.notes, dtype=np.str_)
    if data.folded is not None:
        arrays[ENTRY] = np.array(data.folded.to_text())
    if data.facts != ExportFacts():
        arrays[FACTS] = data.facts.to_array()
    for index, sample in enumerate(data.samples):
        for name, value in sample.inputs.items():
            arrays.update(stored(f"s{index}.in.{name}", value))
        for name, value in sample.outputs.items():
            arrays[f"s{index}.out.{name}"] = value
            arrays[f"s{index}.err.{name}"] = np.float64(sample.error[name])
            arrays[f"s{index}.rms.{name}"] = np.float64(sample.rms[name])
            arrays[f"s{index}.maxabs.{name}"] = np.float64(sample.maxabs[name])
            if name in sample.function:
                arrays[f"s{index}.function.{name}"] = np.array(sample.function[name], np.float64)
        for name, value in sample.computed.items():
            arrays.update(stored(f"s{index}.torch.{name}", value))
        arrays |= {f"s{index}.label.{name}": value for name, value in sample.labels.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # numpy stamps the time of writing on every entry; a fixed one keeps the bytes equal.
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


def read_check(path: Path) -> CheckData:
    """Read check data; nothing in the file can run code.

    Raises:
        ArtefactError: The file is missing, no check data, incomplete, or of another schema.
    """
    existing_file(path, wanted="a .check.npz file")
    try:
        arrays = read_npz(path)
    except DAMAGE as error:
        raise _no_check_data(path, error) from error
    schema = str(arrays.get("schema", "none"))
    if schema != SCHEMA:
        raise ArtefactError(
            f"{path} has the schema {schema!r}, wanted {SCHEMA!r}; export the model again"
        )
    try:
        return _assemble(arrays, path)
    except KeyError as error:
        raise ArtefactError(
            f"{path} lacks the entry {error.args[0]!r}, wanted complete check data; export the "
            "model again"
        ) from error
    except (TypeError, ValueError) as error:
        raise _no_check_data(path, error) from error


def _no_check_data(path: Path, error: Exception) -> ArtefactError:
    return ArtefactError(
        f"{path} is no check data ({first_line(error, 150)}), wanted an npz file that export "
        "wrote; export the model again"
    )


def _assemble(arrays: Mapping[str, Any], path: Path) -> CheckData:
    inputs = tuple(str(name) for name in arrays["input_names"])
    outputs = tuple(str(name) for name in arrays["output_names"])
    samples: list[Sample] = []
    labels = labels_among(arrays)
    # A model without inputs still has samples, so they are counted by their outputs.
    while any(f"s{len(samples)}.out.{name}" in arrays for name in outputs):
        key = f"s{len(samples)}"
        samples.append(
            Sample(
                inputs={name: numbers_among(arrays, f"{key}.in.{name}") for name in inputs},
                outputs={name: arrays[f"{key}.out.{name}"] for name in outputs},
                error={name: float(arrays[f"{key}.err.{name}"]) for name in outputs},
                rms={name: float(arrays[f"{key}.rms.{name}"]) for name in outputs},
                maxabs={name: float(arrays[f"{key}.maxabs.{name}"]) for name in outputs},
                function=function_errors(arrays, key, outputs),
                computed={
                    name: numbers_among(arrays, f"{key}.torch.{name}")
                    for name in outputs
                    if f"{key}.torch.{name}" in arrays
                },
                labels=labels.get(key, {}),
            )
        )
    # A sample that lost its outputs would take those after it along, unnoticed.
    begun = [int(found[1]) for found in map(_SAMPLE.match, arrays) if found]
    if not samples or max(begun) >= len(samples):
        raise KeyError(f"s{len(samples)}.out")
    for name in outputs:
        kinds = {sample.outputs[name].dtype.kind for sample in samples}
        if len(kinds) > 1 or not kinds <= set("biufc"):
            raise ValueError(f"the truth of {name!r} is not all numbers of one kind")
    dtypes = [str(name) for name in arrays.get("output_dtypes", ())]
    return CheckData(
        inputs,
        outputs,
        str(arrays["dtype"]),
        tuple(samples),
        str(arrays["onnx_sha256"]),
        dict(zip(outputs, dtypes, strict=True)) if dtypes else {},
        {n: str(arrays[f"random.{n}"]) for n in outputs if f"random.{n}" in arrays},
        tuple(str(note) for note in arrays.get("notes", ())),
        record_among(arrays, path),
        facts_among(arrays, path),
    )
