"""A classifier whose exporter clips what it takes: right on drawn inputs, wrong on real pictures.

The torch model is y = (x / 255) W + b. The files clip x to -8 .. 8 first, as an exporter does that
takes the range of its example for the range of all inputs. Reference and candidate come from that
same exporter, so that their graphs are equal and each agrees with the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

from opdf_compile.artefacts import CheckData, Sample, check_path, write_check
from opdf_compile.files import sha256

PIXELS, CLASSES, BATCH = 16, 3, 4
LIMIT = 8.0


def weights(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((PIXELS, CLASSES)).astype(np.float32),
        (0.02 * random.standard_normal(CLASSES)).astype(np.float32),
    )


def model(pictures: np.ndarray, seed: int, dtype: type = np.float64) -> np.ndarray:
    weight, bias = weights(seed)
    scaled = pictures.astype(dtype) / dtype(255)
    return np.asarray(scaled @ weight.astype(dtype) + bias.astype(dtype))


def drawn(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, PIXELS)).astype(np.float32)


def photos(rows: int, seed: int = 7) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, size=(rows, PIXELS))
    return values.astype(np.float32)


def labels(pictures: np.ndarray, seed: int) -> np.ndarray:
    """What the model of a seed says of nearly all of them: a good model of the task."""
    found = model(pictures, seed).argmax(1)
    found[::10] = (found[::10] + 1) % CLASSES
    return found


def sample(pictures: np.ndarray, seed: int, classes: np.ndarray | None = None) -> Sample:
    truth, computed = model(pictures, seed), model(pictures, seed, np.float32)
    error = np.abs(computed - truth)
    own = {} if classes is None else {"computed": {"y": computed}, "labels": {"labels": classes}}
    return Sample(
        {"x": pictures},
        {"y": truth},
        {"y": float(error.max())},
        {"y": float(np.sqrt((error**2).mean()))},
        {"y": float(np.abs(truth).max())},
        **own,
    )


def write(path: Path, seed: int, *, clips: bool, rows: int = 0, batch: int | str = "batch") -> Path:
    """A file and its check data, which holds so many photos with labels."""
    weight, bias = weights(seed)
    ends = (-LIMIT, LIMIT) if clips else (-1e9, 1e9)
    constants = {
        "w": weight,
        "b": bias,
        "range": np.float32(255),
        "low": np.float32(ends[0]),
        "high": np.float32(ends[1]),
    }
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Div", ["c", "range"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size])
        for name, size in (("x", PIXELS), ("y", CLASSES))
    ]
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    made.metadata_props.add(key="opdf.parameters", value=json.dumps(["w", "b"]))
    checker.check_model(made)
    save(made, path)
    pictures = photos(rows) if rows else np.empty((0, PIXELS), np.float32)
    classes = labels(pictures, seed) if rows else np.empty(0, np.int64)
    cuts = [slice(start, start + BATCH) for start in range(0, rows, BATCH)]
    samples = [sample(drawn(BATCH, n), seed) for n in range(4)]
    samples += [sample(pictures[cut], seed, classes[cut]) for cut in cuts]
    data = CheckData(("x",), ("y",), "float32", tuple(samples), sha256(path))
    write_check(check_path(path), data)
    return path


def accuracy(outputs: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> np.ndarray:
    """Whether each row is right."""
    return np.asarray(outputs["y"].argmax(1) == samples["labels"])


def share(outputs: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> float:
    """The share of right rows, one number."""
    return float(accuracy(outputs, samples).mean())
